#include "server/pipeline/gate_reason.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "index/search/own_distances.h"

namespace c3po {
namespace {

std::string FarReason(const OptimizationReport& report) {
  const GateOptions& gate = report.settings.gate;
  const std::string nearest = absl::StrFormat("the nearest reference is at distance %.4f", *report.nearest_distance);
  if (gate.max_neighbor_distance) {
    return absl::StrFormat("%s, beyond max_neighbor_distance %.4f", nearest, *gate.max_neighbor_distance);
  }
  if (*report.max_neighbor_distance <= OwnDistances::kSameEmbedding) {
    return absl::StrCat(nearest, ", and the collection's references are all alike: only their own prompt is near");
  }
  return absl::StrFormat("%s; %g %% of the collection's references have another one within %.4f", nearest,
                         100 * gate.neighbor_distance_quantile, *report.max_neighbor_distance);
}

std::string LossReason(const char* whose, const std::vector<double>& losses, double after, double min_reduction) {
  std::string reason = absl::StrFormat("the loss of the %s went from %.4f to %.4f", whose, losses.front(), after);
  if (min_reduction > 0) absl::StrAppendFormat(&reason, "; it has to fall by %g %%", 100 * min_reduction);
  return reason;
}

}  // namespace

std::string GateReason(const OptimizationReport& report) {
  const GateOptions& gate = report.settings.gate;
  switch (report.gate) {
    case GateDecision::kApplied:
    case GateDecision::kNotRequested:
      return "";
    case GateDecision::kSkippedNoNeighbors:
      if (report.settings.method == Method::kAmortizedShift && !report.neighbors.empty()) {
        return "no neighbor has an amortized shift for these critical layers";
      }
      if (!report.neighbors.empty()) return "not even the nearest neighbor fits into the server's --work-memory-mb";
      return absl::StrCat("collection \"", report.settings.collection, "\" has no reference that counts as a neighbor");
    case GateDecision::kSkippedNeighborsFar:
      return FarReason(report);
    case GateDecision::kSkippedBaseConfident:
      return absl::StrFormat("the model is %.1f %% sure by itself, max_base_confidence is %g %%",
                             100 * report.base_confidence.value_or(0), 100 * gate.max_base_confidence.value_or(1));
    case GateDecision::kRevertedLossNotReduced:
      return LossReason("neighbors", report.losses, *std::min_element(report.losses.begin(), report.losses.end()),
                        gate.min_loss_reduction);
    case GateDecision::kRevertedValidationLossNotReduced:
      return LossReason("held-out neighbors", report.validation_losses,
                        report.validation_losses[report.selected_step.value_or(0)], gate.min_validation_loss_reduction);
    case GateDecision::kRevertedNotConfident:
      return absl::StrFormat("the optimized model is %.1f %% sure, min_optimized_confidence is %g %%",
                             100 * report.optimized_confidence.value_or(0),
                             100 * gate.min_optimized_confidence.value_or(0));
  }
  return "";
}

}  // namespace c3po
