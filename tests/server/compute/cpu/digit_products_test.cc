// x W^T with activations cut into digits: bit for bit what plain loops over the definition give.
#include "server/compute/cpu/digit_products.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "tests/server/compute/cpu/instruction_sets.h"
#include "tests/server/compute/cpu/quantized_matrix.h"

namespace c3po::cpu {
namespace {

const WeightLayout kLayouts[] = {WeightLayout::kInt8, WeightLayout::kInt4};

class DigitProducts : public testing::Test {
 protected:
  void SetUp() override {
    if (FastestIntegerUnit() != IntegerUnit::kVnni) GTEST_SKIP() << "this processor has no AVX-512 VNNI";
  }
};

// A row as CutIntoDigits leaves it.
struct Row {
  Row(WeightLayout layout, const float* x, const QuantizedCut& cut, int64_t columns)
      : groups(cut.Groups(columns)), digits(groups * kDigitGroupBytes), scales(groups), offsets(groups * kDigits) {
    CutIntoDigits(layout, x, cut, columns, digits.data(), scales.data(), offsets.data());
  }
  int64_t groups;
  std::vector<int8_t> digits;
  std::vector<float> scales;
  std::vector<int32_t> offsets;

  // Digit i of column k of a group.
  int Digit(WeightLayout layout, int64_t g, int i, int64_t k) const {
    static constexpr int kPlaces[] = {0, 2, 1, 3};
    const int64_t place = layout == WeightLayout::kInt8 ? k / 4 * 4 + kPlaces[k % 4] : k;
    return digits[g * kDigitGroupBytes + i * kGroupColumns + place];
  }
  int64_t Whole(WeightLayout layout, int64_t g, int64_t k) const {
    return Digit(layout, g, 0, k) * int64_t{65536} + Digit(layout, g, 1, k) * 256 + Digit(layout, g, 2, k);
  }
};

TEST_F(DigitProducts, DigitsAreTheNearestIntegersOfTheGroupsScale) {
  std::mt19937 rng(3);
  const QuantizedCut cut = QuantizedCut::Of(16, 100, 16, 20);
  for (const WeightLayout layout : kLayouts) {
    for (const float size : {1.0f, 1e-20f, 1e30f}) {
      std::vector<float> x = Random(rng, 100);
      for (float& v : x) v *= size;
      x[25] = -50 * size;
      const Row row(layout, x.data(), cut, 100);
      ASSERT_EQ(row.groups, 5);
      for (int64_t g = 0; g < row.groups; ++g) {
        const float* const own = x.data() + 20 * g;
        float largest = 0;
        for (int64_t k = 0; k < 20; ++k) largest = std::max(largest, std::abs(own[k]));
        EXPECT_EQ(row.scales[g], largest / 8355000);
        for (int i = 0; i < kDigits; ++i) {
          int sum = 0;
          for (int64_t k = 0; k < kGroupColumns; ++k) sum += row.Digit(layout, g, i, k);
          EXPECT_EQ(row.offsets[g * kDigits + i], (layout == WeightLayout::kInt4 ? -8 : -128) * sum);
        }
        for (int64_t k = 0; k < kGroupColumns; ++k) {
          const double exact = k < 20 ? own[k] : 0;
          // Half a unit of rounding, and half of one for each number of float32 on the way.
          EXPECT_NEAR(double{row.scales[g]} * static_cast<double>(row.Whole(layout, g, k)), exact,
                      2.01 * double{row.scales[g]})
              << k;
        }
      }
    }
  }
}

TEST_F(DigitProducts, TinyGroupsAreNothingAndWhatIsNotFiniteHasNoScale) {
  const QuantizedCut cut = QuantizedCut::Of(16, 32, 16, 32);
  for (const WeightLayout layout : kLayouts) {
    for (const float size : {0.0f, 1e-45f, 0x1p-102f}) {
      const Row row(layout, std::vector<float>(32, size).data(), cut, 32);
      EXPECT_EQ(row.scales[0], 0);
      EXPECT_EQ(row.digits, std::vector<int8_t>(kDigitGroupBytes, 0));
      EXPECT_EQ(row.offsets, std::vector<int32_t>(kDigits, 0));
    }
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                            -std::numeric_limits<float>::infinity()}) {
      std::vector<float> x(32, 1);
      x[31] = bad;
      EXPECT_TRUE(std::isnan(Row(layout, x.data(), cut, 32).scales[0]));
    }
  }
}

