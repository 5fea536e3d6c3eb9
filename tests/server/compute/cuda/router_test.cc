#include "server/compute/cuda/router.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "tests/host_cuda/kernel_run.h"
#include "tests/server/compute/cuda/router_trial.h"

namespace c3po::cuda {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<double> NormedOf(const Inputs& in, int r) {
  double squares = 0;
  for (int c = 0; c < in.d; ++c) squares += double{in.x[At(r * in.d + c)]} * in.x[At(r * in.d + c)];
  std::vector<double> h;
  for (int c = 0; c < in.d; ++c) {
    h.push_back(in.x[At(r * in.d + c)] / std::sqrt(squares / in.d + kEps) * in.norm[At(c)]);
  }
  return h;
}

double DotOf(const std::vector<double>& h, const std::vector<float>& w, int64_t first) {
  double dot = 0;
  for (size_t c = 0; c < h.size(); ++c) dot += h[c] * double{w[At(first) + c]};
  return dot;
}

std::vector<double> ProbabilitiesOf(const Inputs& in, int r) {
  const Inputs::Override& given = in.overrides[At(r)];
  if (!given.values.empty() && given.replaces) return {given.values.begin(), given.values.end()};
  const std::vector<double> h = NormedOf(in, r);
  std::vector<double> p;
  double top = -INFINITY, sum = 0;
  for (int e = 0; e < in.choice.experts; ++e) {
    p.push_back(DotOf(h, in.router, int64_t{e} * in.d) + (given.values.empty() ? 0 : double{given.values[At(e)]}));
    top = std::max(top, p.back());
  }
  for (double& value : p) sum += value = std::exp(value - top);
  for (double& value : p) value /= sum;
  return p;
}

// The choice among float32 probabilities, by sorting.
std::vector<int> ChosenOf(const ExpertChoice& choice, const float* p) {
  std::vector<float> candidates(p, p + choice.experts);
  for (float& c : candidates) c = std::isnan(c) ? INFINITY : c;
  const int size = choice.experts / choice.groups;
  if (choice.groups_per_token < choice.groups) {
    std::vector<int> groups(At(choice.groups));
    std::iota(groups.begin(), groups.end(), 0);
    const auto top = [&](int g) {
      return *std::max_element(candidates.begin() + int64_t{g} * size, candidates.begin() + int64_t{g + 1} * size);
    };
    std::stable_sort(groups.begin(), groups.end(), [&](int a, int b) { return top(a) > top(b); });
    std::vector<float> kept(candidates.size(), -1);
    for (int i = 0; i < choice.groups_per_token; ++i) {
      for (int e = groups[At(i)] * size; e < (groups[At(i)] + 1) * size; ++e) kept[At(e)] = candidates[At(e)];
    }
    candidates = kept;
  }
  std::vector<int> order(candidates.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return candidates[At(a)] > candidates[At(b)]; });
  order.resize(At(choice.k));
  return order;
}

void ExpectRouted(const Inputs& in, const Routed& out, int planes) {
  const int experts = in.choice.experts, k = in.choice.k, padded = Padded(in.d);
  for (int r = 0; r < in.rows; ++r) {
    const std::vector<double> h = NormedOf(in, r);
    for (int c = 0; c < padded; ++c) {
      double y = 0;
      for (int p = 0; p < planes; ++p) y += double{FromBFloat16(out.normed[At((p * in.rows + r) * padded + c)])};
      const double expected = c < in.d ? h[At(c)] : 0;
      ASSERT_NEAR(y, expected, (planes == 1 ? 1.0 / 256 : 1e-6) * std::abs(expected)) << "row " << r << " column " << c;
    }
    const std::vector<double> p = ProbabilitiesOf(in, r);
    for (int e = 0; e < experts; ++e) {
      const double logit = DotOf(h, in.router, int64_t{e} * in.d);
      ASSERT_NEAR(out.logits[At(r * experts + e)], logit, 1e-5 * (1 + std::abs(logit)))
          << "row " << r << " expert " << e;
      ASSERT_NEAR(out.probabilities[At(r * experts + e)], p[At(e)], 1e-5 * (p[At(e)] + 1e-3));
    }
    const std::vector<int> chosen = ChosenOf(in.choice, out.probabilities.data() + r * experts);
    double total = 0;
    for (const int e : chosen) total += double{out.probabilities[At(r * experts + e)]};
    for (int j = 0; j < k; ++j) {
      ASSERT_EQ(out.selected[At(r * k + j)], chosen[At(j)]) << "row " << r << " place " << j;
      const double w = out.probabilities[At(r * experts + chosen[At(j)])];
      const double expected = double{in.choice.factor} * (in.choice.normalizes != 0 ? w / total : w);
      ASSERT_NEAR(out.weights[At(r * k + j)], expected, 1e-6 * std::abs(expected));
    }
    if (experts > 0) {
      ASSERT_NEAR(out.totals[At(r)], total, 1e-6 * total);
    }
    if (in.shared_gate.empty()) continue;
    ASSERT_NEAR(out.shared_weights[At(r)], 1 / (1 + std::exp(-DotOf(h, in.shared_gate, 0))), 1e-5);
  }
}

TEST(CudaRouter, IsWhatDoublePrecisionGives) {
  for (const Inputs& in : Trials()) {
    for (const int planes : {1, 3}) ExpectRouted(in, Route(in, planes, 1), planes);
    if (HasFatalFailure()) return;
  }
}

