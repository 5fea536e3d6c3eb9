#ifndef C3PO_SERVER_SCHEDULER_CONTINUOUS_BATCHER_H_
#define C3PO_SERVER_SCHEDULER_CONTINUOUS_BATCHER_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "index/base/steady_time.h"
#include "server/metrics/metrics.h"
#include "server/scheduler/kv_block_pool.h"
#include "server/scheduler/optimization_unit.h"
#include "server/scheduler/sequence.h"
#include "server/scheduler/sequence_places.h"
#include "server/scheduler/step_plan.h"
#include "server/types/model_runner.h"
#include "server/types/sequence_request.h"

namespace c3po {

struct BatcherLimits {
  int sequences_max = 32;             // Sequences that run at once, learning and kKeptPlaces not counted.
  int64_t kv_tokens_max = 32768;      // Positions of the model's cache: what AllocateKvCache was told.
  int prefill_tokens_per_step = 512;  // Prompt tokens in one forward pass: bounds the pause of running streams.
  // Of the tasks that optimize at once, by their own estimates, learning not counted; a task that needs more waits, or
  // runs alone.
  int64_t work_memory_bytes = int64_t{1} << 30;
};

// Continuous batching: sequences join and leave at every step. One step is one forward pass over the decode rows of all
// generating sequences, prompt chunks and continuations to score under a token budget, and tokens resumed under a new
// pathway; then units of pathway optimization, in turn, for a share of the pass's time: evaluations that several
// sequences wait for are one unit and one pass over the model. A unit that costs more than a full pass of prompt tokens
// is cut into parts of that cost, and what runs goes on between them. Of those that wait, the highest priority is
// admitted first, among equals the caller with the fewest sequences running, then what was preempted, then the first
// come. Of the prompt tokens of a pass, and of the time for optimization, each caller has the same part.
// Each sequence goes
//   waiting ▶ prefill ▶ [optimizing ▶ resume] ▶ decode, or score ▶ finished
// and once more from resume, without the new pathway, where its task does not accept what came of it; it leaves at the
// next step once it is cancelled or past its deadline, whatever it is doing.
//
// The cache is paged: a sequence takes blocks as it grows, and begins with those that an earlier one left behind where
// their tokens are the same. Continuations of one prompt read its blocks where they lie. When blocks run out, the
// sequence that came last gives its own back and waits again; what was in them is computed anew, bit for bit, when
// there is room. Not thread-safe: the engine thread owns it.
class ContinuousBatcher {
 public:
  using Clock = std::function<absl::Time()>;
  // Neither is owned; both outlive the batcher. `metrics` may be null.
  ContinuousBatcher(ModelRunner* model, const BatcherLimits& limits, Metrics* metrics, Clock now = SteadyNow);
  ~ContinuousBatcher();

  // The request ends through its sink, also when it cannot be served: ResourceExhausted where it would never fit.
  void Add(SequenceRequest request);
  // Runs one step; false when no sequence is left.
  bool Step();
  // Ends every sequence with `status`.
  void AbortAll(const absl::Status& status);

  // Prompt tokens of the sequences that wait.
  int64_t waiting_tokens() const;
  int64_t generated_tokens() const { return generated_tokens_; }  // since the start
  int64_t waiting() const { return static_cast<int64_t>(places_.waiting().size()); }
  int64_t running() const { return static_cast<int64_t>(places_.running().size()); }
  int64_t kv_tokens_used() const { return places_.pool().held() * KvBlockPool::kPositions; }
  int64_t preemptions() const { return places_.preemptions(); }
  int64_t prefix_hit_tokens() const { return places_.prefix_hit_tokens(); }

 private:
  using SequencePtr = SequencePlaces::SequencePtr;
  using Stage = Sequence::Stage;

  void DropEnded();
  bool RunForward();
  void Distribute(const SegmentOwner& owner, const Segment& segment, SegmentOutput& output);
  void TakeRoutes(Sequence& sequence, const Segment& segment, SegmentOutput& output);
  void TellPromptRoutes(Sequence& sequence);
  // Keeps what a chunk of the prompt says of its tokens.
  absl::Status TakePrompt(Sequence& sequence, int start, SegmentOutput& output);
  void FinishPrefill(Sequence& sequence, SegmentOutput& output);
  void TakeToken(Sequence& sequence, const Readout& readout);
  void StartScoring(Sequence& sequence, const Readout& readout);
  void TakeScore(Sequence& sequence, size_t continuation, int first_row, const SegmentOutput& output);
  void FinishScoring(Sequence& sequence);
  void OptimizeBeside(double forward_seconds);
  void GrantWork();
  bool OptimizeOnce();
  void TakePathway(Sequence& sequence);
  void AfterOptimization(Sequence& sequence, absl::Time ready);
  void TakeResumed(Sequence& sequence, const Readout& readout);
  void BeginAnswer(Sequence& sequence, const Readout& readout);
  void Resume(Sequence& sequence);
  void Revert(Sequence& sequence);
  void Finish(Sequence& sequence, const absl::Status& status, FinishReason reason);
  void ReportGauges();

  ModelRunner* const model_;
  const BatcherLimits limits_;
  Metrics* const metrics_;
  const Clock now_;
  OptimizationUnits units_;
  SequencePlaces places_;               // tells units_ what it preempts
  StepPlan plan_;                       // of the pass that runs
  std::vector<SegmentOutput> outputs_;  // likewise
  double optimization_credit_ = 0;      // seconds
  int64_t generated_tokens_ = 0;
};

}  // namespace c3po

#endif  // C3PO_SERVER_SCHEDULER_CONTINUOUS_BATCHER_H_
