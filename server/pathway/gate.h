#ifndef C3PO_SERVER_PATHWAY_GATE_H_
#define C3PO_SERVER_PATHWAY_GATE_H_

#include <optional>

namespace c3po {

enum class GateDecision {
  kApplied,
  kNotRequested,
  kSkippedNoNeighbors,
  kSkippedNeighborsFar,
  kSkippedBaseConfident,
  kRevertedLossNotReduced,
  kRevertedValidationLossNotReduced,
  kRevertedNotConfident,
};

// When an optimized pathway is not used (ours). A condition without a value is not checked.
struct GateOptions {
  bool enabled = true;
  std::optional<double> max_neighbor_distance;  // skip when the nearest neighbor is farther; [0, 2]
  // (0, 1]. Where max_neighbor_distance has no value: that of the collection's own references within which this share
  // of them have their nearest other one (ReferenceCatalog::OwnDistanceQuantile).
  double neighbor_distance_quantile = 0.95;
  std::optional<double>
      max_base_confidence;        // skip when the model's own next-token probability is at least this; (0, 1]
  double min_loss_reduction = 0;  // revert unless (first - last) / first loss exceeds this; < 1
  double min_validation_loss_reduction = 0;  // the same for the loss of held-out neighbors, where there are any
  // Revert when under the optimized pathway the model's probability of what it would answer is below this; (0, 1].
  std::optional<double> min_optimized_confidence;
};

// Before any work on the pathway: kApplied means go on.
GateDecision GateBeforeOptimization(const GateOptions& options, bool has_neighbors, double nearest_distance,
                                    double base_confidence);
// What was measured after it: a loss at the start, and at the pathway that would be used.
struct LossChange {
  double before = 0, after = 0;
};
// From the fitted neighbors' loss and, where there are any, that of the held-out ones.
GateDecision GateAfterOptimization(const GateOptions& options, LossChange fitted, std::optional<LossChange> held_out);
// After the optimized pathway was tried on the request itself.
GateDecision GateAfterTrial(const GateOptions& options, double optimized_confidence);

}  // namespace c3po

#endif  // C3PO_SERVER_PATHWAY_GATE_H_
