#ifndef C3PO_SERVER_RPC_SETTINGS_MESSAGE_H_
#define C3PO_SERVER_RPC_SETTINGS_MESSAGE_H_

// OptimizationOptions to OptimizationSettings and back, field by field as VisitOptions lists them: a row's name is the
// field's in options.proto. Pure and thread-safe.

#include "absl/status/statusor.h"
#include "c3po/v1/options.pb.h"
#include "index/types/optimization_options.h"

namespace c3po {

// What the message leaves out comes from `defaults`; what one choice rules out of them goes: k an epsilon, epsilon
// neighbors to hold out and balance, a quantile a distance, another method or fewer neighbors several neighborhoods,
// another neighbor source the distances of the default's.
// InvalidArgument "optimization.FIELD: ..." for an enum's number without a value, and an integer beyond 2^31 - 1.
// use_profile, preset and min_index_generation are the caller's affair.
absl::StatusOr<OptimizationSettings> SettingsFromProto(const v1::OptimizationOptions& options,
                                                       const OptimizationSettings& defaults);

// Every field that may be a default; those of a single request are left out.
v1::OptimizationOptions SettingsToProto(const OptimizationSettings& settings);

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_SETTINGS_MESSAGE_H_
