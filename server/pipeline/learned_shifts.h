#ifndef C3PO_SERVER_PIPELINE_LEARNED_SHIFTS_H_
#define C3PO_SERVER_PIPELINE_LEARNED_SHIFTS_H_

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "index/base/mutex.h"
#include "index/store/store_feed.h"
#include "server/metrics/metrics.h"
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
// as JSON. All priors are held in memory once one was asked for; a collection's shifts once one of them was. Both
// follow the store's changes (StoreFeed), those of other servers too. Both belong to the model that they were learned
// on, by its digest; no embedding enters them, so that the embedder does not matter. What another model learned is
// treated as absent, counted, and logged when it is read (event learned_ignored). A Put that returned OK is durable and
// seen by every later call. Thread-safe.
class LearnedShifts : private StoreListener {
 public:
  // `feed` and `metrics` (null: nothing is counted) outlive it.
  LearnedShifts(StoreFeed* feed, std::string model_digest, Metrics* metrics = nullptr);
  ~LearnedShifts() override;

  // Reads every collection's prior, so that those of other models are counted from the start, and requests with one do
  // not need the store. DataLoss as below.
  absl::Status ReadPriors();

  // NotFound "collection X has no prior ...": none, or of another model. DataLoss: the stored text cannot be read.
  absl::StatusOr<std::shared_ptr<const CollectionPrior>> Prior(absl::string_view collection);
  // Whatever model it was made with; null: none.
  absl::StatusOr<std::shared_ptr<const CollectionPrior>> StoredPrior(absl::string_view collection);
  absl::Status PutPrior(absl::string_view collection, CollectionPrior prior);

  // Null: none, or of another model. DataLoss: the stored text cannot be read.
  absl::StatusOr<std::shared_ptr<const ReferenceShift>> Shift(absl::string_view collection,
                                                              absl::string_view reference_id);
  // The same, of a collection whose shifts were asked for before (CountShifts): never waits for the store.
  std::shared_ptr<const ReferenceShift> HeldShift(absl::string_view collection, absl::string_view reference_id);
  absl::Status PutShifts(absl::string_view collection, absl::Span<const ReferenceShift> shifts);
  // How many references of a collection have a usable one.
  absl::StatusOr<int64_t> CountShifts(absl::string_view collection);

  // How many of a collection's references have one of another model.
  absl::StatusOr<int64_t> CountForeignShifts(absl::string_view collection);

 private:
  // By collection; of any model, or why one cannot be read.
  using Priors = std::map<std::string, absl::StatusOr<std::shared_ptr<const CollectionPrior>>, std::less<>>;
  struct Shifts {
    std::set<std::string, std::less<>> foreign;  // Of these references; learned on another model.
    std::map<std::string, std::shared_ptr<const ReferenceShift>, std::less<>> own;
  };

  absl::Status OnUpdate(const StoreUpdate& update) override;
  absl::StatusOr<Priors> ReadAllPriors() const;
  absl::Status EnsurePriors() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<std::shared_ptr<const CollectionPrior>> AnyPrior(absl::string_view collection)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void TakePrior(const Artifact& artifact, Priors& priors) const;
  bool IsForeign(const CollectionPrior& prior) const { return prior.model_digest != model_digest_; }
  absl::StatusOr<const Shifts*> Read(absl::string_view collection) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status TakeShift(const Artifact& artifact, Shifts& into) const;

  // Sets the gauges of what is ignored: priors of all collections, and shifts of those that were asked for one.
  void Report() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  StoreFeed* const feed_;
  const std::string model_digest_;
  Metrics* const metrics_;
  Mutex mutex_;
  std::optional<Priors> priors_ ABSL_GUARDED_BY(mutex_);  // Nothing: none was asked for.
  std::map<std::string, Shifts, std::less<>> shifts_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_LEARNED_SHIFTS_H_
