#ifndef C3PO_SERVER_SCHEDULER_CONTINUOUS_BATCHER_H_
#define C3PO_SERVER_SCHEDULER_CONTINUOUS_BATCHER_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "server/metrics/metrics.h"
#include "server/types/model_runner.h"
#include "server/types/sequence_request.h"

namespace c3po {

struct BatcherLimits {
  int sequences_max = 32;             // Sequences that hold a cache at once.
  int64_t kv_tokens_max = 32768;      // Positions of all caches together; a sequence takes its prompt plus max_tokens.
  int prefill_tokens_per_step = 512;  // Prompt tokens in one forward pass: bounds the pause of running streams.
};

// Continuous batching: sequences join and leave at every step. One step is one forward pass over the decode rows of all
// generating sequences, prompt chunks under a token budget, continuations to score, and tokens resumed under a new
// pathway; then one unit of pathway optimization, of one sequence in turn. Of those that wait, the highest priority is
// admitted first, among equals the caller with the fewest sequences running, then the first come. Each sequence goes
//   waiting ▶ prefill ▶ [optimizing ▶ resume] ▶ decode, or score ▶ finished
// and once more from resume, without the new pathway, where its task does not accept what came of it;
// and leaves at the next step once it is cancelled or past its deadline, whatever it is doing. Not thread-safe: the
// engine thread owns it.
class ContinuousBatcher {
 public:
  // Neither is owned; both outlive the batcher. `metrics` may be null.
  ContinuousBatcher(ModelRunner* model, const BatcherLimits& limits, Metrics* metrics);
  ~ContinuousBatcher();

  // The request ends through its sink, also when it cannot be served: ResourceExhausted where it would never fit.
  void Add(SequenceRequest request);
  // Runs one step; false when no sequence is left.
  bool Step();
  // Ends every sequence with `status`.
  void AbortAll(const absl::Status& status);

  int64_t waiting() const { return static_cast<int64_t>(waiting_.size()); }
  int64_t running() const { return static_cast<int64_t>(running_.size()); }
  int64_t kv_tokens_used() const { return kv_tokens_used_; }

 private:
  struct Sequence;
  using SequencePtr = std::unique_ptr<Sequence>;

  void DropEnded();
  size_t NextToAdmit() const;  // index into waiting_, which is not empty
  void Admit();
  std::vector<Segment> PlanSegments(std::vector<Sequence*>& owners);
  void RunForward();
  void Distribute(Sequence& sequence, SegmentOutput output);
  void FinishPrefill(Sequence& sequence, SegmentOutput output);
  void SampleNext(Sequence& sequence, const std::vector<float>& logits);
  void StartScoring(Sequence& sequence, const std::vector<float>& logits);
  void NextScore(Sequence& sequence);
  void TakeScore(Sequence& sequence, const SegmentOutput& output);
  void OptimizeOne();
  void AfterOptimization(Sequence& sequence);
  void TakeResumed(Sequence& sequence, const std::vector<float>& logits);
  void BeginAnswer(Sequence& sequence, const std::vector<float>& logits);
  void Revert(Sequence& sequence);
  void Finish(Sequence& sequence, const absl::Status& status, FinishReason reason);
  void ReportGauges();

  ModelRunner* const model_;
  const BatcherLimits limits_;
  Metrics* const metrics_;
  std::deque<SequencePtr> waiting_;
  std::vector<SequencePtr> running_;  // in order of admission
  int64_t kv_tokens_used_ = 0;
  size_t next_to_optimize_ = 0;  // round robin over running_
};

}  // namespace c3po

#endif  // C3PO_SERVER_SCHEDULER_CONTINUOUS_BATCHER_H_
