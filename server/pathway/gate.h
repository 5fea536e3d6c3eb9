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
};

// When an optimized pathway is not used (ours). A condition without a value is not checked.
struct GateOptions {
  bool enabled = true;
  std::optional<double> max_neighbor_distance;  // skip when the nearest neighbor is farther; [0, 2]
  std::optional<double>
      max_base_confidence;        // skip when the model's own next-token probability is at least this; (0, 1]
  double min_loss_reduction = 0;  // revert unless (first - last) / first loss exceeds this; < 1
};

// Before any work on the pathway: kApplied means go on.
GateDecision GateBeforeOptimization(const GateOptions& options, bool has_neighbors, double nearest_distance,
                                    double base_confidence);
// After it, from the neighbors' loss before and after.
GateDecision GateAfterOptimization(const GateOptions& options, double loss_before, double loss_after);

}  // namespace c3po

#endif  // C3PO_SERVER_PATHWAY_GATE_H_
