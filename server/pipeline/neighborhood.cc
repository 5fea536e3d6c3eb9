#include "server/pipeline/neighborhood.h"

#include <algorithm>

#include "index/base/status_macros.h"

namespace c3po {
namespace {

absl::StatusOr<std::vector<Neighbor>> Search(const ReferenceCatalog& catalog, const OptimizationSettings& settings,
                                             absl::Span<const float> embedding) {
  const int excluded = static_cast<int>(settings.exclude_reference_ids.size());
  if (settings.epsilon) {
    return catalog.SearchWithin(settings.collection, embedding, static_cast<float>(*settings.epsilon),
                                kNeighborsMax + excluded, settings.successful_only);
  }
  return catalog.Search(settings.collection, embedding, settings.k + settings.validation_neighbors + excluded,
                        settings.successful_only);
}

void Weigh(const OptimizationSettings& settings, double bandwidth, std::vector<WeightedReference>& references) {
  std::vector<double> distances;
  for (const WeightedReference& reference : references) distances.push_back(reference.distance);
  const std::vector<double> kernel = KernelValues(settings.kernel, distances, bandwidth);
  double sum = 0;
  for (double value : kernel) sum += value;
  for (size_t i = 0; i < kernel.size(); ++i) references[i].kernel_weight = kernel[i] / sum;
}

}  // namespace

absl::StatusOr<Neighborhood> FindNeighborhood(const ReferenceCatalog& catalog, const OptimizationSettings& settings,
                                              absl::Span<const float> embedding) {
  C3PO_ASSIGN_OR_RETURN(const std::vector<Neighbor> found, Search(catalog, settings, embedding));
  const std::vector<std::string>& excluded = settings.exclude_reference_ids;
  const size_t fitted_max = settings.epsilon ? size_t{kNeighborsMax} : static_cast<size_t>(settings.k);
  const size_t held_out_max = static_cast<size_t>(settings.validation_neighbors);
  Neighborhood neighborhood;
  for (const Neighbor& neighbor : found) {
    if (std::find(excluded.begin(), excluded.end(), neighbor.reference_id) != excluded.end()) continue;
    auto record = catalog.GetRecord(neighbor.reference_id);
    if (!record.ok()) continue;  // Deleted since the search.
    const bool fits = neighborhood.fitted.size() < fitted_max;
    if (!fits && neighborhood.held_out.size() >= held_out_max) break;
    (fits ? neighborhood.fitted : neighborhood.held_out).push_back({*std::move(record), neighbor.distance, 0});
  }
  if (neighborhood.fitted.empty()) return neighborhood;
  const double bandwidth = settings.bandwidth.value_or(neighborhood.fitted.back().distance);
  Weigh(settings, bandwidth, neighborhood.fitted);
  Weigh(settings, bandwidth, neighborhood.held_out);
  return neighborhood;
}

}  // namespace c3po
