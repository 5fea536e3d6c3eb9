#include "server/pathway/gate.h"

namespace c3po {

GateDecision GateBeforeOptimization(const GateOptions& options, bool has_neighbors, double nearest_distance,
                                    double base_confidence) {
  if (!has_neighbors) return GateDecision::kSkippedNoNeighbors;
  if (!options.enabled) return GateDecision::kApplied;
  if (options.max_neighbor_distance && nearest_distance > *options.max_neighbor_distance) {
    return GateDecision::kSkippedNeighborsFar;
  }
  if (options.max_base_confidence && base_confidence >= *options.max_base_confidence) {
    return GateDecision::kSkippedBaseConfident;
  }
  return GateDecision::kApplied;
}

GateDecision GateAfterOptimization(const GateOptions& options, double loss_before, double loss_after) {
  if (!options.enabled) return GateDecision::kApplied;
  return loss_before - loss_after > options.min_loss_reduction * loss_before ? GateDecision::kApplied
                                                                             : GateDecision::kRevertedLossNotReduced;
}

}  // namespace c3po
