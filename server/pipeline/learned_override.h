#ifndef C3PO_SERVER_PIPELINE_LEARNED_OVERRIDE_H_
#define C3PO_SERVER_PIPELINE_LEARNED_OVERRIDE_H_

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "index/types/optimization_options.h"
#include "index/types/pathway.h"
#include "server/pipeline/learned_shifts.h"
#include "server/pipeline/neighborhood.h"
#include "server/types/routing_override.h"

namespace c3po {

// Shifts of the router's logits that were learned before the request came. Thread-safe.

// Whether a method applies what was learned and optimizes nothing.
bool IsLearned(Method method);

// Puts the prior's layers and positions into settings that begin at it, and the application rule of learned methods;
// reads the collection's shifts where they are what is applied. NotFound: the collection has no prior. Errors: the
// store's.
absl::Status ResolvePrior(LearnedShifts& shifts, OptimizationSettings& settings);

// The prior's shift, [critical layers, experts], for settings that ResolvePrior has seen. FailedPrecondition: another
// prior has come since, of other layers or positions.
absl::StatusOr<Pathway> PriorShift(LearnedShifts& shifts, const OptimizationSettings& settings);

// What a learned method applies, for settings that ResolvePrior has seen, times step_scale: the prior, or of the
// neighbors that have a shift for these layers
//   sum_i K_i s_i / sum_i K_i
// Null: none of them has one. `experts`: of each layer. Never waits for the store. Errors: PriorShift's.
absl::StatusOr<std::shared_ptr<const RoutingOverride>> LearnedOverride(LearnedShifts& shifts,
                                                                       const OptimizationSettings& settings,
                                                                       const std::vector<WeightedReference>& neighbors,
                                                                       int experts);

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_LEARNED_OVERRIDE_H_
