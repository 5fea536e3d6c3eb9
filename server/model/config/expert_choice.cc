#include "server/model/config/expert_choice.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

namespace c3po {
namespace {

// The probabilities that may be selected, -1 elsewhere; groups with the same maximum lead in their order.
void KeepLeadingGroups(const ModelConfig& config, std::vector<float>& candidates) {
  const int64_t size = config.experts / config.expert_groups;
  thread_local std::vector<std::pair<float, int64_t>> groups;
  groups.clear();
  for (int64_t g = 0; g < config.expert_groups; ++g) {
    groups.emplace_back(-*std::max_element(candidates.begin() + g * size, candidates.begin() + (g + 1) * size), g);
  }
  std::sort(groups.begin(), groups.end());
  for (size_t i = config.groups_per_token; i < groups.size(); ++i) {
    std::fill_n(candidates.begin() + groups[i].second * size, size, -1.0f);
  }
}

void Select(const ModelConfig& config, int64_t k, const float* p, int64_t* selected, float* weights) {
  const int64_t experts = config.experts;
  thread_local std::vector<float> candidates;
  thread_local std::vector<int64_t> order;
  candidates.assign(p, p + experts);
  // What is not a number has no place in an order.
  for (float& c : candidates) c = std::isnan(c) ? std::numeric_limits<float>::infinity() : c;
  if (config.groups_per_token < config.expert_groups) KeepLeadingGroups(config, candidates);
  order.resize(static_cast<size_t>(experts));
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + k, order.end(), [](int64_t a, int64_t b) {
    return candidates[a] > candidates[b] || (candidates[a] == candidates[b] && a < b);
  });
  std::copy_n(order.begin(), k, selected);
  std::fill_n(weights, experts, 0.0f);
  for (int64_t j = 0; j < k; ++j) weights[order[j]] = p[order[j]];
}

}  // namespace

int SelectableExperts(const ModelConfig& config) {
  return config.experts / config.expert_groups * config.groups_per_token;
}

void ChooseExperts(const ModelConfig& config, int64_t k, const float* p, int64_t* selected, float* weights,
                   float* total) {
  const int64_t experts = config.experts;
  if (selected != nullptr) {
    Select(config, k, p, selected, weights);
  } else {
    std::copy_n(p, experts, weights);
  }
  if (total != nullptr) {
    *total = std::accumulate(weights, weights + experts, 0.0f);
    for (int64_t e = 0; e < experts; ++e) weights[e] /= *total;
  }
  if (config.routed_scaling_factor == 1) return;
  for (int64_t e = 0; e < experts; ++e) weights[e] *= static_cast<float>(config.routed_scaling_factor);
}

}  // namespace c3po
