#ifndef C3PO_SERVER_PIPELINE_OFFSET_TUNER_H_
#define C3PO_SERVER_PIPELINE_OFFSET_TUNER_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "index/base/label_offset.h"
#include "index/types/optimization_options.h"
#include "index/types/reference_record.h"
#include "server/pipeline/generation_pipeline.h"
#include "server/pipeline/label_offsets.h"

namespace c3po {

struct OffsetRequest {
  CallContext context;
  OptimizationSettings settings;  // of its collection; use_offset, return_pathways are not read
  int max_references = 0;         // 0: all; else a seeded sample of at least kOffsetReferencesMin
  uint64_t seed = 0;
  bool keep = false;  // A usable offset that was fitted after the same settings is the outcome, and nothing is done.
};

// Fewer are not fitted to.
inline constexpr int kOffsetReferencesMin = 10;

// Fits a label offset to a collection, after the settings of a request: every reference's choices are scored as those
// of a request with its prompt would be, the gate included, with the references of this prompt left out of its
// neighbors (leave-one-out), and FitLabelOffset takes the log-likelihoods per token. One method's offset is thereby
// fitted to what it does to new questions, not to those it has seen. The references are those with choices; of several
// sets of choices those of the set that most have, in whatever order. A prior has seen what it was fitted to: under a
// method that begins at it only the references count that were held apart.
//
// Scores are requests of low priority, kInFlight at a time, as imports have them; they take no place in the queue of
// admission. One object is one run.
class OffsetTuner : public std::enable_shared_from_this<OffsetTuner> {
 public:
  static constexpr int kInFlight = 4;

  struct Progress {
    int64_t done = 0, total = 0;  // references
  };
  struct Outcome {
    std::shared_ptr<const CollectionOffset> offset;
    bool stored = false;  // in this run; false: it was there
  };

  // What is pointed to outlives it. `scorer` counts nothing and admits whatever comes. What it scores holds the run.
  static std::shared_ptr<OffsetTuner> Make(const PipelineParts& parts, const ReferenceStore* store,
                                           GenerationPipeline* scorer, OffsetRequest request) {
    return std::shared_ptr<OffsetTuner>(new OffsetTuner(parts, store, scorer, std::move(request)));
  }

  // InvalidArgument "FIELD: ...", of what does not depend on the store. The settings are valid (ValidateSettings).
  static absl::Status Check(const OffsetRequest& request);

  // Blocks until all is scored and the offset is stored, or the call has failed, and stores nothing then. `on_progress`
  // is told at the start, at the end, and between twice a second at most, on this thread. Errors:
  //   NotFound "collection: ...": no such collection, or "optimization.collection: ...": it has no prior
  //   FailedPrecondition "collection: ...": no two labels that ten references share, or too few could be scored
  //   Cancelled, DeadlineExceeded, ResourceExhausted (the caller's rate; the queue is full for a minute), the store's
  absl::StatusOr<Outcome> Run(const std::function<void(const Progress&)>& on_progress);

 private:
  struct Labelled {
    std::string id;
    ReferenceSample sample;  // without metadata
  };
  class Listener;

  OffsetTuner(const PipelineParts& parts, const ReferenceStore* store, GenerationPipeline* scorer,
              OffsetRequest request)
      : parts_(parts), store_(*store), scorer_(*scorer), request_(std::move(request)) {}
  absl::Status FindReferences();
  absl::Status KeepHeldApart();
  absl::Status Sample();
  absl::Status Charge();
  absl::Status ScoreAll(const std::function<void(const Progress&)>& on_progress);
  void Start(size_t reference);
  ScoreCall CallOf(const Labelled& reference) const;
  void Take(size_t reference, const absl::Status& status, const std::vector<ContinuationScore>& scores, int64_t cost);
  absl::Status CheckWanted() const;
  absl::StatusOr<CollectionOffset> Fit() const;
  int LabelOf(const std::string& text) const;

  const PipelineParts parts_;
  const ReferenceStore& store_;
  GenerationPipeline& scorer_;
  const OffsetRequest request_;
  OptimizationSettings settings_;    // that ResolvePrior has seen
  std::vector<std::string> labels_;  // as the first reference has them
  std::vector<Labelled> references_;
  std::map<std::string, std::vector<std::string>> ids_by_prompt_;  // of all references of the collection

  mutable absl::Mutex mu_;
  std::deque<size_t> waiting_ ABSL_GUARDED_BY(mu_);
  int in_flight_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t done_ ABSL_GUARDED_BY(mu_) = 0, cost_ ABSL_GUARDED_BY(mu_) = 0;
  int refused_ ABSL_GUARDED_BY(mu_) = 0;                             // in a row, as the queue was full
  bool pause_ ABSL_GUARDED_BY(mu_) = false;                          // before the next one begins
  absl::Status status_ ABSL_GUARDED_BY(mu_);                         // why the run ends
  absl::Status unreadable_ ABSL_GUARDED_BY(mu_);                     // of the first reference that cannot be scored
  std::vector<std::vector<double>> per_token_ ABSL_GUARDED_BY(mu_);  // by reference and label; empty: not scored
};

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_OFFSET_TUNER_H_
