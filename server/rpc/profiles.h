#ifndef C3PO_SERVER_RPC_PROFILES_H_
#define C3PO_SERVER_RPC_PROFILES_H_

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "c3po/v1/options.pb.h"
#include "index/base/mutex.h"
#include "index/store/store_feed.h"
#include "server/admission/collection_access.h"
#include "server/metrics/metrics.h"
#include "server/pipeline/learned_shifts.h"
#include "server/pipeline/optimization_settings.h"

namespace c3po {

// What requests over a collection get that set nothing: per collection, options stored by c3po calibrate or by hand,
// over the server's defaults. Artifacts "profile" (a serialized OptimizationOptions), "profile_notes" and
// "profile_binding" of the reference store.
//
// A profile belongs to the model and the embedder that it was stored under, by their digests: layers, rates and
// distances mean nothing to others. One that does not fit is kept and ignored: requests get the server's defaults, and
// a warning in their reports.
//
// All are held in memory from Open on, where they follow the store's changes (StoreFeed), those of other servers too:
// no request reads the store for one. Thread-safe.
class Profiles : private StoreListener {
 public:
  static constexpr size_t kProfilesMax = 10000;

  struct Profile {
    v1::OptimizationOptions options;
    std::string notes;  // JSON of whoever stored it
    // Empty: stored before profiles were bound, and never since.
    std::string model_digest = "", embedder_digest = "";
    std::string why_ignored = "";  // empty: it is used
  };

  // `feed`, `shifts` and `metrics` (which may be null) outlive it.
  Profiles(StoreFeed* feed, LearnedShifts* shifts, Metrics* metrics, ModelShape shape, std::string embedder_digest,
           OptimizationSettings defaults)
      : feed_(feed),
        shifts_(shifts),
        metrics_(metrics),
        shape_(std::move(shape)),
        embedder_digest_(std::move(embedder_digest)),
        defaults_(std::move(defaults)) {}
  ~Profiles() override { feed_->Leave(this); }

  // Reads every profile; logs those that are ignored (event profile_ignored). One without a binding, of an earlier
  // version of c3pod, is bound to this server's model and embedder where all references of its collection were made
  // with them; else it stays without, and is ignored. DataLoss: one cannot be read. Call once, first.
  absl::Status Open();

  // Server defaults, then the profile of the collection asked for (unless use_profile is false, or it is ignored), or
  // in place of both the preset asked for; then the request's own. InvalidArgument "optimization.FIELD: ...", also of
  // what the request makes of the profile.
  //
  // Only of a collection that `access` may read: PermissionDenied "optimization.collection: ..." where the request
  // names another, whether it exists or not. A request that names none, of a caller who may not read the server's
  // default collection, is left to the model alone (but for the method ORACLE), with a warning.
  absl::StatusOr<OptimizationSettings> Resolve(const v1::OptimizationOptions& options,
                                               const CollectionAccess& access = CollectionAccess());

  // Null: none. DataLoss: it cannot be read.
  absl::StatusOr<std::shared_ptr<const Profile>> Find(absl::string_view collection);
  // By ascending name, those that have one.
  std::vector<std::string> Collections();
  // InvalidArgument: "profile.FIELD: ..." what requests could not use, or what belongs to a single request; "notes:
  // ...". ResourceExhausted: kProfilesMax are stored.
  absl::Status Set(absl::string_view collection, Profile profile);
  absl::Status Remove(absl::string_view collection);

  const OptimizationSettings& defaults() const { return defaults_; }

 private:
  // Those that exist, or why one cannot be read.
  using Known = std::map<std::string, absl::StatusOr<std::shared_ptr<const Profile>>, std::less<>>;
  absl::Status OnUpdate(const StoreUpdate& update) override;
  absl::StatusOr<Known> ReadAll() const;
  void Take(const Artifact& artifact, Known& known) const;
  absl::Status BindOldOnes(const std::vector<std::string>& collections);
  std::string WhyIgnored(const Profile& profile) const;
  absl::StatusOr<OptimizationSettings> ResolveReadable(const v1::OptimizationOptions& options);
  absl::StatusOr<OptimizationSettings> Over(const OptimizationSettings& base,
                                            const v1::OptimizationOptions& options) const;
  void Report() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);  // The gauge of ignored profiles.

  StoreFeed* const feed_;
  LearnedShifts* const shifts_;
  Metrics* const metrics_;
  const ModelShape shape_;
  const std::string embedder_digest_;
  const OptimizationSettings defaults_;
  Mutex mutex_;
  Known known_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_PROFILES_H_
