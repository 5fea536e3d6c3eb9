#ifndef C3PO_SERVER_PIPELINE_GENERATION_TYPES_H_
#define C3PO_SERVER_PIPELINE_GENERATION_TYPES_H_

// What goes into the pipeline and what comes out of it, free of protobuf. server/rpc converts.

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "index/base/steady_time.h"
#include "server/admission/rate_limiter.h"
#include "server/pathway/gate.h"
#include "server/pipeline/optimization_settings.h"
#include "server/text/conversation.h"
#include "server/types/answer_form.h"
#include "server/types/sampled_token.h"
#include "server/types/sampling_params.h"
#include "server/types/sequence_request.h"

namespace c3po {

class CallTrace;

// A conversation as the model's template wrote it.
struct RenderedChat {
  std::string prompt;
  std::string question;       // The last message's content, which is embedded: the frame is the same in every prompt.
  double render_seconds = 0;  // Part of tokenize_seconds.
};

// A raw prompt, token ids, or a conversation, which is rendered before it is tokenized.
using PromptInput = std::variant<std::string, std::vector<int32_t>, Conversation, RenderedChat>;

inline double RenderSeconds(const PromptInput& input) {
  const auto* chat = std::get_if<RenderedChat>(&input);
  return chat == nullptr ? 0 : chat->render_seconds;
}

// What every call carries.
struct CallContext {
  std::string request_id;
  absl::Time arrival = SteadyNow();
  absl::Time deadline = absl::InfiniteFuture();
  std::shared_ptr<const std::atomic<bool>> cancelled;  // set by the transport; null: cannot be cancelled
  std::string caller;                                  // whose fair share it counts against
  Priority priority = Priority::kNormal;
  bool may_use_oracle = false;
  std::shared_ptr<RateLimiter::Call> rates;  // what its cost is charged to; null: nothing
  // Counts bytes that the call keeps for its client (CallState::HoldBytes), while it runs; null: nobody counts.
  std::function<absl::Status(size_t bytes)> hold_bytes;
  std::shared_ptr<CallTrace> trace;  // null: the call is not traced