// The header's formula for one output.
float Plain(const Row& x, const QuantizedMatrix& w, int64_t row) {
  const WeightView& view = w.view;
  const QuantizedCut& cut = view.cut;
  const int64_t panel = cut.PanelOf(row), place = row - cut.PanelRow(panel);
  const char* const at = static_cast<const char*>(view.data) + panel * PanelBytes(view.layout, cut.panel_groups);
  float total = 0;
  for (int64_t g = 0; g < x.groups; ++g) {
    float widened[kGroupColumns];
    WidenGroup(view.layout, at, place, g, cut.panel_groups, widened);
    uint16_t half;
    std::memcpy(&half, at + g * kScaleBytes + 2 * place, 2);
    const float scale = Widened(half);
    int32_t sums[kDigits] = {};
    for (int64_t k = 0; k < kGroupColumns; ++k) {
      const auto level = static_cast<int32_t>(scale != 0 ? std::llround(double{widened[k]} / scale) : 0);
      for (int i = 0; i < kDigits; ++i) sums[i] += level * x.Digit(view.layout, g, i, k);
    }
    const float whole = std::fma(static_cast<float>(sums[0]), 65536.0f, static_cast<float>(256 * sums[1] + sums[2]));
    total = std::fma(scale, x.scales[g] * whole, total);
  }
  return total;
}

void ExpectPlain(const std::vector<float>& x, int64_t rows, const QuantizedMatrix& w) {
  const int64_t n = w.view.rows, k = w.view.columns;
  std::vector<float> y(rows * n, -1);
  MultiplyTransposed({{{x.data(), k, rows, nullptr}, w.view, {y.data(), n, nullptr}}});
  for (int64_t m = 0; m < rows; ++m) {
    const Row row(w.view.layout, x.data() + m * k, w.view.cut, k);
    for (int64_t j = 0; j < n; ++j) ASSERT_EQ(y[m * n + j], Plain(row, w, j)) << "row " << m << " column " << j;
  }
}

TEST_F(DigitProducts, AreThoseOfPlainLoopsBitForBitInAnyBatch) {
  struct Shape {
    int64_t n, k, row_unit, column_unit;
  };
  for (const Shape& shape : {Shape{64, 64, 0, 0}, Shape{7, 5, 0, 0}, Shape{33, 70, 0, 0}, Shape{160, 64, 40, 0},
                             Shape{64, 100, 0, 20}, Shape{96, 240, 48, 48}, Shape{120, 60, 40, 20}}) {
    for (const WeightLayout layout : kLayouts) {
      std::mt19937 rng(static_cast<uint32_t>(shape.n * 1000 + shape.k));
      const QuantizedMatrix w(Random(rng, shape.n * shape.k), shape.n, shape.k, layout, shape.row_unit,
                              shape.column_unit);
      for (const int64_t rows : {1, 2, 3, 4, 5, 6, 7, 13}) {
        SCOPED_TRACE(testing::Message() << shape.n << " x " << shape.k << " rows " << rows);
        ExpectPlain(Random(rng, rows * shape.k), rows, w);
      }
    }
  }
}

// Levels and digits at their ends, with the same sign and with the other.
TEST_F(DigitProducts, HoldTheLargestSums) {
  constexpr int64_t kN = 32, kK = 64, kRows = 4;
  for (const WeightLayout layout : kLayouts) {
    const float low = layout == WeightLayout::kInt4 ? -8 : -127, high = layout == WeightLayout::kInt4 ? 7 : 127;
    std::vector<float> levels(kN * kK), x(kRows * kK);
    for (int64_t j = 0; j < kN; ++j) {
      for (int64_t k = 0; k < kK; ++k) levels[j * kK + k] = k % 32 == j ? low : j % 2 == 0 ? high : low;
    }
    // 0x7F8080 and 0x807F7F of q's 24 bits are digits of 127 and -128, and the reverse.
    for (int64_t k = 0; k < kK; ++k) {
      x[k] = 1, x[kK + k] = -1, x[2 * kK + k] = k % 32 == 31 ? 1 : 8322944.0f / 8355000;
      x[3 * kK + k] = k % 32 == 31 ? -1 : -8322944.0f / 8355000;
    }
    const QuantizedMatrix w(levels, kN, kK, layout);
    ASSERT_EQ(w.values, levels);
    ExpectPlain(x, kRows, w);
  }
}

}  // namespace
}  // namespace c3po::cpu
