#ifndef C3PO_SERVER_PIPELINE_OPTIMIZER_CHOICE_H_
#define C3PO_SERVER_PIPELINE_OPTIMIZER_CHOICE_H_

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "index/search/reference_catalog.h"
#include "index/types/optimization_options.h"
#include "server/pathway/pathway_optimizer.h"
#include "server/pipeline/neighborhood.h"

namespace c3po {

// The optimizer of pathway/ that settings.method names: kernel regression over the fitted neighbors, mode finding over
// the collection's pathways, else gradient descent, also of ORACLE; over several `parts` a vote of descents. The
// objectives are those of `parts`, at least one; problem.objective is set here. `catalog` outlives it. Errors are those
// of the optimizers' makers.
absl::StatusOr<std::unique_ptr<PathwayOptimizer>> ChooseOptimizer(const OptimizationSettings& settings,
                                                                  const ReferenceCatalog& catalog,
                                                                  const std::vector<WeightedReference>& neighbors,
                                                                  const std::vector<VotePart>& parts,
                                                                  OptimizationProblem problem);

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_OPTIMIZER_CHOICE_H_
