// Activations rounded to integers of 16 and 8 bits against the definition.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "server/compute/cpu/quantized_panels.h"

namespace c3po::cpu {
namespace {

// A row of activations, rounded to integers of either size.
struct RoundedRow {
  std::vector<int> q;
  std::vector<float> scales;
  std::vector<int32_t> offsets;  // of 8 bits
};
RoundedRow Rounded(int bits, const std::vector<float>& x, const QuantizedCut& cut) {
  const auto columns = static_cast<int64_t>(x.size()), groups = cut.Groups(columns);
  RoundedRow row{{}, std::vector<float>(groups, -1), std::vector<int32_t>(groups, -1)};
  if (bits == 16) {
    std::vector<int16_t> q(groups * kGroupColumns, 99);
    RoundRow16(x.data(), cut, columns, q.data(), row.scales.data());
    row.q.assign(q.begin(), q.end());
  } else {
    std::vector<int8_t> q(groups * kGroupColumns, 99);
    RoundRow8(x.data(), cut, columns, q.data(), row.scales.data(), row.offsets.data());
    row.q.assign(q.begin(), q.end());
  }
  return row;
}

class RoundRow : public testing::TestWithParam<int> {
 protected:
  int bits() const { return GetParam(); }
  float largest_level() const { return bits() == 16 ? 32767 : 127; }
};

INSTANTIATE_TEST_SUITE_P(Bits, RoundRow, testing::Values(16, 8),
                         [](const auto& info) { return std::to_string(info.param); });

TEST_P(RoundRow, AnEntryIsOffByHalfAStepAtMost) {
  std::mt19937 rng(5);
  const int64_t columns = 3 * 20;
  const QuantizedCut cut = QuantizedCut::Of(1, columns, 1, 20);
  std::vector<float> x(columns);
  for (float& each : x) each = std::normal_distribution<float>()(rng);
  for (int64_t k = 20; k < 40; ++k) x[k] *= 1e-30f;
  const RoundedRow row = Rounded(bits(), x, cut);
  for (int64_t g = 0; g < 3; ++g) {
    float largest = 0;
    int32_t sum = 0;
    for (int64_t k = 0; k < 20; ++k) largest = std::max(largest, std::abs(x[20 * g + k]));
    EXPECT_FLOAT_EQ(row.scales[g], largest / largest_level());
    for (int64_t k = 0; k < kGroupColumns; ++k) {
      const double expected = k < 20 ? x[20 * g + k] : 0;
      const int q = row.q[g * kGroupColumns + k];
      EXPECT_LE(std::abs(double{row.scales[g]} * q - expected), 0.501 * row.scales[g]);
      const volatile float level = static_cast<float>(expected) * (largest_level() / largest);  // Rounded by itself.
      EXPECT_EQ(q, std::nearbyint(level));
      if (k >= 20) {
        EXPECT_EQ(q, 0);
      }
      sum += q;
    }
    if (bits() == 8) {
      EXPECT_EQ(row.offsets[g], -8 * sum);
    }
  }
}

TEST_P(RoundRow, TiesGoToEvenAndTheLargestEntryToTheLastLevel) {
  std::vector<float> x = {0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, 100.5f, -99.5f};
  std::vector<int> expected = {0, 2, 2, 0, -2, -2, 100, -100};
  x.resize(32, 0.0f), expected.resize(32, 0);
  for (const float sign : {1.0f, -1.0f}) {
    x[31] = sign * largest_level(), expected[31] = static_cast<int>(x[31]);
    EXPECT_EQ(Rounded(bits(), x, QuantizedCut::Of(1, 32, 1, 32)).q, expected);
  }
}

TEST_P(RoundRow, WhatIsNotFiniteStaysVisibleAndZeroIsZero) {
  std::vector<float> x(128, 0.0f);
  x[40] = std::numeric_limits<float>::infinity();
  x[70] = -std::numeric_limits<float>::quiet_NaN();
  x[100] = 0x1p-101f;
  const RoundedRow row = Rounded(bits(), x, QuantizedCut::Of(1, 128, 1, 128));
  EXPECT_EQ(row.scales[0], 0);
  EXPECT_TRUE(std::isnan(row.scales[1]) && std::isnan(row.scales[2]));
  EXPECT_EQ(row.scales[3], 0);
  EXPECT_EQ(row.q, std::vector<int>(128, 0));
  if (bits() == 8) {
    EXPECT_EQ(row.offsets, std::vector<int32_t>(4, 0));
  }
}

TEST(RoundRow8, EveryWidthOfVectorsGivesTheSameBits) {
  constexpr int64_t kEntries = 70;
  const QuantizedCut cut = QuantizedCut::Of(1, kEntries, 1, kEntries);
  const int64_t groups = cut.Groups(kEntries);
  for (uint32_t seed = 1; seed <= 200; ++seed) {
    std::mt19937 rng(seed);
    std::vector<float> x(kEntries);
    for (float& each : x) each = std::ldexp(std::normal_distribution<float>()(rng), static_cast<int>(seed) - 100);
    std::vector<int8_t> four(groups * kGroupColumns, 99);
    std::vector<float> four_scales(groups, -1);
    std::vector<int32_t> four_offsets(groups, -1);
    RoundRow8By(4, x.data(), cut, kEntries, four.data(), four_scales.data(), four_offsets.data());
    for (const int lanes : {8, 16}) {
      if (lanes > WidestLanes()) continue;
      std::vector<int8_t> other(groups * kGroupColumns, 98);
      std::vector<float> scales(groups, -2);
      std::vector<int32_t> offsets(groups, -2);
      RoundRow8By(lanes, x.data(), cut, kEntries, other.data(), scales.data(), offsets.data());
      ASSERT_EQ(other, four) << "seed " << seed << " lanes " << lanes;
      ASSERT_EQ(scales, four_scales) << "seed " << seed << " lanes " << lanes;
      ASSERT_EQ(offsets, four_offsets) << "seed " << seed << " lanes " << lanes;
    }
  }
}

}  // namespace
}  // namespace c3po::cpu
