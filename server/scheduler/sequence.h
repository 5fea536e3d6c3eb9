#ifndef C3PO_SERVER_SCHEDULER_SEQUENCE_H_
#define C3PO_SERVER_SCHEDULER_SEQUENCE_H_

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "server/scheduler/kv_block_pool.h"
#include "server/types/model_runner.h"
#include "server/types/sequence_request.h"

namespace c3po {

// One sequence's way through the ContinuousBatcher. A plain value of the engine thread.
struct Sequence {
  enum class Stage { kPrefill, kOptimizing, kResume, kDecode, kScore, kEnded };

  SequenceRequest request;
  Stage stage = Stage::kPrefill;
  std::vector<int32_t> tokens;  // prompt and generated
  int generated = 0;
  std::unique_ptr<TokenMatcher> matcher;  // Of its form, after the generated tokens; null: it has none.

  std::vector<int32_t> blocks;   // held, of positions from 0 on
  int cached = 0;                // positions whose keys and values are there
  KvBlockPool::Chain chain = 0;  // of the first `named` blocks
  int named = 0;
  bool admitted_before = false;

  PromptCapture capture;
  std::shared_ptr<StateSum> state_sum;
  Readout prompt_readout;                       // of the prompt's last token, as the model is
  std::vector<int32_t> first_tokens;            // of the continuations
  std::vector<SampledToken> prompt_tokens;      // one per token of the prompt, where prompt_logprobs asks for them
  SamplingParams prompt_sampling;               // reads the most likely tokens at a place of the prompt
  std::vector<ReadoutRequest> prompt_readouts;  // of the chunk under way
  std::shared_ptr<OptimizationTask> task;
  std::shared_ptr<const PlacedRouting> routing;
  bool work_granted = false;              // the task may take the memory that it needs
  int64_t turn = 0;                       // when optimization last turned to it; 0: never
  std::vector<ContinuationScore> scores;  // of the continuations, once scoring began
  size_t scored = 0;                      // continuations whose score is whole
  // A continuation that is longer than one pass may be: as many of its rows have run, and lie in these blocks. What is
  // in `scores` stays where they are given back: the rows that run again give the same.
  struct PartialScore {
    size_t continuation = 0;
    int rows = 0;
    std::vector<int32_t> blocks;
  };
  PartialScore partial;
  RoutedExperts prompt_routes;  // as the rows that ran last have them

  absl::Time submitted, admitted, prefill_done, ready, last_token;
  SequenceTimings timings;

  int prompt_length() const { return static_cast<int>(request.prompt.size()); }
  int last_prompt_position() const { return prompt_length() - 1; }
  int first_governed_position() const { return std::max(0, prompt_length() - request.prompt_positions); }
  bool scoring() const { return !request.continuations.empty(); }
  bool cancelled() const { return request.cancelled && request.cancelled->load(std::memory_order_relaxed); }

  // Positions that its stage needs in the cache before its own row can run: all of the prompt, and what was generated
  // but the last token, whose row comes next; to resume, the prompt but its last token. An optimization needs none.
  int wanted() const {
    if (stage == Stage::kOptimizing || stage == Stage::kEnded) return 0;
    if (stage == Stage::kResume) return last_prompt_position();
    return stage == Stage::kDecode ? static_cast<int>(tokens.size()) - 1 : prompt_length();
  }
  // Positions that it holds blocks for: those, and its own row's.
  int reserved() const { return wanted() + (stage == Stage::kDecode || stage == Stage::kResume ? 1 : 0); }
  // Positions whose keys and values are those of the model as it is, whoever asks: others may share them.
  int shareable() const {
    return request.on_prefilled ? first_governed_position() : static_cast<int>(tokens.size()) - 1;
  }
  // What comes next after a prompt's last token, or after the last that was generated. Whoever optimizes asks how sure
  // the model is, and whoever scores what it gives each continuation's first token.
  ReadoutRequest NextToken() const {
    ReadoutRequest wanted;
    wanted.distribution = scoring() || (generated == 0 && request.on_prefilled);
    wanted.tokens = first_tokens;
    if (!scoring()) wanted.sampling = &request.sampling;
    if (!scoring()) wanted.matcher = matcher.get();
    wanted.context = tokens;
    wanted.position = generated;
    return wanted;
  }
  // Beginnings of sequences with different numbers of experts share nothing.
  KvBlockPool::Chain root() const { return static_cast<KvBlockPool::Chain>(request.experts_per_token); }
  // Whether the prompt's own log-probabilities are wanted: then all of it has to run.
  bool reads_prompt() const { return request.sampling.prompt_logprobs >= 0; }
  // What the rows of a chunk give the prompt's tokens that follow them.
  void ReadPrompt(Segment& segment) {
    const auto first = static_cast<size_t>(segment.start);
    const size_t rows = std::min(segment.tokens.size(), request.prompt.size() - 1 - first);
    prompt_sampling.logprobs = request.sampling.prompt_logprobs;
    prompt_readouts.assign(rows, ReadoutRequest());
    for (size_t r = 0; r < rows; ++r) {
      if (prompt_sampling.logprobs > 0) prompt_readouts[r].sampling = &prompt_sampling;
      prompt_readouts[r].distribution = true;
      prompt_readouts[r].tokens = absl::MakeConstSpan(tokens).subspan(first + r + 1, 1);
    }
    segment.row_readouts = prompt_readouts;
  }
  // The pathway is data of the rows it governs.
  void Route(Segment& segment) const {
    segment.routing = routing.get();
    segment.override_start = first_governed_position();
    if (request.rule == ApplicationRule::kLastPromptToken) segment.override_end = prompt_length();
  }
};

}  // namespace c3po

#endif  // C3PO_SERVER_SCHEDULER_SEQUENCE_H_
