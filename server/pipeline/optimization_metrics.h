#ifndef C3PO_SERVER_PIPELINE_OPTIMIZATION_METRICS_H_
#define C3PO_SERVER_PIPELINE_OPTIMIZATION_METRICS_H_

#include "server/metrics/metrics.h"
#include "server/pathway/gate.h"
#include "server/pipeline/optimization_settings.h"

namespace c3po {

// The labels under which decisions and methods are counted. Method::kNone has none of its own.
Metrics::Gate GateMetric(GateDecision decision);
Metrics::Method MethodMetric(Method method);

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_OPTIMIZATION_METRICS_H_
