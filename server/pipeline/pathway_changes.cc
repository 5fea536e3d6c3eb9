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

Pathway Shifted(const Pathway& w, const Pathway& shift) {
  Pathway result = w;
  for (int l = 0; l < w.layers; ++l) {
    double sum = 0;
    for (int e = 0; e < w.experts; ++e) sum += w.Row(l)[e] * std::exp(double{shift.Row(l)[e]});
    for (int e = 0; e < w.experts; ++e) {
      result.Row(l)[e] = static_cast<float>(w.Row(l)[e] * std::exp(double{shift.Row(l)[e]}) / sum);
    }
  }
  return result;
}

}  // namespace c3po
