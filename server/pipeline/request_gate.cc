#include "server/pipeline/request_gate.h"

#include "server/pipeline/optimization_settings.h"

namespace c3po {

GateDecision GateBeforeSearch(const OptimizationReport& report) {
  const OptimizationSettings& settings = report.settings;
  if (settings.method == Method::kOracle) return GateDecision::kApplied;
  const bool has_neighbors = report.nearest_distance || !Retrieves(settings);
  GateOptions gate = settings.gate;
  gate.max_neighbor_distance = report.max_neighbor_distance;
  return GateBeforeOptimization(gate, has_neighbors, report.nearest_distance.value_or(0), *report.base_confidence);
}

std::optional<LossChange> HeldOutChange(const OptimizationReport& report) {
  const std::vector<double>& losses = report.validation_losses;
  if (losses.empty()) return std::nullopt;
  return LossChange{losses.front(), losses[static_cast<size_t>(*report.selected_step)]};
}

GateDecision GateAfterSearch(const OptimizationReport& report, LossChange fitted) {
  const bool prior_stays = report.settings.use_prior && report.selected_step == 0;
  return prior_stays ? GateDecision::kApplied
                     : GateAfterOptimization(report.settings.gate, fitted, HeldOutChange(report));
}

}  // namespace c3po
