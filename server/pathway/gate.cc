#include "server/pathway/gate.h"

namespace c3po {

GateDecision GateBeforeOptimization(const GateOptions& options, bool has_neighbors, double nearest_distance,
                                    double base_confidence) {
  if (!has_neighbors) return GateDecision::kSkippedNoNeighbors;
  if (!options.enabled) return GateDecision::kApplied;
  // Comparisons are written so that what is not a number fails them, and the model is left as it is.
  if (options.max_neighbor_distance && !(nearest_distance <= *options.max_neighbor_distance)) {
    return GateDecision::kSkippedNeighborsFar;
  }
  if (options.max_base_confidence && !(base_confidence < *options.max_base_confidence)) {
    return GateDecision::kSkippedBaseConfident;
  }
  return GateDecision::kApplied;
}

namespace {

bool Fell(LossChange loss, double by_fraction) { return loss.before - loss.after > by_fraction * loss.before; }

}  // namespace

GateDecision GateAfterOptimization(const GateOptions& options, LossChange fitted, std::optional<LossChange> held_out) {
  if (!options.enabled) return GateDecision::kApplied;
  if (!Fell(fitted, options.min_loss_reduction)) return GateDecision::kRevertedLossNotReduced;
  if (held_out && !Fell(*held_out, options.min_validation_loss_reduction)) {
    return GateDecision::kRevertedValidationLossNotReduced;
  }
  return GateDecision::kApplied;
}

GateDecision GateAfterTrial(const GateOptions& options, double optimized_confidence) {
  const bool unsure = options.min_optimized_confidence && !(optimized_confidence >= *options.min_optimized_confidence);
  return options.enabled && unsure ? GateDecision::kRevertedNotConfident : GateDecision::kApplied;
}

}  // namespace c3po
