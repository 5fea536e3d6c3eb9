#ifndef C3PO_SERVER_PIPELINE_COLLECTION_LEARNING_H_
#define C3PO_SERVER_PIPELINE_COLLECTION_LEARNING_H_

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "index/base/mutex.h"
#include "server/pipeline/generation_pipeline.h"
#include "server/pipeline/offset_tuner.h"
#include "server/pipeline/prior_tuner.h"
#include "server/pipeline/shift_amortizer.h"

namespace c3po {

struct TuneRequest {
  CallContext context;
  std::string collection;
  PriorTunerOptions tuner;
  bool batch_size_was_asked = false;  // Else it is halved until a minibatch fits in the memory of a call that learns.
  double validation_fraction = 0.2;   // (0, 0.5]
  int max_references = 0;             // 0: all; else a seeded sample
  bool successful_only = false;
};

struct AmortizeRequest {
  CallContext context;
  OptimizationSettings settings;  // of its collection
};

// Learning over a whole collection, beside the requests that are served: the engine takes its steps between theirs.
// Results are stored through LearnedShifts before they are reported. Thread-safe. Callbacks come from worker or engine
// threads, or one of their own, one at a time, and must not block; on_done comes once, last, unless an error is
// returned here.
class CollectionLearning {
 public:
  // `store` and what parts point to outlive it.
  // At most `calls_max` calls learn at once, each in an equal part of parts.work_memory_bytes.
  CollectionLearning(const PipelineParts& parts, const ReferenceStore* store, int calls_max);
  // Once every TuneOffset call has ended.
  ~CollectionLearning();

  using OnEpoch = std::function<void(const PriorTuner::Epoch&)>;
  // The prior that was stored, or nothing when none was better than no shift.
  using OnTuned = std::function<void(absl::StatusOr<std::optional<CollectionPrior>>)>;
  // InvalidArgument "FIELD: ..."; NotFound, FailedPrecondition: see ReferenceCatalog::Search; at least 10 usable
  // references are needed. ResourceExhausted: as many calls learn as may.
  absl::Status TunePrior(TuneRequest request, OnEpoch on_epoch, OnTuned on_done);

  struct AmortizeProgress {
    int64_t done = 0, skipped = 0, total = 0;
  };
  using OnProgress = std::function<void(const AmortizeProgress&)>;
  using OnDone = std::function<void(const absl::Status&)>;
  absl::Status Amortize(AmortizeRequest request, OnProgress on_progress, OnDone on_done);

  // A label offset (offset_tuner.h), which is there and usable at on_done. Its scores are requests of low priority and
  // share the memory of requests.
  using OnOffsetProgress = std::function<void(const OffsetTuner::Progress&)>;
  using OnOffset = std::function<void(const absl::StatusOr<OffsetTuner::Outcome>&)>;
  absl::Status TuneOffset(OffsetRequest request, OnOffsetProgress on_progress, OnOffset on_done);

 private:
  class AmortizeRun;

  // The usable references of a collection, in the order of their ids.
  absl::StatusOr<std::vector<ReferenceRecord>> Usable(const std::string& collection, bool successful_only) const;
  // Has the engine run `task` to its end; `done` comes from the engine thread. `begun`: the task did not only wait.
  using OnTaskDone = std::function<void(const absl::Status& status, bool begun)>;
  absl::Status RunOnEngine(const CallContext& context, int32_t some_token, std::shared_ptr<OptimizationTask> task,
                           OnTaskDone done) const;
  absl::Status StartTuning(const TuneRequest& request, const OnEpoch& on_epoch, const OnTuned& on_done) const;

  // A call's place, until it goes.
  absl::StatusOr<std::shared_ptr<void>> TakePlace();
  int64_t MemoryMax() const { return parts_.work_memory_bytes / calls_max_; }  // Of one call.
  absl::Status CheckMemory(const char* what, const OptimizationTask& task) const;

  const PipelineParts parts_;
  const ReferenceStore* const store_;
  const int calls_max_;
  // Scores references: as the pipeline of requests, but that nothing is counted and no place in the queue is taken.
  GenerationPipeline scorer_;
  const std::shared_ptr<std::atomic<int>> calls_ = std::make_shared<std::atomic<int>>(0);
  // One that waits for scores, of each TuneOffset call.
  struct OffsetThread {
    std::thread thread;
    std::shared_ptr<std::atomic<bool>> ended;
  };
  Mutex mutex_;
  std::vector<OffsetThread> offset_threads_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_COLLECTION_LEARNING_H_
