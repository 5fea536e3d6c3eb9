#include "server/pipeline/optimizer_choice.h"

#include <algorithm>
#include <string>
#include <utility>

#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr double kModeFindingAlpha = 0.5;

// The k references with the pathways nearest to `w`, without those that the request excludes.
absl::StatusOr<std::vector<PathwayAtDistance>> NearestPathways(const ReferenceCatalog& catalog,
                                                               const OptimizationSettings& settings, const Pathway& w) {
  const std::vector<std::string>& excluded = settings.exclude_reference_ids;
  C3PO_ASSIGN_OR_RETURN(const std::vector<Neighbor> found,
                        catalog.SearchPathways(settings.collection, w.weights, settings.critical_layers,
                                               settings.k + static_cast<int>(excluded.size()),
                                               settings.successful_only(), &settings.filter));
  std::vector<PathwayAtDistance> near;
  for (const Neighbor& neighbor : found) {
    if (std::find(excluded.begin(), excluded.end(), neighbor.reference_id) != excluded.end()) continue;
    const auto pathway = catalog.GetPathway(neighbor.reference_id);
    if (!pathway.ok() || near.size() >= static_cast<size_t>(settings.k)) continue;
    near.push_back({(*pathway)->Rows(settings.critical_layers), neighbor.distance});
  }
  return near;
}

}  // namespace

absl::StatusOr<std::unique_ptr<PathwayOptimizer>> ChooseOptimizer(const OptimizationSettings& settings,
                                                                  const ReferenceCatalog& catalog,
                                                                  const std::vector<WeightedReference>& neighbors,
                                                                  const std::vector<VotePart>& parts,
                                                                  OptimizationProblem problem) {
  if (parts.size() > 1) return MakePathwayVote(std::move(problem), parts, settings);
  problem.objective = parts.front().objective;
  if (settings.method == Method::kKernelRegression) {
    std::vector<WeightedPathway> pathways;
    for (const WeightedReference& neighbor : neighbors) {
      pathways.push_back({neighbor.record->pathway.Rows(settings.critical_layers), neighbor.kernel_weight});
    }
    return MakeKernelRegression(std::move(problem), std::move(pathways), settings.alpha);
  }
  if (settings.method != Method::kModeFinding) return MakeGradientDescent(std::move(problem), settings);
  ModeFindingOptions options{
      settings.steps, settings.alpha.value_or(kModeFindingAlpha), settings.kernel, settings.bandwidth.value_or(0), {}};
  options.nearest = [settings, &catalog](const Pathway& w) { return NearestPathways(catalog, settings, w); };
  return MakeModeFinding(std::move(problem), std::move(options));
}

}  // namespace c3po
