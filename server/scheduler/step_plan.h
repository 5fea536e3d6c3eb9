#ifndef C3PO_SERVER_SCHEDULER_STEP_PLAN_H_
#define C3PO_SERVER_SCHEDULER_STEP_PLAN_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "server/scheduler/kv_block_pool.h"
#include "server/scheduler/sequence.h"
#include "server/types/model_runner.h"

namespace c3po {

// Whose a segment is.
struct SegmentOwner {
  Sequence* sequence = nullptr;
  size_t continuation = 0;      // that is scored
  bool catching_up = false;     // Its rows only fill the cache; nothing of the output is looked at.
  std::vector<int32_t> blocks;  // of a continuation that ends with this pass, held; the caller releases them after it
};

// One forward pass: segments, and for each of them whose it is. Segments point into their sequences and owners.
struct StepPlan {
  std::vector<Segment> segments;
  std::vector<SegmentOwner> owners;
};

// Rows by which a pass may be longer than its budget, so that a short continuation is not cut.
inline constexpr int kUncutRows = 16;

// The rows of running streams first; then prompts and continuations to score, every caller's part the same and each
// one's in the order of `running`, until they are `prefill_tokens` rows, and kUncutRows more where these end a
// continuation. What does not fit waits for the next pass. Every sequence holds the blocks that its own rows need;
// continuations take theirs from `pool`, and wait where there are none. `plan` is overwritten and keeps its memory.
void PlanStep(absl::Span<const std::unique_ptr<Sequence>> running, int prefill_tokens, KvBlockPool& pool,
              StepPlan& plan);

}  // namespace c3po

#endif  // C3PO_SERVER_SCHEDULER_STEP_PLAN_H_
