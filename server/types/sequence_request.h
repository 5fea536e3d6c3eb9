#ifndef C3PO_SERVER_TYPES_SEQUENCE_REQUEST_H_
#define C3PO_SERVER_TYPES_SEQUENCE_REQUEST_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "server/types/answer_form.h"
#include "server/types/model_runner.h"
#include "server/types/routing_override.h"
#include "server/types/sampled_token.h"
#include "server/types/sampling_params.h"

namespace c3po {

enum class FinishReason { kStop, kLength };

enum class Priority { kLow, kNormal, kHigh };

// Seconds a sequence spent in each stage that the scheduler sees, one after the other:
//   before_batch + prefill + optimization + optimization_wait + decode = from arrival to its end
struct SequenceTimings {
  std::optional<double> before_batch_seconds;  // from arrival to a place in the batch; nothing: it never ran
  double prefill_seconds = 0;                  // from there to the last prompt token
  double optimization_seconds = 0;             // its own units only, not what ran between them; on_prefilled included
  double optimization_wait_seconds = 0;        // what ran between them
  bool optimized = false;                      // a task ran
  double decode_seconds = 0;                   // after prefill and optimization, to the end
  double first_token_seconds = 0;              // of these, those to the first token
  double time_to_first_token_seconds = 0;      // from arrival
  int cached_prompt_tokens = 0;                // found in the cache when it was first given a place
};

struct ContinuationScore {
  double log_likelihood = 0;          // sum over tokens, natural logarithm
  bool is_greedy = true;              // every token is the model's most likely one
  std::vector<float> token_logprobs;  // One per token.
  // Where the collection's label offset is applied (pipeline/choice_offset.h): what the choice is made by, in place of
  // per_token().
  std::optional<double> offset_score = std::nullopt;
  RoutedExperts routes = {};  // Where they were wanted, of its tokens but the last one.
  // What choices are compared by, so that a longer one is not the less likely one for that.
  double per_token() const { return log_likelihood / static_cast<double>(token_logprobs.size()); }
  double choice_score() const { return offset_score.value_or(per_token()); }
};

// Where a sequence's results go. Calls come from the engine thread, in order, and must not block; OnFinished comes
// exactly once, last.
class SequenceSink {
 public:
  virtual ~SequenceSink() = default;
  // False ends the sequence here (a stop string was found), with FinishReason::kStop.
  virtual bool OnToken(const SampledToken& token) = 0;
  // Where sampling.prompt_logprobs asks: once, before the first token, one for each token of the prompt. The model's
  // own, whatever pathway governs the answer. The first one follows nothing, and has its id alone.
  virtual void OnPrompt(std::vector<SampledToken> /*prompt*/) {}
  virtual void OnScores(std::vector<ContinuationScore> scores) = 0;
  // Where the request wants them: the whole prompt's, once they are final, before the first token or the scores; then
  // each generated token's before OnToken of the next one. No pass reads an answer's last token, unless an end token
  // follows it.
  virtual void OnRoutes(RoutedExperts /*routes*/) {}
  virtual void OnFinished(const absl::Status& status, FinishReason reason, const SequenceTimings& timings) = 0;
};

// A pathway search that the scheduler advances one unit of work at a time between its other steps. A unit is one
// evaluation of an objective, or several side by side, which the scheduler runs together with those of other tasks, or
// work of the task's own:
//   AskAll says evaluations: ModelRunner::NewEvaluationRun ▶ TellAll
//   AskAll says nothing:     Step
class OptimizationTask {
 public:
  virtual ~OptimizationTask() = default;
  // The evaluation that is the next unit; nothing where the unit is something else. Changes nothing.
  virtual std::optional<Evaluation> Ask() const { return std::nullopt; }
  // Does the next unit, one that Ask says nothing of, or of a longer one as much as costs about `row_layers`
  // (server/types/piecewise_work.h). True when the task is finished; nothing is called then but what is named below.
  virtual absl::StatusOr<bool> Step(int64_t row_layers) = 0;
  // Does the next unit with the result of what Ask says; `seconds` of the evaluation are the task's own. True as Step.
  virtual absl::StatusOr<bool> Tell(const LossAndGradient& /*result*/, double /*seconds*/) {
    return absl::InternalError("the task asked for nothing");
  }
  // An estimate of what it holds at most at once, beside caches.
  virtual int64_t memory_bytes() const { return 0; }
  // After the last step: null when the pathway stays as it was.
  virtual std::shared_ptr<const RoutingOverride> routing() const = 0;
  // The same of a task that searches several ways at once: the evaluations that are the next unit, and their results in
  // that order. What Ask and Tell say of one is the default.
  virtual std::vector<Evaluation> AskAll() const {
    std::optional<Evaluation> one = Ask();
    return one ? std::vector<Evaluation>{*std::move(one)} : std::vector<Evaluation>();
  }
  virtual absl::StatusOr<bool> TellAll(absl::Span<const LossAndGradient> results, double seconds) {
    return Tell(results.front(), seconds);
  }
  // Where there is a routing, asked once what it gave: the probability of the likeliest first token of a sequence that
  // generates, the scores of one that scores. False: the sequence starts over from its prompt's end without the
  // routing, as though there had been none.
  virtual bool AcceptAnswer(double /*largest_probability*/) { return true; }
  virtual bool AcceptScores(absl::Span<const ContinuationScore> /*scores*/) { return true; }
};

// One sequence's work: prefill; optimize if asked to; then generate, or score `continuations` if there are any.
struct SequenceRequest {
  std::string request_id;
  std::vector<int32_t> prompt;                      // at least one token
  SamplingParams sampling;                          // for generation
  std::shared_ptr<const CompiledForm> form;         // of what is generated; null: any
  std::vector<std::vector<int32_t>> continuations;  // none empty

  // Called once after prefill, with what was captured at the last prompt token and the distribution after it: of
  // tokens, the first of each continuation. May return null. Where it is not set, nothing is captured.
  std::function<absl::StatusOr<std::shared_ptr<OptimizationTask>>(const PromptCapture& capture, const Readout& next)>
      on_prefilled;
  int entry_layer = 0;   // where the capture is taken: the first critical layer
  int state_layer = -1;  // PromptCapture::state is wanted of it; -1: not wanted
  int mean_layer = -1;   // PromptCapture::mean_hidden is wanted of the states entering it; -1: not wanted
  ApplicationRule rule = ApplicationRule::kEveryNewToken;  // of the routing that the task finds
  bool want_routes = false;                                // of the answer, or of continuations
  bool want_prompt_routes = false;                         // Then nothing of the prompt is taken from the prefix cache.
  int experts_per_token = 0;  // 0: the model's own number; nothing is optimized beside another one
  int prompt_positions = 1;   // the last so many tokens of the prompt that it governs, >= 1; of a shorter prompt all

  // Of those that wait, the highest priority goes first; among equals, the caller with the fewest sequences running.
  Priority priority = Priority::kNormal;
  std::string caller;
  bool learning = false;  // It takes none of the places of requests; whoever starts it bounds how many there are.

  absl::Time arrival = absl::InfinitePast();
  absl::Time deadline = absl::InfiniteFuture();
  std::shared_ptr<const std::atomic<bool>> cancelled;  // null: cannot be cancelled
  std::shared_ptr<SequenceSink> sink;
};

}  // namespace c3po

#endif  // C3PO_SERVER_TYPES_SEQUENCE_REQUEST_H_
