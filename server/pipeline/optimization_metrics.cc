#include "server/pipeline/optimization_metrics.h"

namespace c3po {

Metrics::Gate GateMetric(GateDecision decision) {
  switch (decision) {
    case GateDecision::kApplied:
      return Metrics::Gate::kApplied;
    case GateDecision::kNotRequested:
      return Metrics::Gate::kNotRequested;
    case GateDecision::kSkippedNoNeighbors:
      return Metrics::Gate::kSkippedNoNeighbors;
    case GateDecision::kSkippedNeighborsFar:
      return Metrics::Gate::kSkippedNeighborsFar;
    case GateDecision::kSkippedBaseConfident:
      return Metrics::Gate::kSkippedBaseConfident;
    case GateDecision::kRevertedLossNotReduced:
      return Metrics::Gate::kRevertedLossNotReduced;
    case GateDecision::kRevertedValidationLossNotReduced:
      return Metrics::Gate::kRevertedValidationLossNotReduced;
    case GateDecision::kRevertedNotConfident:
      return Metrics::Gate::kRevertedNotConfident;
  }
  return Metrics::Gate::kNotRequested;
}

Metrics::Method MethodMetric(Method method) {
  switch (method) {
    case Method::kModeFinding:
      return Metrics::Method::kModeFinding;
    case Method::kKernelRegression:
      return Metrics::Method::kKernelRegression;
    case Method::kAmortizedShift:
      return Metrics::Method::kAmortizedShift;
    case Method::kCollectionPrior:
      return Metrics::Method::kCollectionPrior;
    case Method::kOracle:
      return Metrics::Method::kOracle;
    case Method::kNone:
    case Method::kNeighborhoodGradientDescent:
      break;
  }
  return Metrics::Method::kNeighborhoodGradientDescent;
}

}  // namespace c3po
