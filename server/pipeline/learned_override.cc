#include "server/pipeline/learned_override.h"

#include <optional>
#include <utility>

#include "index/base/status_macros.h"

namespace c3po {
namespace {

std::optional<Pathway> KernelMeanOfShifts(LearnedShifts& shifts, const OptimizationSettings& settings,
                                          const std::vector<WeightedReference>& neighbors, int experts) {
  Pathway mean(static_cast<int>(settings.critical_layers.size()), experts);
  double sum = 0;
  for (const WeightedReference& neighbor : neighbors) {
    const auto shift = shifts.HeldShift(settings.collection, neighbor.record->id);
    if (!shift || shift->routing.layers != settings.critical_layers) continue;
    sum += neighbor.kernel_weight;
    for (size_t i = 0; i < mean.weights.size(); ++i) {
      mean.weights[i] += static_cast<float>(neighbor.kernel_weight * shift->routing.values.weights[i]);
    }
  }
  if (!(sum > 0)) return std::nullopt;
  for (float& value : mean.weights) value = static_cast<float>(value / sum);
  return mean;
}

}  // namespace

bool IsLearned(Method method) { return method == Method::kAmortizedShift || method == Method::kCollectionPrior; }

absl::Status ResolvePrior(LearnedShifts& shifts, OptimizationSettings& settings) {
  if (IsLearned(settings.method)) settings.rule = ApplicationRule::kRouterShift;
  if (settings.method == Method::kAmortizedShift) return shifts.CountShifts(settings.collection).status();
  if (settings.method != Method::kCollectionPrior && !settings.use_prior) return absl::OkStatus();
  C3PO_ASSIGN_OR_RETURN(const auto prior, shifts.Prior(settings.collection));
  settings.critical_layers = prior->routing.layers;
  settings.prompt_positions = prior->prompt_positions;
  return absl::OkStatus();
}

absl::StatusOr<Pathway> PriorShift(LearnedShifts& shifts, const OptimizationSettings& settings) {
  C3PO_ASSIGN_OR_RETURN(const auto prior, shifts.Prior(settings.collection));
  if (prior->routing.layers != settings.critical_layers || prior->prompt_positions != settings.prompt_positions)
    return absl::FailedPreconditionError("the prior was replaced by one of other layers or positions; ask again");
  return prior->routing.values;
}

absl::StatusOr<std::shared_ptr<const RoutingOverride>> LearnedOverride(LearnedShifts& shifts,
                                                                       const OptimizationSettings& settings,
                                                                       const std::vector<WeightedReference>& neighbors,
                                                                       int experts) {
  std::optional<Pathway> shift;
  if (settings.method == Method::kCollectionPrior) {
    C3PO_ASSIGN_OR_RETURN(shift, PriorShift(shifts, settings));
  } else {
    shift = KernelMeanOfShifts(shifts, settings, neighbors, experts);
  }
  if (!shift) return std::shared_ptr<const RoutingOverride>();
  for (float& value : shift->weights) value = static_cast<float>(value * settings.step_scale);
  return std::make_shared<const RoutingOverride>(
      RoutingOverride{RoutingOverride::Kind::kLogitShift, settings.critical_layers, *std::move(shift)});
}

}  // namespace c3po
