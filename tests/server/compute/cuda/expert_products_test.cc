#include "server/compute/cuda/expert_products.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "tests/server/compute/cuda/expert_case.h"

namespace c3po::cuda {
namespace {

void CheckGateUp(const Weights& weights, const Rows& rows, const Activation& out, bool of_shared) {
  const Block& b = weights.block;
  const int f = of_shared ? b.shared : b.f;
  const std::vector<Pair> pairs = PairsOf(rows, of_shared);
  const Floats tape =
      (of_shared ? out.shared_gate_up : out.gate_up).Read(static_cast<int>(pairs.size()), 2 * Padded(f));
  const DevicePlanes& planes = of_shared ? out.shared : out.routed;
  const Floats h = planes.Read(false);
  EXPECT_TRUE(planes.IsUntouchedBeyondPadding());
  for (int p = 0; p < static_cast<int>(pairs.size()); ++p) {
    const Pair& pair = pairs[static_cast<size_t>(p)];
    for (int n = 0; n < h.columns; ++n) {
      if (pair.expert < 0) {
        ASSERT_TRUE(std::isnan(h(p, n))) << "a pair that is none was written";
        continue;
      }
      if (n >= f) {
        ASSERT_EQ(h(p, n), 0) << Named(b, rows.rows, of_shared) << " padding " << n;
        continue;
      }
      double sums[2] = {}, magnitudes[2] = {};
      for (int up = 0; up < 2; ++up) {
        for (int i = 0; i < b.d; ++i) {
          const double term = weights.Gate(of_shared, pair.expert, n, i, up == 1) * Seen(rows.x(pair.row, i), b.planes);
          sums[up] += term;
          magnitudes[up] += std::abs(term);
        }
        const auto at = static_cast<int>(up == 0 ? GateRow(n) : UpRow(n));
        ASSERT_NEAR(tape(p, at), sums[up], Tolerance(b.planes) * magnitudes[up])
            << Named(b, rows.rows, of_shared) << " pair " << p << " neuron " << n;
        sums[up] = tape(p, at);
      }
      const double expected = Silu(sums[0]) * sums[1] * pair.scale;
      ASSERT_NEAR(h(p, n), expected, RoundingTolerance(b.planes) * std::abs(expected) + 1e-30)
          << Named(b, rows.rows, of_shared) << " pair " << p << " neuron " << n;
    }
  }
}

TEST(GateUp, IsThatOfDoublePrecision) {
  ForEachCase([](const Weights& weights, const Rows& rows) {
    const Activation out(rows.rows, weights.block);
    RunGateUp(weights, rows, 0, rows.rows, out);
    if (weights.routed()) CheckGateUp(weights, rows, out, false);
    if (weights.block.shared > 0) CheckGateUp(weights, rows, out, true);
  });
}

ExpertMixArgs MixArgs(const Weights& weights, const Rows& rows, int first, int count, const Activation& h) {
  ExpertMixArgs args;
  args.selection = rows.Selection(first, count);
  args.routed = weights.DownView(false);
  args.shared = weights.DownView(true);
  args.routed_in = rows.From(h.routed.view(), int64_t{first} * weights.block.k);
  args.shared_in = rows.From(h.shared.view(), first);
  return args;
}

TEST(ExpertMix, IsThatOfDoublePrecision) {
  ForEachCase([](const Weights& weights, const Rows& rows) {
    const Block& b = weights.block;
    const Activation h(rows.rows, b);
    RunGateUp(weights, rows, 0, rows.rows, h);
    ExpertMixArgs args = MixArgs(weights, rows, 0, rows.rows, h);
    const DeviceFloats residual(rows.x, b.d + 1);
    args.residual = residual.data();
    args.residual_stride = residual.stride();
    args.factor = 0.22f;
    const Floats y = RunMix(args, b.d);
    const Floats inputs[2] = {h.routed.Read(false), h.shared.Read(false)};
    Floats expected(rows.rows, b.d), magnitudes(rows.rows, b.d);
    std::vector<double> sums(expected.values.size()), sizes(expected.values.size());
    for (const bool of_shared : {false, true}) {
      if (of_shared ? b.shared == 0 : b.k == 0) continue;
      const std::vector<Pair> pairs = PairsOf(rows, of_shared);
      for (size_t p = 0; p < pairs.size(); ++p) {
        if (pairs[p].expert < 0) continue;
        for (int i = 0; i < b.d; ++i) {
          for (int n = 0; n < (of_shared ? b.shared : b.f); ++n) {
            const double term =
                weights.Down(of_shared, pairs[p].expert, i, n) * inputs[of_shared](static_cast<int>(p), n);
            sums[size_t(pairs[p].row * b.d + i)] += term;
            sizes[size_t(pairs[p].row * b.d + i)] += std::abs(term);
          }
        }
      }
    }
    for (int r = 0; r < rows.rows; ++r) {
      for (int i = 0; i < b.d; ++i) {
        const size_t at = size_t(r * b.d + i);
        ASSERT_NEAR(y(r, i), rows.x(r, i) + 0.22 * sums[at], Tolerance(b.planes) * (sizes[at] + std::abs(rows.x(r, i))))
            << Named(b, rows.rows, false) << " row " << r << " output " << i;
      }
    }
  });
}

// Rows alone and among others, in any order of threads, on few multiprocessors and on many.
TEST(ExpertProducts, RowsAreBitwiseTheSameInAnyBatch) {
  std::mt19937 random(12);
  for (const Block& block : {Block{72, 88, 9, 4, 40, 1}, Block{72, 88, 9, 4, 40, 3}, Block{72, 88, 9, 4, 40, 1, 8},
                             Block{72, 88, 9, 4, 40, 1, 4}, Block{72, 88, 9, 4, 40, 3, 4}}) {
    const Weights weights(block, random);
    const Rows rows(70, block, Choice::kSomeNone, random);
    const Activation all(70, block);
    RunGateUp(weights, rows, 0, 70, all);
    const Floats h = all.routed.Read(false), shared = all.shared.Read(false);
    const Floats y = RunMix(MixArgs(weights, rows, 0, 70, all), block.d);
    const auto same = [](const Floats& a, int row, const Floats& b, int other) {
      return std::memcmp(&a.values[size_t(row * a.columns)], &b.values[size_t(other * b.columns)],
                         size_t(a.columns) * sizeof(float)) == 0;
    };
    for (const auto& [first, count] :
         {std::pair{0, 70}, {0, 1}, {69, 1}, {33, 3}, {41, 8}, {17, 9}, {3, 40}, {6, 64}}) {
      const Activation some(count, block);
      ExpertProductArgs args = GateUpArgs(weights, rows, first, count, some);
      args.multiprocessors = 1 + count * 7 % 60;
      host_cuda::SetSeed(static_cast<uint64_t>(100 + first));
      ASSERT_EQ(LaunchGateUp(args, nullptr), nullptr);
      const Floats some_h = some.routed.Read(false), some_shared = some.shared.Read(false);
      for (int i = 0; i < count * block.k; ++i)
        ASSERT_TRUE(same(some_h, i, h, first * block.k + i)) << first << " " << i;
      for (int r = 0; r < count; ++r) ASSERT_TRUE(same(some_shared, r, shared, first + r)) << first << " " << r;
      const Floats some_y =
          RunMix(MixArgs(weights, rows, first, count, all), block.d, static_cast<uint64_t>(200 + first));
      for (int r = 0; r < count; ++r) ASSERT_TRUE(same(some_y, r, y, first + r)) << first << " " << r;
    }
  }
}

TEST(DownApart, IsThatOfDoublePrecision) {
  ForEachCase([](const Weights& weights, const Rows& rows) {
    const Block& b = weights.block;
    if (!weights.routed()) return;
    const Activation h(rows.rows, b);
    RunGateUp(weights, rows, 0, rows.rows, h);
    const DeviceFloats out(rows.rows * b.k, b.d, b.d + 5);
    ExpertProductArgs args;
    args.selection = rows.Selection(0, rows.rows);
    args.routed.weights = weights.DownView(false);
    args.routed.in = h.routed.view();
    args.routed.floats_out = out.data();
    args.floats_stride = out.stride();
    args.multiprocessors = 2;
    ASSERT_EQ(LaunchDownApart(args, nullptr), nullptr);
    EXPECT_TRUE(out.IsUntouchedBeyond(b.d));
    const Floats y = out.Read(rows.rows * b.k, b.d), input = h.routed.Read(false);
    for (int p = 0; p < y.rows; ++p) {
      const int expert = rows.selected[size_t(p)];
      for (int i = 0; i < b.d; ++i) {
        if (expert < 0) {
          ASSERT_TRUE(std::isnan(y(p, i)));
          continue;
        }
        double sum = 0, magnitude = 0;
        for (int n = 0; n < b.f; ++n) {
          const double term = weights.Down(false, expert, i, n) * input(p, n);
          sum += term;
          magnitude += std::abs(term);
        }
        ASSERT_NEAR(y(p, i), sum, Tolerance(b.planes) * magnitude) << Named(b, rows.rows, false);
      }
    }
  });
}

}  // namespace
}  // namespace c3po::cuda
