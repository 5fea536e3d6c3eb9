#ifndef C3PO_SERVER_PIPELINE_LABEL_OFFSETS_H_
#define C3PO_SERVER_PIPELINE_LABEL_OFFSETS_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "index/base/label_offset.h"
#include "index/base/mutex.h"
#include "index/store/store_feed.h"
#include "index/types/optimization_options.h"
#include "server/metrics/metrics.h"

namespace c3po {

// A label offset fitted to a collection's references, to the scores that requests with certain settings get.
struct CollectionOffset {
  std::vector<std::string> labels;  // continuations, letter by letter as they were scored; at least 2, all different
  LabelOffset fitted;               // of log-likelihoods per token; one number per label
  Method method = Method::kNone;
  std::string settings;        // OffsetSettingsText
  int64_t references = 0;      // it was fitted to
  double accuracy_before = 0;  // of these, by the scores alone
  double accuracy_after = 0;   // by offsets fitted without each (RightAfterOffset)
  std::string model_digest;
  std::string embedder_digest;  // empty: no neighbor entered the scores
  int64_t created_unix_seconds = 0;
};

// What an offset depends on, as text: the settings of a request without its collection, without what only says what is
// reported, and without the offset and the excluded references themselves. Of the model alone its method. Requests with
// the same text have the same scores, up to the references that they exclude.
std::string OffsetSettingsText(const OptimizationSettings& settings);

// Label offsets of every collection: artifacts "offset/KEY" of the reference store, as JSON, KEY of the settings' text.
// Each collection's are read when they are first asked for and then held in memory, where they follow the store's
// changes (StoreFeed), those of other servers too. One belongs to the model that gave the scores, by its digest, and to
// the embedder where neighbors entered them. What does not fit this server is treated as absent, counted, and logged
// when it is read (event learned_ignored); it is used again under its own model. A Put that returned OK is durable and
// seen by every later call. Thread-safe.
class LabelOffsets : private StoreListener {
 public:
  // Of a collection; beyond, the oldest goes, those of other models first.
  static constexpr size_t kOffsetsMax = 64;

  // `feed` and `metrics` (null: nothing is counted) outlive it.
  LabelOffsets(StoreFeed* feed, std::string model_digest, std::string embedder_digest, Metrics* metrics = nullptr);
  ~LabelOffsets() override;

  // Reads those of every collection that has references, so that those of other models are counted from the start, and
  // requests do not need the store. DataLoss as below.
  absl::Status ReadAll();

  // The usable one that was fitted after exactly these settings, in their collection; null: none. DataLoss: a stored
  // text cannot be read.
  absl::StatusOr<std::shared_ptr<const CollectionOffset>> FittedAfter(const OptimizationSettings& settings);
  // The usable one that was fitted after the model alone; null: none.
  absl::StatusOr<std::shared_ptr<const CollectionOffset>> OfModelAlone(absl::string_view collection);
  // All of a collection, whatever they were made with, by the settings' text.
  absl::StatusOr<std::vector<std::shared_ptr<const CollectionOffset>>> All(absl::string_view collection);
  bool IsUsable(const CollectionOffset& offset) const;

  // Takes the place of the one with the same settings.
  absl::Status Put(absl::string_view collection, CollectionOffset offset);

 private:
  using Offsets = std::map<std::string, std::shared_ptr<const CollectionOffset>, std::less<>>;  // by settings
  absl::Status OnUpdate(const StoreUpdate& update) override;
  absl::StatusOr<const Offsets*> Read(absl::string_view collection) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The same of a collection that exists: that it has none is remembered too.
  absl::Status ReadExisting(absl::string_view collection) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Take(const Artifact& artifact, Offsets& into) const;
  absl::StatusOr<std::shared_ptr<const CollectionOffset>> Find(absl::string_view collection,
                                                               absl::string_view settings);
  // The settings of the one that gives way to another.
  std::string Oldest(const Offsets& offsets) const;
  void Report() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);  // the gauge of what is ignored

  StoreFeed* const feed_;
  const std::string model_digest_, embedder_digest_;
  Metrics* const metrics_;
  Mutex mutex_;
  std::map<std::string, Offsets, std::less<>> collections_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_LABEL_OFFSETS_H_
