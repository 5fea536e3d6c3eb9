#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "server/compute/cuda/expert_products.h"
#include "tests/server/compute/cuda/expert_case.h"

namespace c3po::cuda {
namespace {

void CheckDownBackward(const Weights& weights, const Rows& rows, const Activation& tape, const Floats& dy,
                       const Gradient& out, bool of_shared) {
  const Block& b = weights.block;
  const int f = of_shared ? b.shared : b.f;
  const std::vector<Pair> pairs = PairsOf(rows, of_shared);
  const auto count = static_cast<int>(pairs.size());
  const Floats gate_up = (of_shared ? tape.shared_gate_up : tape.gate_up).Read(count, 2 * Padded(f));
  const DevicePlanes& planes = of_shared ? out.shared : out.routed;
  const Floats gradient = planes.Read(true);
  EXPECT_TRUE(planes.IsUntouchedBeyondPadding());
  const DeviceArray<float> device_sums(static_cast<size_t>(count));
  DotSumsArgs sum_args;
  sum_args.dots = (of_shared ? out.shared_dots : out.dots).data();
  sum_args.rows = count;
  sum_args.width = UnitsOfDots(f);
  sum_args.sums = device_sums.data();
  ASSERT_EQ(LaunchDotSums(sum_args, nullptr), nullptr);
  const std::vector<float> sums = device_sums.Values();
  for (int p = 0; p < count; ++p) {
    const Pair& pair = pairs[size_t(p)];
    if (pair.expert < 0) {
      for (int n = 0; n < gradient.columns; ++n) ASSERT_TRUE(std::isnan(gradient(p, n)));
      continue;
    }
    double dot = 0, dot_magnitude = 0;
    for (int n = 0; n < Padded(f); ++n) {
      const auto gate_at = static_cast<int>(GateRow(n)), up_at = static_cast<int>(UpRow(n));
      if (n >= f) {
        ASSERT_EQ(gradient(p, gate_at), 0);
        ASSERT_EQ(gradient(p, up_at), 0);
        continue;
      }
      double t = 0, magnitude = 0;
      for (int i = 0; i < b.d; ++i) {
        const double term = Seen(dy(pair.row, i), b.planes) * weights.Down(of_shared, pair.expert, i, n);
        t += term;
        magnitude += std::abs(term);
      }
      const double gate = gate_up(p, gate_at), up = gate_up(p, up_at);
      // The derivative itself, not its formula.
      constexpr double kStep = 1e-4;
      const double slope = (Silu(gate + kStep) - Silu(gate - kStep)) / (2 * kStep);
      const double dgate = t * pair.scale * up * slope, dup = t * pair.scale * Silu(gate);
      const double share = 2 * Tolerance(b.planes) * magnitude * std::abs(pair.scale);
      ASSERT_NEAR(gradient(p, gate_at), dgate,
                  RoundingTolerance(b.planes) * std::abs(dgate) + (share + 1e-8) * std::abs(up) + 1e-7)
          << Named(b, rows.rows, of_shared) << " pair " << p << " neuron " << n;
      ASSERT_NEAR(gradient(p, up_at), dup, RoundingTolerance(b.planes) * std::abs(dup) + share * std::abs(gate) + 1e-30)
          << Named(b, rows.rows, of_shared) << " pair " << p << " neuron " << n;
      dot += t * Silu(gate) * up;
      dot_magnitude += magnitude * std::abs(Silu(gate) * up);
    }
    ASSERT_NEAR(sums[size_t(p)], dot, 3 * Tolerance(b.planes) * dot_magnitude) << Named(b, rows.rows, of_shared);
  }
}

TEST(DownBackward, IsTheDerivative) {
  ForEachCase([](const Weights& weights, const Rows& rows) {
    const Block& b = weights.block;
    std::mt19937 random(13);
    const Activation tape(rows.rows, b);
    RunGateUp(weights, rows, 0, rows.rows, tape);
    const Floats dy = RandomFloats(rows.rows, b.d, random);
    const DevicePlanes device_dy(dy, b.planes, true);
    const Gradient out(rows.rows, b);
    ASSERT_EQ(LaunchDownBackward(BackwardArgs(weights, rows, 0, rows.rows, tape, device_dy, out), nullptr), nullptr);
    if (weights.routed()) CheckDownBackward(weights, rows, tape, dy, out, false);
    if (b.shared > 0) CheckDownBackward(weights, rows, tape, dy, out, true);
  });
}

TEST(ExpertMix, TransposedIsThatOfDoublePrecision) {
  ForEachCase([](const Weights& weights, const Rows& rows) {
    const Block& b = weights.block;
    std::mt19937 random(14);
    const Floats routed = RandomFloats(std::max(1, rows.rows * b.k), std::max(1, 2 * Padded(b.f)), random);
    const Floats shared = RandomFloats(rows.rows, std::max(1, 2 * Padded(b.shared)), random);
    const DevicePlanes device_routed(routed, b.planes, true), device_shared(shared, b.planes, true);
    ExpertMixArgs args;
    args.selection = rows.Selection(0, rows.rows);
    args.routed = weights.GateUpView(false);
    args.shared = weights.GateUpView(true);
    args.routed_in = device_routed.view();
    args.shared_in = device_shared.view();
    args.transposed = true;
    const Floats y = RunMix(args, b.d);
    std::vector<double> sums(y.values.size()), sizes(y.values.size());
    for (const bool of_shared : {false, true}) {
      const int f = of_shared ? b.shared : b.f;
      if (f == 0) continue;
      const std::vector<Pair> pairs = PairsOf(rows, of_shared);
      const Floats& input = of_shared ? shared : routed;
      for (size_t p = 0; p < pairs.size(); ++p) {
        if (pairs[p].expert < 0) continue;
        for (int n = 0; n < f; ++n) {
          for (int up = 0; up < 2; ++up) {
            const double v = Seen(input(static_cast<int>(p), static_cast<int>(up ? UpRow(n) : GateRow(n))), b.planes);
            for (int i = 0; i < b.d; ++i) {
              const double term = v * weights.Gate(of_shared, pairs[p].expert, n, i, up == 1);
              sums[size_t(pairs[p].row * b.d + i)] += term;
              sizes[size_t(pairs[p].row * b.d + i)] += std::abs(term);
            }
          }
        }
      }
    }
    for (size_t i = 0; i < y.values.size(); ++i) {
      ASSERT_NEAR(y.values[i], sums[i], Tolerance(b.planes) * sizes[i]) << Named(b, rows.rows, false) << " entry " << i;
    }
  });
}

TEST(ExpertProducts, GradientsAreBitwiseTheSameInAnyBatch) {
  std::mt19937 random(15);
  for (const Block& block : {Block{72, 88, 9, 4, 40, 1}, Block{72, 88, 9, 4, 40, 3}}) {
    const Weights weights(block, random);
    const Rows rows(70, block, Choice::kSomeNone, random);
    const Activation tape(70, block);
    RunGateUp(weights, rows, 0, 70, tape);
    const DevicePlanes dy(RandomFloats(70, block.d, random), block.planes, true);
    const auto backward = [&](int first, int count, const Gradient& out) {
      ExpertProductArgs args = BackwardArgs(weights, rows, first, count, tape, dy, out);
      args.multiprocessors = 1 + count % 23;
      host_cuda::SetSeed(static_cast<uint64_t>(first * 100 + count));
      EXPECT_EQ(LaunchDownBackward(args, nullptr), nullptr);
      ExpertMixArgs mix;
      mix.selection = args.selection;
      mix.routed = weights.GateUpView(false);
      mix.shared = weights.GateUpView(true);
      mix.routed_in = out.routed.view();
      mix.shared_in = out.shared.view();
      mix.transposed = true;
      return RunMix(mix, block.d, static_cast<uint64_t>(first));
    };
    const Gradient all(70, block);
    const Floats dx = backward(0, 70, all), dots = all.dots.Read(70 * block.k, UnitsOfDots(block.f));
    for (const auto& [first, count] :
         {std::pair{0, 70}, {0, 1}, {69, 1}, {33, 3}, {41, 8}, {17, 9}, {3, 40}, {6, 64}}) {
      const Gradient some(count, block);
      const Floats some_dx = backward(first, count, some), some_dots = some.dots.Read(count * block.k, dots.columns);
      EXPECT_EQ(std::memcmp(some_dx.values.data(), &dx.values[size_t(first * block.d)], some_dx.values.size() * 4), 0)
          << first << " " << count;
      EXPECT_EQ(std::memcmp(some_dots.values.data(), &dots.values[size_t(first * block.k * dots.columns)],
                            some_dots.values.size() * 4),
                0)
          << first << " " << count;
    }
  }
}

}  // namespace
}  // namespace c3po::cuda
