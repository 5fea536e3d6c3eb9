#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "server/compute/cuda/router.h"
#include "tests/host_cuda/device_array.h"
#include "tests/host_cuda/kernel_run.h"
#include "tests/server/compute/cuda/router_trial.h"

namespace c3po::cuda {
namespace {

using host_cuda::DeviceArray;

struct Gradients {
  std::vector<float> dprobabilities, dlogits, dnormed;
  bool operator==(const Gradients& other) const = default;
};

struct Given {
  std::vector<float> dweights, dshared, dnormed;
};

Gradients Back(const Inputs& in, const Routed& out, const Given& given) {
  const Weights router(in.router, in.bfloat16), gate(in.shared_gate, in.bfloat16);
  const OverridesOnDevice overrides(in);
  const DeviceArray<int32_t> selected(out.selected);
  const DeviceArray<float> weights(out.weights), probabilities(out.probabilities), totals(out.totals),
      shared(out.shared_weights), dweights(given.dweights), dshared(given.dshared), dnormed(given.dnormed);
  const DeviceArray<float> dprobabilities(probabilities.size()), dlogits(probabilities.size());
  RouterBackwardArgs args;
  args.rows = in.rows;
  args.d = in.d;
  args.choice = in.choice;
  args.router = router.data();
  args.shared_gate = in.shared_gate.empty() ? nullptr : gate.data();
  args.bfloat16_weights = in.bfloat16 ? 1 : 0;
  args.overrides = overrides.data();
  args.selected = selected.data();
  args.weights = weights.data();
  args.probabilities = probabilities.data();
  args.totals = totals.data();
  args.shared_weights = shared.data();
  args.dweights = dweights.data();
  args.dshared_weights = dshared.data();
  args.dprobabilities = dprobabilities.data();
  args.dlogits = dlogits.data();
  args.dnormed = dnormed.data();
  EXPECT_EQ(LaunchRouterBackward(args, nullptr), nullptr);
  return {dprobabilities.Values(), dlogits.Values(), dnormed.Values()};
}

TEST(CudaRouterBackward, IsWhatDoublePrecisionGives) {
  for (Inputs in : Trials()) {
    if (in.choice.normalizes != 0) in.choice.factor = 1;
    const int experts = in.choice.experts, k = in.choice.k;
    const Routed out = Route(in, 1, 1);
    std::mt19937 random(4);
    const Given given{Normal(random, At(in.rows * k)), Normal(random, At(in.rows)), Normal(random, At(in.rows * in.d))};
    const Gradients actual = Back(in, out, given);
    host_cuda::SetSeed(77);
    EXPECT_TRUE(Back(in, out, given) == actual);
    for (int r = 0; r < in.rows; ++r) {
      const float* const p = &out.probabilities[At(r * experts)];
      std::vector<double> dp(At(experts), 0), dlogits;
      double mean = 0, slope = 0;
      for (int j = 0; j < k; ++j) mean += double{given.dweights[At(r * k + j)]} * out.weights[At(r * k + j)];
      for (int j = 0; j < k; ++j) {
        const double dw = given.dweights[At(r * k + j)];
        dp[At(out.selected[At(r * k + j)])] =
            in.choice.normalizes != 0 ? (dw - mean) / out.totals[At(r)] : dw * double{in.choice.factor};
      }
      for (int e = 0; e < experts; ++e) slope += dp[At(e)] * double{p[e]};
      for (int e = 0; e < experts; ++e) {
        dlogits.push_back(p[e] * (dp[At(e)] - (in.choice.normalizes != 0 ? 0 : slope)));
        ASSERT_NEAR(actual.dprobabilities[At(r * experts + e)], dp[At(e)], 1e-5 * (std::abs(dp[At(e)]) + 1e-2));
        ASSERT_NEAR(actual.dlogits[At(r * experts + e)], dlogits.back(), 1e-6 * (std::abs(dlogits.back()) + 0.1));
      }
      const bool replaced = in.overrides[At(r)].replaces;
      for (int c = 0; c < in.d; ++c) {
        double expected = given.dnormed[At(r * in.d + c)];
        for (int e = 0; !replaced && e < experts; ++e) expected += dlogits[At(e)] * double{in.router[At(e * in.d + c)]};
        if (!in.shared_gate.empty()) {
          const double g = out.shared_weights[At(r)];
          expected += given.dshared[At(r)] * g * (1 - g) * double{in.shared_gate[At(c)]};
        }
        ASSERT_NEAR(actual.dnormed[At(r * in.d + c)], expected, 1e-6 * (std::abs(expected) + 1)) << "row " << r;
      }
    }
  }
}

TEST(CudaRoutingSums, AddTheRowsOfEachOverride) {
  constexpr int kRows = 9, kExperts = 140;
  std::mt19937 random(5);
  const std::vector<float> dp = Normal(random, kRows * kExperts), dl = Normal(random, kRows * kExperts);
  const std::vector<RoutingSum> entries = {{0, 3, 1, 2}, {3, 4, 0, 0}, {4, 6, 0, -1}, {6, 9, 0, 2}};
  const DeviceArray<float> probabilities(dp), logits(dl), sums(std::vector<float>(3 * (kExperts + 1), 7));
  const DeviceArray<RoutingSum> list(entries);
  const RoutingSumsArgs args{list.data(),   4,           3,           kExperts, probabilities.data(),
                             logits.data(), sums.data(), kExperts + 1};
  ASSERT_EQ(LaunchRoutingSums(args, nullptr), nullptr);
  const std::vector<float> out = sums.Values();
  for (int e = 0; e < kExperts; ++e) {
    EXPECT_EQ(out[At(e)], dl[At(3 * kExperts + e)]);
    EXPECT_EQ(out[At(kExperts + 1 + e)], 7);  // No override names it.
    double both = 0;
    for (int r = 0; r < 3; ++r) both += double{dp[At(r * kExperts + e)]};
    for (int r = 6; r < 9; ++r) both += double{dl[At(r * kExperts + e)]};
    EXPECT_EQ(out[At(2 * (kExperts + 1) + e)], static_cast<float>(both));
  }
  EXPECT_EQ(out[kExperts], 7);
}

TEST(CudaNormBackward, IsWhatDoublePrecisionGives) {
  for (const int size : {1, 40, 300, 2048}) {
    constexpr int kRows = 3;
    const int stride = size + 5;
    std::mt19937 random(6);
    const std::vector<float> x = Normal(random, At(kRows * stride), 2), dy = Normal(random, At(kRows * stride)),
                             weight = Normal(random, At(size)), add = Normal(random, At(kRows * stride));
    const DeviceArray<float> dx_in(add), x_in(x), dy_in(dy), w_in(weight);
    for (const bool with_sum : {false, true}) {
      const DeviceArray<float> dx(add);
      NormBackwardArgs args{kRows, size,      dy_in.data(), x_in.data(), w_in.data(), with_sum ? dx.data() : nullptr,
                            kEps,  dx.data(), stride,       stride,      stride,      stride};
      ASSERT_EQ(LaunchNormBackward(args, nullptr), nullptr);
      const std::vector<float> out = dx.Values();
      for (int r = 0; r < kRows; ++r) {
        double squares = 0, along = 0;
        for (int c = 0; c < size; ++c) {
          const double value = x[At(r * stride + c)];
          squares += value * value;
          along += double{dy[At(r * stride + c)]} * weight[At(c)] * value;
        }
        const double rstd = 1 / std::sqrt(squares / size + kEps);
        for (int c = 0; c < stride; ++c) {
          const int i = r * stride + c;
          double expected = with_sum || c >= size ? double{add[At(i)]} : 0;
          if (c < size) {
            const double g = double{dy[At(i)]} * weight[At(c)], n = x[At(i)] * rstd;
            expected += rstd * (g - n * along * rstd / size);
          }
          ASSERT_NEAR(out[At(i)], expected, 2e-6 * (std::abs(expected) + 1)) << "row " << r << " column " << c;
        }
      }
    }
  }
}

}  // namespace
}  // namespace c3po::cuda
