#include "client/eval/effective_settings.h"

#include <utility>

#include "client/eval/calibration.h"
#include "index/base/status_macros.h"

namespace c3po {

absl::StatusOr<v1::OptimizationOptions> EffectiveSettings::Of(const std::string& collection) {
  absl::MutexLock lock(&mu_);  // Held during the call, so that threads that begin together ask once.
  if (const auto found = known_.find(collection); found != known_.end()) return found->second;
  v1::GetCollectionRequest request;
  request.set_collection(collection);
  C3PO_ASSIGN_OR_RETURN(v1::GetCollectionResponse response, client_.GetCollection(request, call_options_));
  return known_.emplace(collection, std::move(*response.mutable_effective_optimization())).first->second;
}

absl::StatusOr<v1::OptimizationOptions> EffectiveSettings::Resolve(const v1::OptimizationOptions& options,
                                                                   const std::string& collection) {
  v1::OptimizationOptions resolved = defaults_;
  if (options.preset() == v1::PRESET_PAPER) {
    resolved.set_k(3);
    resolved.set_reference_selection(v1::REFERENCE_SELECTION_SUCCESSFUL);
    resolved.set_kernel(v1::KERNEL_GAUSSIAN);
    resolved.clear_bandwidth();
  } else if (!options.has_use_profile() || options.use_profile()) {
    C3PO_ASSIGN_OR_RETURN(resolved, Of(collection));
  }
  ApplyPatch(options, &resolved);
  return resolved;
}

}  // namespace c3po
