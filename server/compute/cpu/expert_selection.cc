#include "server/compute/cpu/expert_selection.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "server/compute/cpu/row_operations.h"
#include "server/compute/cpu/thread_pool.h"

namespace c3po::cpu {
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

void SelectRow(const ModelConfig& config, const float* probabilities, int64_t* selected, float* weights) {
  const int64_t experts = config.experts, k = config.experts_per_token;
  thread_local std::vector<float> candidates;
  thread_local std::vector<int64_t> order;
  candidates.assign(probabilities, probabilities + experts);
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
  for (int64_t j = 0; j < k; ++j) weights[order[j]] = probabilities[order[j]];
}

}  // namespace

// The whole of it in one pass over each row: between two products of a layer there is no time for a dozen operations.
MixingRows SelectExperts(const ModelConfig& config, absl::Span<const RoutingRows> routing, int64_t rows, float* logits,
                         Memory& memory) {
  const int64_t experts = config.experts, k = config.experts_per_token;
  MixingRows mixing;
  mixing.rows = rows;
  mixing.probabilities = logits;
  mixing.weights = memory.Floats(rows * experts);
  if (k < experts) mixing.selected = memory.Integers(rows * k);
  if (config.norm_topk_prob) mixing.totals = memory.Floats(rows);
  const float** given = nullptr;  // [R] the override's values; null: the row has none
  if (!routing.empty()) {
    given = static_cast<const float**>(memory.Take(rows * static_cast<int64_t>(sizeof(float*))));
    mixing.replaced = static_cast<bool*>(memory.Take(rows));
    std::fill_n(given, rows, nullptr);
    std::fill_n(mixing.replaced, rows, false);
    for (const RoutingRows& named : routing) {
      std::fill(given + named.begin, given + named.end, named.values.data());
      std::fill(mixing.replaced + named.begin, mixing.replaced + named.end,
                named.kind == RoutingOverride::Kind::kWeights);
    }
  }
  ParallelFor(rows, std::max<int64_t>(1, 1024 / experts), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      float* const p = mixing.probabilities + r * experts;
      float* const w = mixing.weights + r * experts;
      if (given && given[r] && mixing.replaced[r]) {
        std::copy_n(given[r], experts, p);
      } else {
        for (int64_t e = 0; given && given[r] && e < experts; ++e) p[e] += given[r][e];
        SoftmaxInPlace(p, experts, experts, 1);
      }
      if (mixing.selected) {
        SelectRow(config, p, mixing.selected + r * k, w);
      } else {
        std::copy_n(p, experts, w);
      }
      if (mixing.totals) {
        mixing.totals[r] = std::accumulate(w, w + experts, 0.0f);
        for (int64_t e = 0; e < experts; ++e) w[e] /= mixing.totals[r];
      }
      if (config.routed_scaling_factor == 1) continue;
      for (int64_t e = 0; e < experts; ++e) w[e] *= static_cast<float>(config.routed_scaling_factor);
    }
  });
  return mixing;
}

void SelectExpertsBackward(const ModelConfig& config, const MixingRows& mixing, float* dweights, float* dlogits) {
  const int64_t experts = config.experts, k = config.experts_per_token;
  const auto factor = static_cast<float>(config.routed_scaling_factor);
  ParallelFor(mixing.rows, std::max<int64_t>(1, 1024 / experts), [&](int64_t begin, int64_t end) {
    thread_local std::vector<float> kept;
    for (int64_t r = begin; r < end; ++r) {
      float* const dp = dweights + r * experts;
      const float* const p = mixing.probabilities + r * experts;
      // A model normalizes its weights or scales them, not both.
      if (mixing.totals) {
        const float* const w = mixing.weights + r * experts;
        double mean = 0;
        for (int64_t e = 0; e < experts; ++e) mean += double{dp[e]} * w[e];
        for (int64_t e = 0; e < experts; ++e) dp[e] = static_cast<float>((dp[e] - mean) / mixing.totals[r]);
      } else if (factor != 1) {
        for (int64_t e = 0; e < experts; ++e) dp[e] *= factor;
      }
      if (mixing.selected) {
        kept.assign(static_cast<size_t>(experts), 0.0f);
        for (int64_t j = 0; j < k; ++j) kept[mixing.selected[r * k + j]] = dp[mixing.selected[r * k + j]];
        std::copy_n(kept.begin(), experts, dp);
      }
      double mean = 0;
      for (int64_t e = 0; !mixing.totals && e < experts; ++e) mean += double{dp[e]} * p[e];
      for (int64_t e = 0; e < experts; ++e) dlogits[r * experts + e] = static_cast<float>(p[e] * (dp[e] - mean));
    }
  });
}

void SumOverRouting(absl::Span<const RoutingRows> routing, int64_t experts, const float* dprobabilities,
                    const float* dlogits, const Matrix& sums) {
  std::vector<double> totals;
  std::vector<bool> begun(static_cast<size_t>(sums.rows), false);
  totals.assign(static_cast<size_t>(sums.rows * experts), 0.0);
  for (const RoutingRows& named : routing) {
    if (named.sum < 0) continue;
    begun[named.sum] = true;
    const float* const from = named.kind == RoutingOverride::Kind::kLogitShift ? dlogits : dprobabilities;
    double* const total = totals.data() + named.sum * experts;
    for (int64_t r = named.begin; r < named.end; ++r) {
      for (int64_t e = 0; e < experts; ++e) total[e] += from[r * experts + e];
    }
  }
  for (int64_t i = 0; i < sums.rows; ++i) {
    if (!begun[i]) continue;
    float* const to = static_cast<float*>(sums.data) + i * sums.stride;
    for (int64_t e = 0; e < experts; ++e) to[e] = static_cast<float>(totals[i * experts + e]);
  }
}

}  // namespace c3po::cpu
