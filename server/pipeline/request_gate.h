#ifndef C3PO_SERVER_PIPELINE_REQUEST_GATE_H_
#define C3PO_SERVER_PIPELINE_REQUEST_GATE_H_

#include <optional>

#include "server/pathway/gate.h"
#include "server/pipeline/generation_types.h"

namespace c3po {

// What the gate (pathway/gate.h) decides of one request, from what its report holds by then. Pure.

// From the distances and base_confidence: kApplied, or why the request is left alone. The request that is its own
// neighbor (ORACLE) never is.
GateDecision GateBeforeSearch(const OptimizationReport& report);

// The held-out neighbors' loss at the start and at the iterate taken; no value where none were held out.
std::optional<LossChange> HeldOutChange(const OptimizationReport& report);

// From `fitted`, the fitted neighbors' loss, and the held-out ones': kApplied, or why the pathway is not used. Where
// the start is the collection's prior and no step was better, the prior is what the request gets: kApplied.
GateDecision GateAfterSearch(const OptimizationReport& report, LossChange fitted);

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_REQUEST_GATE_H_
