#ifndef C3PO_TESTS_SERVER_PATHWAY_ONE_UNIT_H_
#define C3PO_TESTS_SERVER_PATHWAY_ONE_UNIT_H_

#include <optional>

#include "absl/status/statusor.h"
#include "server/pathway/pathway_optimizer.h"

namespace c3po {

// One unit of an optimizer that nobody else's evaluations run with. True when it is finished.
inline absl::StatusOr<bool> OneUnit(PathwayOptimizer& optimizer) {
  const std::optional<Evaluation> wanted = optimizer.Ask();
  if (!wanted) return optimizer.Tell(nullptr);
  const absl::StatusOr<LossAndGradient> result = wanted->Run();
  if (!result.ok()) return result.status();
  return optimizer.Tell(&*result);
}

}  // namespace c3po

#endif  // C3PO_TESTS_SERVER_PATHWAY_ONE_UNIT_H_
