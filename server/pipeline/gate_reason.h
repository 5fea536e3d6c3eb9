#ifndef C3PO_SERVER_PIPELINE_GATE_REASON_H_
#define C3PO_SERVER_PIPELINE_GATE_REASON_H_

#include <string>

#include "server/pipeline/generation_types.h"

namespace c3po {

// Why the report's gate decided as it did, in a sentence with the numbers compared. Empty for kApplied and
// kNotRequested.
std::string GateReason(const OptimizationReport& report);

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_GATE_REASON_H_
