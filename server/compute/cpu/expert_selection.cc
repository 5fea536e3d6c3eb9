#include "server/compute/cpu/expert_selection.h"

#include <algorithm>
#include <vector>

#include "server/compute/cpu/row_operations.h"
#include "server/compute/cpu/thread_pool.h"
#include "server/model/config/expert_choice.h"

namespace c3po::cpu {
// The whole of it in one pass over each row: between two products of a layer there is no time for a dozen operations.
MixingRows SelectExperts(const ModelConfig& config, absl::Span<const RoutingRows> routing, int64_t rows, float* logits,
                         Memory& memory, absl::Span<const CountedRows> counts) {
  const int64_t experts = config.experts, own = config.experts_per_token;
  int64_t k = own;
  for (const CountedRows& counted : counts) k = std::max<int64_t>(k, counted.experts);
  MixingRows mixing;
  mixing.rows = rows;
  mixing.k = k;
  mixing.probabilities = logits;
  mixing.weights = memory.Floats(rows * experts);
  // Rows that take all experts are one product, which has no room for gaps: there what is not selected weighs nothing.
  if (own < experts) mixing.selected = memory.Integers(rows * k);
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
  int64_t* taken = nullptr;  // [R] experts of each row; null: `own` of all
  if (!counts.empty()) {
    taken = memory.Integers(rows);
    std::fill_n(taken, rows, own);
    for (const CountedRows& counted : counts) std::fill(taken + counted.begin, taken + counted.end, counted.experts);
  }
  ParallelFor(rows, std::max<int64_t>(1, 1024 / experts), [&](int64_t begin, int64_t end) {
    thread_local std::vector<int64_t> unread;
    unread.resize(static_cast<size_t>(experts));
    for (int64_t r = begin; r < end; ++r) {
      float* const p = mixing.probabilities + r * experts;
      float* const w = mixing.weights + r * experts;
      if (given && given[r] && mixing.replaced[r]) {
        std::copy_n(given[r], experts, p);
      } else {
        for (int64_t e = 0; given && given[r] && e < experts; ++e) p[e] += given[r][e];
        SoftmaxInPlace(p, experts, experts, 1);
      }
      const int64_t row_k = taken ? taken[r] : own;
      int64_t* const selected = mixing.selected ? mixing.selected + r * k : row_k < experts ? unread.data() : nullptr;
      ChooseExperts(config, row_k, p, selected, w, mixing.totals ? mixing.totals + r : nullptr);
      if (mixing.selected) std::fill(selected + row_k, selected + k, -1);
    }
  });
  return mixing;
}

void SelectExpertsBackward(const ModelConfig& config, const MixingRows& mixing, float* dweights, float* dlogits) {
  const int64_t experts = config.experts, k = mixing.k;
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
