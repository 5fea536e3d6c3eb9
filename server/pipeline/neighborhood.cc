#include "server/pipeline/neighborhood.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/pathway/kernels.h"

namespace c3po {
namespace {

absl::StatusOr<std::vector<Neighbor>> Search(const ReferenceCatalog& catalog, const OptimizationSettings& settings,
                                             absl::Span<const float> embedding) {
  const int excluded = static_cast<int>(settings.exclude_reference_ids.size());
  const std::optional<int> layer = StateLayerOf(settings, catalog.moe_layers());
  if (settings.epsilon) {
    return catalog.SearchWithin(settings.collection, embedding, static_cast<float>(*settings.epsilon),
                                kNeighborsMax + excluded, settings.successful_only(), layer, &settings.filter);
  }
  return catalog.Search(settings.collection, embedding, settings.k + settings.validation_neighbors + excluded,
                        settings.successful_only(), layer, &settings.filter);
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

// How many neighbors are asked for, both lists together.
size_t WantedOf(const OptimizationSettings& settings) {
  return settings.epsilon ? size_t{kNeighborsMax} : static_cast<size_t>(settings.k + settings.validation_neighbors);
}

// Both lists in one, as they are before any is held out; nearest first.
absl::StatusOr<std::vector<WeightedReference>> FindNearest(const ReferenceCatalog& catalog,
                                                           const OptimizationSettings& settings,
                                                           absl::Span<const float> embedding) {
  C3PO_ASSIGN_OR_RETURN(const std::vector<Neighbor> found, Search(catalog, settings, embedding));
  const std::vector<std::string>& excluded = settings.exclude_reference_ids;
  std::vector<WeightedReference> nearest;
  for (const Neighbor& neighbor : found) {
    if (nearest.size() == WantedOf(settings)) break;
    if (std::find(excluded.begin(), excluded.end(), neighbor.reference_id) != excluded.end()) continue;
    auto record = catalog.GetRecord(neighbor.reference_id);
    if (!record.ok()) continue;  // Deleted since the search.
    nearest.push_back({*std::move(record), neighbor.distance, 0});
  }
  return nearest;
}

absl::StatusOr<std::vector<std::vector<WeightedReference>>> FindByAnswer(const ReferenceCatalog& catalog,
                                                                         const OptimizationSettings& settings,
                                                                         absl::Span<const float> embedding) {
  C3PO_ASSIGN_OR_RETURN(const std::vector<AnswerNeighbors> found,
                        catalog.SearchByAnswer(settings.collection, embedding, static_cast<int>(WantedOf(settings)),
                                               settings.successful_only(), settings.exclude_reference_ids,
                                               StateLayerOf(settings, catalog.moe_layers()), &settings.filter));
  std::vector<std::vector<WeightedReference>> by_answer;
  for (const AnswerNeighbors& answer : found) {
    by_answer.emplace_back();
    for (const Neighbor& neighbor : answer.nearest) {
      auto record = catalog.GetRecord(neighbor.reference_id);
      if (record.ok()) by_answer.back().push_back({*std::move(record), neighbor.distance, 0});
    }
  }
  return by_answer;
}

Neighborhood Balanced(const OptimizationSettings& settings, std::vector<std::vector<WeightedReference>> by_answer) {
  size_t all = 0;
  for (const auto& list : by_answer) all += list.size();
  Neighborhood neighborhood;
  if (all == 0) return neighborhood;
  const size_t wanted = WantedOf(settings), taken = std::min(all, wanted);
  if (all < wanted) {
    neighborhood.warning = absl::StrCat("balance: ", all, " references have the choices of the nearest one, of ",
                                        wanted, " neighbors asked for");
  }
  const size_t fitted = FittedOf(taken, settings);
  neighborhood.fitted = TakeInTurn(fitted, by_answer);
  neighborhood.held_out = TakeInTurn(taken - fitted, by_answer);
  return neighborhood;
}

}  // namespace

std::optional<int> StateLayerOf(const OptimizationSettings& settings, int moe_layers) {
  switch (settings.neighbor_source) {
    case NeighborSource::kEmbedding:
      return std::nullopt;
    case NeighborSource::kCriticalLayer:
      return settings.critical_layers.front();
    case NeighborSource::kLastLayer:
      break;
  }
  return moe_layers;
}

std::vector<WeightedReference> TakeInTurn(size_t count, std::vector<std::vector<WeightedReference>>& by_answer) {
  const auto is_nearer = [](const WeightedReference& a, const WeightedReference& b) {
    return a.distance != b.distance ? a.distance < b.distance : a.record->id < b.record->id;
  };
  std::vector<size_t> used(by_answer.size(), 0);  // of each list
  std::vector<WeightedReference> taken;
  while (taken.size() < count) {
    std::vector<size_t> round;  // The lists that have one more, the nearest first.
    for (size_t list = 0; list < by_answer.size(); ++list) {
      if (used[list] < by_answer[list].size()) round.push_back(list);
    }
    if (round.empty()) break;
    std::sort(round.begin(), round.end(),
              [&](size_t a, size_t b) { return is_nearer(by_answer[a][used[a]], by_answer[b][used[b]]); });
    round.resize(std::min(round.size(), count - taken.size()));
    for (const size_t list : round) taken.push_back(by_answer[list][used[list]++]);
  }
  for (size_t list = 0; list < by_answer.size(); ++list) {
    by_answer[list].erase(by_answer[list].begin(), by_answer[list].begin() + static_cast<std::ptrdiff_t>(used[list]));
  }
  std::sort(taken.begin(), taken.end(), is_nearer);
  return taken;
}

absl::StatusOr<Neighborhood> FindNeighborhood(const ReferenceCatalog& catalog, const OptimizationSettings& settings,
                                              absl::Span<const float> embedding) {
  Neighborhood neighborhood;
  if (settings.balance) {
    C3PO_ASSIGN_OR_RETURN(auto by_answer, FindByAnswer(catalog, settings, embedding));
    neighborhood = Balanced(settings, std::move(by_answer));
  } else {
    C3PO_ASSIGN_OR_RETURN(neighborhood.fitted, FindNearest(catalog, settings, embedding));
    if (neighborhood.fitted.empty()) return neighborhood;
    const auto first_held_out =
        neighborhood.fitted.begin() + static_cast<std::ptrdiff_t>(FittedOf(neighborhood.fitted.size(), settings));
    neighborhood.held_out.assign(first_held_out, neighborhood.fitted.end());
    neighborhood.fitted.erase(first_held_out, neighborhood.fitted.end());
  }
  if (neighborhood.fitted.empty()) return neighborhood;
  const double bandwidth = settings.bandwidth.value_or(neighborhood.fitted.back().distance);
  Weigh(settings, bandwidth, neighborhood.fitted);
  Weigh(settings, bandwidth, neighborhood.held_out);
  return neighborhood;
}

}  // namespace c3po
