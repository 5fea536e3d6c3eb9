#ifndef C3PO_SERVER_RPC_PROFILES_H_
#define C3PO_SERVER_RPC_PROFILES_H_

#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "c3po/v1/options.pb.h"
#include "index/base/mutex.h"
#include "index/store/reference_store.h"
#include "server/pipeline/optimization_settings.h"

namespace c3po {

// What requests over a collection get that set nothing: per collection, options stored by c3po calibrate or by hand,
// over the server's defaults. Artifacts "profile" (a serialized OptimizationOptions) and "profile_notes" of the
// reference store. Thread-safe.
class Profiles {
 public:
  struct Profile {
    v1::OptimizationOptions options;
    std::string notes;  // JSON of whoever stored it
  };

  // `store` outlives it.
  Profiles(ReferenceStore* store, ModelShape shape, OptimizationSettings defaults)
      : store_(store), shape_(std::move(shape)), defaults_(std::move(defaults)) {}

  // Server defaults, then the profile of the collection asked for (unless use_profile is false), or in place of both
  // the preset asked for; then the request's own. InvalidArgument "optimization.FIELD: ...".
  absl::StatusOr<OptimizationSettings> Resolve(const v1::OptimizationOptions& options);

  // Null: none.
  absl::StatusOr<std::shared_ptr<const Profile>> Find(absl::string_view collection);
  // InvalidArgument: "profile.FIELD: ..." what requests could not use, or what belongs to a single request; "notes:
  // ...".
  absl::Status Set(absl::string_view collection, Profile profile);
  absl::Status Remove(absl::string_view collection);
  // Call after a collection was deleted.
  void Forget(absl::string_view collection);

  const OptimizationSettings& defaults() const { return defaults_; }

 private:
  ReferenceStore* const store_;
  const ModelShape shape_;
  const OptimizationSettings defaults_;
  Mutex mutex_;
  std::map<std::string, std::shared_ptr<const Profile>, std::less<>> known_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_PROFILES_H_
