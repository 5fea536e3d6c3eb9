#ifndef C3PO_SERVER_PATHWAY_GATE_H_
#define C3PO_SERVER_PATHWAY_GATE_H_

#include <optional>

#include "index/types/optimization_options.h"
#include "index/types/optimization_terms.h"

namespace c3po {

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
