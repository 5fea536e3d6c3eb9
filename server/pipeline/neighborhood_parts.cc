#include "server/pipeline/neighborhood_parts.h"

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <utility>

namespace c3po {

std::vector<int> DealIntoParts(absl::Span<const WeightedReference* const> neighbors, int parts, bool balance) {
  std::vector<size_t> order(neighbors.size());
  std::iota(order.begin(), order.end(), size_t{0});
  if (balance) {
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
      return neighbors[a]->record->sample.answer < neighbors[b]->record->sample.answer;
    });
  }
  std::vector<int> part_of(neighbors.size());
  for (size_t i = 0; i < order.size(); ++i) part_of[order[i]] = static_cast<int>(i % static_cast<size_t>(parts));
  return part_of;
}

std::vector<ObjectiveSpec> SpecsOfParts(const ObjectiveSpec& all, absl::Span<const int> part_of) {
  if (part_of.empty()) return {all};
  const int parts = 1 + *std::max_element(part_of.begin(), part_of.end());
  ObjectiveSpec settings = all;
  settings.cases.clear();
  settings.states.clear();
  std::vector<ObjectiveSpec> specs(static_cast<size_t>(parts), settings);
  for (size_t i = 0; i < all.cases.size(); ++i) {
    ObjectiveSpec& part = specs[static_cast<size_t>(part_of[i])];
    part.cases.push_back(all.cases[i]);
    if (i < all.states.size()) part.states.push_back(all.states[i]);
  }
  const auto is_empty = [](const ObjectiveSpec& spec) { return spec.cases.empty(); };
  specs.erase(std::remove_if(specs.begin(), specs.end(), is_empty), specs.end());
  return specs;
}

double WeightOf(const ObjectiveSpec& spec) {
  double weight = 0;
  for (const NeighborCase& one : spec.cases) weight += one.kernel_weight;
  return weight;
}

}  // namespace c3po