TEST(CudaRouter, BitsDependOnTheRowAlone) {
  for (const Inputs& in : Trials()) {
    host_cuda::SetSeed(1);
    const Routed expected = Route(in, 1, 1);
    for (uint64_t seed = 2; seed < 5; ++seed) {
      host_cuda::SetSeed(seed);
      EXPECT_TRUE(Route(in, 1, static_cast<int>(seed * seed)) == expected) << "several blocks a row, seed " << seed;
    }
    for (int r = 0; r < in.rows; ++r) {
      const Routed alone = Route(in.Rows({r}), 1, 2), pair = Route(in.Rows({in.rows - 1 - r, r}), 1, 1);
      const int k = in.choice.k;
      for (int j = 0; j < k; ++j) {
        EXPECT_EQ(alone.selected[At(j)], expected.selected[At(r * k + j)]);
        EXPECT_EQ(alone.weights[At(j)], expected.weights[At(r * k + j)]);
        EXPECT_EQ(pair.weights[At(k + j)], expected.weights[At(r * k + j)]);
      }
    }
  }
}

TEST(CudaRouter, OfEqualExpertsAndGroupsTheLowestNumbersCome) {
  Inputs in(1, 32, Choice(12, 4), false, false, 6);
  std::fill(in.router.begin(), in.router.end(), 0.0f);
  EXPECT_EQ(Route(in, 1, 1).selected, (std::vector<int32_t>{0, 1, 2, 3}));
  in.overrides[0] = {{.1f, .3f, .1f, .3f, .3f, 0, .3f, 0, 0, 0, .3f, 0}, true};
  EXPECT_EQ(Route(in, 1, 1).selected, (std::vector<int32_t>{1, 3, 4, 6}));
  in.choice.groups = 4;
  in.choice.groups_per_token = 2;
  EXPECT_EQ(Route(in, 1, 1).selected, (std::vector<int32_t>{1, 3, 4, 0}));  // groups {0, 1, 2}, {3, 4, 5}
}

TEST(CudaRouter, WhatIsNoNumberIsSelectedAndStaysInItsRow) {
  Inputs in(3, 64, Choice(16, 4), false, false, 7);
  const Routed expected = Route(in, 1, 1);
  in.x[At(64 + 5)] = kNan;
  Routed out = Route(in, 1, 2);
  for (int j = 0; j < 4; ++j) {
    EXPECT_EQ(out.weights[At(j)], expected.weights[At(j)]);
    EXPECT_TRUE(std::isnan(out.weights[At(4 + j)]));
    EXPECT_EQ(out.selected[At(4 + j)], j);
    EXPECT_EQ(out.weights[At(8 + j)], expected.weights[At(8 + j)]);
  }
  std::vector<float> weights(16, 0.05f);
  weights[11] = kNan;
  in.overrides[0] = {weights, true};
  out = Route(in, 1, 1);
  EXPECT_EQ(out.selected[0], 11);
  EXPECT_TRUE(std::isnan(out.weights[0]));
  EXPECT_EQ(out.weights[1], 0.05f);
}

TEST(CudaRouter, PaddingRowsSelectNothing) {
  const Inputs in(4, 64, Choice(16, 4), true, true, 8);
  const Routed expected = Route(in, 1, 1), out = Route(in, 1, 3, 2);
  for (int j = 0; j < 8; ++j) EXPECT_EQ(out.selected[At(j)], expected.selected[At(j)]);
  for (int j = 8; j < 16; ++j) {
    EXPECT_EQ(out.selected[At(j)], -1);
    EXPECT_EQ(out.weights[At(j)], 0);
  }
  EXPECT_EQ(out.shared_weights[3], 0);
}

TEST(CudaRouter, DenseLayersOnlyNorm) {
  const Inputs in(2, 44, Choice(0, 0), true, false, 9);
  ExpectRouted(in, Route(in, 3, 1), 3);
}

// A row's count is as good as a choice of that many for all rows.
TEST(CudaRouter, ARowThatTakesFewerExpertsGetsThoseOfASmallerChoice) {
  for (const Inputs& in : Trials()) {
    const int k = in.choice.k;
    Inputs counted = in;
    for (int r = 0; r < in.rows; ++r) counted.counts.push_back(1 + r * 3 % k);
    for (const int blocks : {1, 3}) {
      const Routed out = Route(counted, 3, blocks);
      EXPECT_EQ(out.probabilities, Route(in, 3, blocks).probabilities);
      for (int r = 0; r < in.rows; ++r) {
        const int count = counted.counts[At(r)];
        Inputs fewer = in;
        fewer.choice.k = count;
        const Routed expected = Route(fewer, 3, blocks);
        for (int j = 0; j < k; ++j) {
          SCOPED_TRACE(testing::Message() << in.choice.experts << " experts, row " << r << ", rank " << j);
          EXPECT_EQ(out.selected[At(r * k + j)], j < count ? expected.selected[At(r * count + j)] : -1);
          EXPECT_EQ(out.weights[At(r * k + j)], j < count ? expected.weights[At(r * count + j)] : 0.0f);
        }
        EXPECT_EQ(out.totals[At(r)], expected.totals[At(r)]);
      }
    }
  }
}

}  // namespace
}  // namespace c3po::cuda
