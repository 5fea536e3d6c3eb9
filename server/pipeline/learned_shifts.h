#ifndef C3PO_SERVER_PIPELINE_LEARNED_SHIFTS_H_
#define C3PO_SERVER_PIPELINE_LEARNED_SHIFTS_H_

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "index/base/mutex.h"
#include "index/store/reference_store.h"
#include "server/types/routing_override.h"

namespace c3po {

// A router shift learned over a whole collection, and how that went. routing.kind is kLogitShift.
struct CollectionPrior {
  RoutingOverride routing;
  std::string model_digest;
  int64_t references = 0;             // it was fitted to
  int64_t validation_references = 0;  // held apart
  double validation_loss_before = 0, validation_loss_after = 0;
  // Unset where the references have no choices.
  std::optional<double> validation_accuracy_before = std::nullopt, validation_accuracy_after = std::nullopt;
  std::vector<std::string> validation_reference_ids = {};
  int prompt_positions = 1;  // the last so many tokens of a prompt that it governs
};

// A router shift found on one reference's own loss.
struct ReferenceShift {
  std::string reference_id;
  RoutingOverride routing;
  std::string model_digest;
  std::string settings;  // what it was found with; another text means that it must be found again
};

// Priors and amortized shifts of every collection: artifacts "prior" and "reference/ID/shift" of the reference store,
// as JSON, each read when it is first asked for and then held in memory. What was made with another model than
// `model_digest` is treated as absent. A Put that returned OK is durable and seen by every later call. Thread-safe.
class LearnedShifts {
 public:
  // `store` outlives it.
  LearnedShifts(ReferenceStore* store, std::string model_digest)
      : store_(store), model_digest_(std::move(model_digest)) {}

  // NotFound "collection X has no prior ...": none, or of another model.
  absl::StatusOr<std::shared_ptr<const CollectionPrior>> Prior(absl::string_view collection);
  absl::Status PutPrior(absl::string_view collection, CollectionPrior prior);

  // Null: none, or of another model. DataLoss: the stored text cannot be read.
  absl::StatusOr<std::shared_ptr<const ReferenceShift>> Shift(absl::string_view collection,
                                                              absl::string_view reference_id);
  absl::Status PutShifts(absl::string_view collection, absl::Span<const ReferenceShift> shifts);
  // How many references of a collection have a usable one.
  absl::StatusOr<int64_t> CountShifts(absl::string_view collection);

  // Call after references were deleted: what was remembered of the collection (empty: of all) is read again when asked
  // for.
  void Forget(absl::string_view collection);

 private:
  struct Collection {
    std::shared_ptr<const CollectionPrior> prior;
    std::map<std::string, std::shared_ptr<const ReferenceShift>, std::less<>> shifts;
  };
  absl::StatusOr<const Collection*> Read(absl::string_view collection) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  ReferenceStore* const store_;
  const std::string model_digest_;
  Mutex mutex_;
  std::map<std::string, Collection, std::less<>> collections_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_LEARNED_SHIFTS_H_
