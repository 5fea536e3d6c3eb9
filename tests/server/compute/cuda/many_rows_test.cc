// Products of many rows are bitwise those of few, which other tests hold to double precision.

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "server/compute/cuda/expert_products.h"
#include "server/compute/cuda/products.h"
#include "tests/host_cuda/kernel_run.h"
#include "tests/server/compute/cuda/device_rows.h"
#include "tests/server/compute/cuda/expert_case.h"

namespace c3po::cuda {
namespace {

// NaN of what neither wrote is the same, too.
bool SameBits(const Floats& a, const Floats& b) {
  if (a.values.size() != b.values.size()) return false;
  return a.values.empty() || std::memcmp(a.values.data(), b.values.data(), a.values.size() * 4) == 0;
}

TEST(ManyRows, ProductIsThatOfFew) {
  std::mt19937 random(21);
  for (const auto& [bits, planes] : kLyings) {
    for (const bool transposed : {false, true}) {
      // Outputs of more than one block's, and an odd number of units.
      for (const auto& [m, k] : {std::pair{40, 72}, std::pair{300, 40}, std::pair{24, 560}, std::pair{40, 280}}) {
        const Floats w = RandomFloats(m, k, random);
        const DeviceWeights weights(PackedLayout::Plain(m, k, planes).WithBits(bits), w);
        const int terms = transposed ? m : k, outputs = transposed ? k : m, rows = 150;
        const DevicePlanes in(RandomFloats(rows, terms, random), planes, transposed);
        ProductArgs args;
        args.weights = weights.view();
        args.transposed = transposed;
        const auto run = [&](int first, int count, int multiprocessors) {
          args.rows = count;
          args.planes = in.view();
          args.planes.data += int64_t{first} * in.view().stride;
          args.multiprocessors = multiprocessors;
          host_cuda::SetSeed(static_cast<uint64_t>(first + multiprocessors));
          const DeviceFloats out(count, outputs, outputs + 1);
          args.out = out.data();
          args.out_stride = out.stride();
          EXPECT_EQ(LaunchProduct(args, nullptr), nullptr);
          EXPECT_TRUE(out.IsUntouchedBeyond(outputs));
          return out.Read(count, outputs);
        };
        const Floats many = run(0, rows, 3);
        EXPECT_TRUE(SameBits(run(0, rows, 100), many));
        for (const auto& [first, count] : {std::pair{0, 64}, {64, 64}, {128, 22}}) {
          const Floats few = run(first, count, 2);
          ASSERT_EQ(std::memcmp(few.values.data(), &many.values[size_t(first * outputs)], few.values.size() * 4), 0)
              << "M " << m << " K " << k << " " << Named(Lying{bits, planes}) << " transposed " << transposed
              << " from " << first;
        }
      }
    }
  }
}

// Each expert's pairs of some rows, on the device.
struct Lists {
  explicit Lists(const ExpertSelection& s)
      : counts(static_cast<size_t>(s.experts)), pairs(static_cast<size_t>(s.experts) * static_cast<size_t>(s.rows)) {
    ExpertListArgs args;
    args.selection = s;
    args.counts = counts.data();
    args.pairs = pairs.data();
    EXPECT_EQ(LaunchExpertLists(args, nullptr), nullptr);
  }
  void GiveTo(ExpertProductArgs* args) const {
    args->list_counts = counts.data();
    args->list_pairs = pairs.data();
    args->multiprocessors = 5;
  }
  DeviceArray<int> counts, pairs;
};

TEST(ExpertLists, HoldEachExpertsPairsAscending) {
  std::mt19937 random(22);
  const Block block{8, 8, 37, 3, 0, 1};
  for (const int rows : {1, 70, 333}) {
    const Rows some(rows, block, Choice::kSomeNone, random);
    const Lists lists(some.Selection(0, rows));
    const std::vector<int> counts = lists.counts.Values(), pairs = lists.pairs.Values();
    for (int e = 0; e < block.experts; ++e) {
      std::vector<int> expected;
      for (int i = 0; i < rows * block.k; ++i) {
        if (some.selected[size_t(i)] == e) expected.push_back(i);
      }
      ASSERT_EQ(counts[size_t(e)], static_cast<int>(expected.size()));
      expected.resize(static_cast<size_t>(rows), -1);  // bytes of 0xFF, where nothing was written
      ASSERT_EQ(std::vector<int>(pairs.begin() + e * rows, pairs.begin() + (e + 1) * rows), expected);
    }
  }
}

const Block kManyBlocks[] = {{40, 24, 5, 2, 40, 1},    {40, 24, 5, 2, 40, 3},    {72, 300, 3, 1, 0, 1},
                             {300, 72, 3, 1, 24, 3},   {40, 24, 5, 2, 40, 1, 8}, {300, 72, 3, 1, 24, 3, 8},
                             {72, 300, 3, 1, 0, 1, 4}, {300, 72, 3, 1, 24, 3, 4}};

TEST(ManyRows, ExpertsAreThoseOfFew) {
  std::mt19937 random(23);
  for (const Block& b : kManyBlocks) {
    const Weights weights(b, random);
    for (const auto& [count, choice] : {std::pair{150, Choice::kSomeNone}, {70, Choice::kAllTheSame}}) {
      const Rows rows(count, b, choice, random);
      const Lists lists(rows.Selection(0, count));
      const Activation few(count, b), many(count, b);
      RunGateUp(weights, rows, 0, count, few);
      ExpertProductArgs args = GateUpArgs(weights, rows, 0, count, many);
      lists.GiveTo(&args);
      ASSERT_EQ(LaunchGateUp(args, nullptr), nullptr);
      EXPECT_TRUE(SameBits(few.routed.Read(false), many.routed.Read(false))) << Named(b, count, false);
      EXPECT_TRUE(SameBits(few.shared.Read(false), many.shared.Read(false))) << Named(b, count, true);
      EXPECT_TRUE(
          SameBits(few.gate_up.Read(count * b.k, 2 * Padded(b.f)), many.gate_up.Read(count * b.k, 2 * Padded(b.f))));

      // Down, one by one, and added up.
      const DeviceFloats routed(count * b.k, b.d, b.d + 1), shared(count, b.d, b.d + 1), residual(rows.x, b.d + 2);
      ExpertProductArgs apart;
      apart.selection = rows.Selection(0, count);
      apart.routed.weights = weights.DownView(false);
      apart.shared.weights = weights.DownView(true);
      apart.routed.in = many.routed.view();
      apart.shared.in = many.shared.view();
      apart.routed.floats_out = routed.data();
      apart.shared.floats_out = shared.data();
      apart.floats_stride = b.d + 1;
      lists.GiveTo(&apart);
      ASSERT_EQ(LaunchDownApart(apart, nullptr), nullptr);
      const DeviceFloats out(count, b.d, b.d + 3);
      ExpertSumArgs sum;
      sum.selection = apart.selection;
      sum.columns = b.d;
      sum.routed = routed.data();
      sum.shared = b.shared > 0 ? shared.data() : nullptr;
      sum.stride = b.d + 1;
      sum.residual = residual.data();
      sum.residual_stride = residual.stride();
      sum.factor = 0.22f;
      sum.out = out.data();
      sum.out_stride = out.stride();
      ASSERT_EQ(LaunchExpertSum(sum, nullptr), nullptr);
      EXPECT_TRUE(out.IsUntouchedBeyond(b.d));
      ExpertMixArgs mix;
      mix.selection = apart.selection;
      mix.routed = apart.routed.weights;
      mix.shared = apart.shared.weights;
      mix.routed_in = few.routed.view();
      mix.shared_in = few.shared.view();
      mix.residual = residual.data();
      mix.residual_stride = residual.stride();
      mix.factor = 0.22f;
      EXPECT_TRUE(SameBits(out.Read(count, b.d), RunMix(mix, b.d))) << Named(b, count, false);
    }
  }
}

TEST(ManyRows, ADenseLayersNetworkNeedsNoLists) {
  std::mt19937 random(24);
  const Block b{40, 0, 0, 0, 300, 1};
  const Weights weights(b, random);
  const Rows rows(130, b, Choice::kRandom, random);
  const Activation many(130, b);
  RunGateUp(weights, rows, 0, 130, many);
  const Floats h = many.shared.Read(false);
  for (const auto& [first, count] : {std::pair{0, 64}, {64, 64}, {128, 2}}) {
    const Activation few(count, b);
    RunGateUp(weights, rows, first, count, few);
    const Floats some = few.shared.Read(false);
    EXPECT_EQ(std::memcmp(some.values.data(), &h.values[size_t(first * h.columns)], some.values.size() * 4), 0);
  }
}

TEST(ManyRows, GradientsAreThoseOfFew) {
  std::mt19937 random(25);
  for (const Block& b : kManyBlocks) {
    const int count = 150;
    const Weights weights(b, random);
    const Rows rows(count, b, Choice::kSomeNone, random);
    const Lists lists(rows.Selection(0, count));
    const Activation tape(count, b);
    RunGateUp(weights, rows, 0, count, tape);
    const DevicePlanes dy(RandomFloats(count, b.d, random), b.planes, true);
    const Gradient few(count, b), many(count, b);
    ExpertProductArgs args = BackwardArgs(weights, rows, 0, count, tape, dy, few);
    ASSERT_EQ(LaunchDownBackward(args, nullptr), nullptr);
    args = BackwardArgs(weights, rows, 0, count, tape, dy, many);
    lists.GiveTo(&args);
    ASSERT_EQ(LaunchDownBackward(args, nullptr), nullptr);
    EXPECT_TRUE(SameBits(few.routed.Read(true), many.routed.Read(true))) << Named(b, count, false);
    EXPECT_TRUE(SameBits(few.shared.Read(true), many.shared.Read(true))) << Named(b, count, true);
    const int width = UnitsOfDots(b.f), shared_width = UnitsOfDots(b.shared);
    EXPECT_TRUE(SameBits(few.dots.Read(count * b.k, width), many.dots.Read(count * b.k, width)));
    EXPECT_TRUE(SameBits(few.shared_dots.Read(count, shared_width), many.shared_dots.Read(count, shared_width)));
  }
}

}  // namespace
}  // namespace c3po::cuda
