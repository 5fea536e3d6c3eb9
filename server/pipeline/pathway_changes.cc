#include "server/pipeline/pathway_changes.h"

#include <algorithm>
#include <cmath>

namespace c3po {
namespace {

constexpr size_t kReportedChanges = 8;

}  // namespace

std::vector<ExpertChange> LargestChanges(const Pathway& before, const Pathway& after, const std::vector<int>& layers) {
  std::vector<ExpertChange> changes;
  for (int l = 0; l < before.layers; ++l) {
    for (int e = 0; e < before.experts; ++e) {
      if (before.Row(l)[e] != after.Row(l)[e]) changes.push_back({layers[l], e, before.Row(l)[e], after.Row(l)[e]});
    }
  }
  const auto larger = [](const ExpertChange& a, const ExpertChange& b) {
    return std::abs(a.after - a.before) > std::abs(b.after - b.before);
  };
  std::stable_sort(changes.begin(), changes.end(), larger);
  changes.resize(std::min(changes.size(), kReportedChanges));
  return changes;
}

}  // namespace c3po