  // Takes tokens through the model of what the caller has left of the minute (RateLimiter::Call::Charge). Other than a
  // place in the queue, this does not depend on who else calls.
  absl::Status Charge(int64_t tokens) const { return rates == nullptr ? absl::OkStatus() : rates->Charge(tokens); }
  // What of it was really used; the rest is given back (RateLimiter::Call::Used).
  void Used(int64_t tokens) const {
    if (rates != nullptr) rates->Used(tokens);
  }
};

// What a request says of the router's experts.
struct ExpertsWish {
  bool return_routed = false;    // The client wants the experts of every token.
  std::optional<int> per_token;  // nothing: the model's own number
};

struct GenerateCall {
  CallContext context;
  PromptInput input;
  SamplingParams sampling;
  bool max_tokens_given = true;  // false: sampling.max_tokens is a default, cut to what the context window leaves
  OptimizationSettings optimization;
  ExpertsWish experts;
  std::optional<AnswerForm> form;  // that each answer has to have; errors name the field structured_output
  std::shared_ptr<const CompiledForm> compiled_form;  // of `form`; set by the pipeline
  bool skip_special_tokens = true;  // of the text that goes out, and in which stop strings are looked for
};

struct ScoreCall {
  CallContext context;
  PromptInput input;
  std::vector<std::string> continuations;
  // Of a Generate call: they are its choices, at least two and all different, and the likeliest one is its answer.
  bool choose = false;
  OptimizationSettings optimization;
  ExpertsWish experts;
  std::optional<std::string> oracle_answer;  // one of the continuations; for Method::kOracle alone
  // Where optimization.use_offset asks for a label offset that is not there, the scores stay as they are, with a
  // warning: it is a default's wish. False: the call asked for it by itself, and fails.
  bool offset_may_be_missing = false;
};

// Seconds; generation.proto says what each is. Of an answered call:
//   queue + tokenize + embed + retrieval + prefill + optimization + optimization_wait + decode = arrival to end
//   the same without decode + first_token = time_to_first_token
struct StageTimings {
  double queue_seconds = 0, tokenize_seconds = 0, embed_seconds = 0, retrieval_seconds = 0, prefill_seconds = 0;
  double optimization_seconds = 0, optimization_wait_seconds = 0, decode_seconds = 0;
  double first_token_seconds = 0, time_to_first_token_seconds = 0;
};

struct NeighborReport {
  std::string reference_id, prompt, answer;
  double distance = 0;
  double kernel_weight = 0;  // of the neighbors' sum
  bool successful = false;
};

struct ExpertChange {
  int layer = 0, expert = 0;
  float before = 0, after = 0;
};

struct OptimizationReport {
  OptimizationSettings settings;
  GateDecision gate = GateDecision::kNotRequested;
  std::string gate_reason;  // see GateReason
  std::vector<NeighborReport> neighbors;
  std::vector<double> losses;
  std::vector<double> validation_losses;
  std::optional<int> selected_step;
  std::optional<double> base_confidence, optimized_confidence;    // what the gate looked at
  std::optional<double> nearest_distance, max_neighbor_distance;  // likewise
  bool shortened = false;                                         // settings.steps was cut to meet the deadline
  bool offset_applied = false;  // the collection's label offset, to the choices' scores
  std::optional<double> alpha;
  int64_t index_generation = 0;       // see Retrieval::generation; 0: nothing was looked for
  std::vector<std::string> warnings;  // what makes the result doubtful, in words
  Pathway before, after;              // of the critical layers; empty where no optimization ran
  std::vector<ExpertChange> largest_changes;
  StageTimings timings;
};

struct TextChunk {
  int answer = 0;         // which of sampling.n
  int prompt_tokens = 0;  // of the call
  std::string text;
  std::vector<SampledToken> tokens;
  RoutedExperts routes = {};  // where they are wanted, of the tokens before these that a pass has read by now
};

struct Usage {
  int prompt_tokens = 0, completion_tokens = 0;
  int cached_tokens = 0;  // of prompt_tokens: found in the cache; Generate calls
};

struct Provenance {
  std::string model_digest, embedder_digest;
  int64_t index_generation = 0;
  uint64_t effective_seed = 0;
};

struct AnswerEnd {
  FinishReason finish_reason = FinishReason::kStop;
  int completion_tokens = 0;
  std::optional<int> stop;  // which of sampling.stop ended it
};

struct CallSummary {
  FinishReason finish_reason = FinishReason::kStop;  // of the first answer
  std::vector<AnswerEnd> answers;                    // Generate calls: by index
  std::optional<int> chosen;                         // of a Score call that chooses: the index of its answer
  Usage usage;                                       // of all answers
  int64_t cost = 0;  // in tokens through the model, RequestWork::Cost of what was done; 0: it never ran
  StageTimings timings;
  SequenceTimings sequence;  // what the scheduler saw of the first answer
  Provenance provenance;
};

// Receives one call's results, in order: OnOptimization once, chunks, OnDone exactly once and last (at any time on an
// error). Calls come from worker or engine threads, one at a time, and must not block.
class GenerationListener {
 public:
  virtual ~GenerationListener() = default;
  virtual void OnOptimization(const OptimizationReport& report) = 0;
  virtual void OnChunk(TextChunk chunk) = 0;
  // Where sampling.prompt_logprobs asks: once, before the chunks; as SequenceSink::OnPrompt.
  virtual void OnPrompt(std::vector<SampledToken> /*prompt*/) {}
  virtual void OnScores(std::vector<ContinuationScore> scores) = 0;  // Score calls only
  virtual void OnRoutes(RoutedExperts /*prompt*/) {}                 // where they are wanted, before chunks and scores
  virtual void OnDone(const absl::Status& status, const CallSummary& summary) = 0;
};

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_GENERATION_TYPES_H_
