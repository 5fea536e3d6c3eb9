#include "server/pipeline/neighborhood.h"

#include <algorithm>

#include "index/base/status_macros.h"
#include "server/pathway/kernels.h"

namespace c3po {
namespace {

absl::StatusOr<std::vector<Neighbor>> Search(const ReferenceCatalog& catalog, const OptimizationSettings& settings,
                                             absl::Span<const float> embedding) {
  const int excluded = static_cast<int>(settings.exclude_reference_ids.size());
  if (settings.epsilon) {
    return catalog.SearchWithin(settings.collection, embedding, static_cast<float>(*settings.epsilon),
                                kNeighborsMax + excluded, settings.successful_only());
  }
  return catalog.Search(settings.collection, embedding, settings.k + settings.validation_neighbors + excluded,
                        settings.successful_only());
}

// How many of so many neighbors, at least one, are fitted: k, or the same share of fewer than were asked for.
size_t FittedOf(size_t neighbors, const OptimizationSettings& settings) {
  const auto k = static_cast<size_t>(settings.k), held_out = static_cast<size_t>(settings.validation_neighbors);
  if (settings.epsilon || held_out == 0) return neighbors;
  if (neighbors >= k + held_out) return k;
  return std::max<size_t>(1, (neighbors * k + k + held_out - 1) / (k + held_out));
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
  const size_t wanted =
      settings.epsilon ? size_t{kNeighborsMax} : static_cast<size_t>(settings.k + settings.validation_neighbors);
  Neighborhood neighborhood;
  std::vector<WeightedReference>& fitted = neighborhood.fitted;
  for (const Neighbor& neighbor : found) {
    if (fitted.size() == wanted) break;
    if (std::find(excluded.begin(), excluded.end(), neighbor.reference_id) != excluded.end()) continue;
    auto record = catalog.GetRecord(neighbor.reference_id);
    if (!record.ok()) continue;  // Deleted since the search.
    fitted.push_back({*std::move(record), neighbor.distance, 0});
  }
  if (fitted.empty()) return neighborhood;
  const auto first_held_out = fitted.begin() + static_cast<std::ptrdiff_t>(FittedOf(fitted.size(), settings));
  neighborhood.held_out.assign(first_held_out, fitted.end());
  fitted.erase(first_held_out, fitted.end());
  const double bandwidth = settings.bandwidth.value_or(neighborhood.fitted.back().distance);
  Weigh(settings, bandwidth, neighborhood.fitted);
  Weigh(settings, bandwidth, neighborhood.held_out);
  return neighborhood;
}

}  // namespace c3po
