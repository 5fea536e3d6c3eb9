// Products with 8- and 4-bit weights: those of activations as they are, with weights widened or activations cut into
// digits, against sums in double over the widened weights; the rounding ones bit for bit against plain loops over the
// format's definition.
#include "server/compute/cpu/quantized_products.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>

#include "server/compute/cpu/softmax_mean.h"
#include "server/compute/cpu/thread_pool.h"
#include "tests/server/compute/cpu/instruction_sets.h"
#include "tests/server/compute/cpu/quantized_matrix.h"

namespace c3po::cpu {
namespace {

const bool kThreadsSet = (ThreadPool::SetThreads(3), true);

class ScopedIntegerUnit {
 public:
  explicit ScopedIntegerUnit(IntegerUnit unit) { SetIntegerUnitForTest(unit); }
  ~ScopedIntegerUnit() { SetIntegerUnitForTest(std::nullopt); }
};

struct Shape {
  int64_t n, k, row_unit, column_unit;
};
// Whole panels and groups; a single one; rows and columns left over; units that are not whole, as experts of 20 and of
// 48 neurons have them.
const Shape kShapes[] = {{64, 64, 0, 0},   {16, 32, 0, 0},    {260, 96, 0, 0},   {7, 5, 0, 0}, {33, 70, 0, 0},
                         {160, 64, 40, 0}, {64, 100, 0, 20},  {96, 240, 48, 48}, {1, 1, 0, 0}, {528, 40, 0, 0},
                         {48, 33, 16, 0},  {120, 60, 40, 20}, {80, 512, 0, 0}};
const int64_t kRows[] = {1, 2, 3, 4, 5, 6, 7, 12, 13, 31};
const WeightLayout kLayouts[] = {WeightLayout::kInt8, WeightLayout::kInt4};

std::string Name(const Shape& shape, WeightLayout layout, int64_t rows) {
  return testing::PrintToString(std::vector<int64_t>{shape.n, shape.k, shape.row_unit, shape.column_unit}) +
         (layout == WeightLayout::kInt8 ? " int8, rows " : " int4, rows ") + std::to_string(rows);
}

// A group's products are a sum of integers; sums of groups follow each other in float32, fused or not.
float PlainRounded(const std::vector<float>& x, const QuantizedMatrix& w, int64_t row, bool fused) {
  const QuantizedCut& cut = w.view.cut;
  const int64_t columns = w.view.columns, groups = cut.Groups(columns);
  std::vector<int64_t> q;
  std::vector<float> scales(groups);
  if (w.view.layout == WeightLayout::kInt4) {
    std::vector<int8_t> bytes(groups * kGroupColumns);
    std::vector<int32_t> offsets(groups);
    RoundRow8(x.data(), cut, columns, bytes.data(), scales.data(), offsets.data());
    q.assign(bytes.begin(), bytes.end());
  } else {
    std::vector<int16_t> halves(groups * kGroupColumns);
    RoundRow16(x.data(), cut, columns, halves.data(), scales.data());
    q.assign(halves.begin(), halves.end());
  }
  const int64_t panel = cut.PanelOf(row);
  const char* const at = static_cast<const char*>(w.view.data) + panel * PanelBytes(w.view.layout, cut.panel_groups);
  float total = 0;
  for (int64_t g = 0; g < groups; ++g) {
    float widened[kGroupColumns];
    WidenGroup(w.view.layout, at, row - cut.PanelRow(panel), g, cut.panel_groups, widened);
    uint16_t half;
    std::memcpy(&half, at + g * kScaleBytes + 2 * (row - cut.PanelRow(panel)), 2);
    const float scale = Widened(half);
    int64_t sum = 0;
    for (int64_t k = 0; k < kGroupColumns; ++k) {
      const int64_t level = scale != 0 ? std::llround(double{widened[k]} / scale) : 0;
      sum += level * q[g * kGroupColumns + k];
    }
    EXPECT_LT(std::abs(sum), int64_t{1} << 31);
    const float part = scales[g] * static_cast<float>(static_cast<int32_t>(sum));
    const volatile float product = scale * part;  // volatile: rounded by itself.
    total = fused ? std::fma(scale, part, total) : total + product;
  }
  return total;
}

bool TargetFuses(const char* name) {
  const std::string target = name;
  return target.find("AVX") != std::string::npos || target.find("NEON") != std::string::npos;
}

class QuantizedProducts : public OnInstructionSet {
 protected:
  // Of the instruction set itself, and where it is the processor's last one, of its unit for integers.
  std::vector<IntegerUnit> Units() const {
    std::vector<IntegerUnit> units = {IntegerUnit::kVectors};
    if (FastestIntegerUnit() == IntegerUnit::kVnni) units.push_back(IntegerUnit::kVnni);
    return units;
  }
  bool Fuses(IntegerUnit unit) const { return unit == IntegerUnit::kVnni || TargetFuses(hwy::TargetName(GetParam())); }
};

INSTANTIATE_TEST_SUITE_P(InstructionSets, QuantizedProducts, testing::ValuesIn(hwy::SupportedAndGeneratedTargets()),
                         [](const auto& target) { return std::string(hwy::TargetName(target.param)); });

TEST_P(QuantizedProducts, RoundingOnesAreThoseOfPlainLoopsBitForBitInAnyBatch) {
  for (const Shape& shape : kShapes) {
    for (const WeightLayout layout : kLayouts) {
      std::mt19937 rng(static_cast<uint32_t>(shape.n * 1000 + shape.k));
      QuantizedMatrix w(Random(rng, shape.n * shape.k), shape.n, shape.k, layout, shape.row_unit, shape.column_unit);
      w.view.rounds_activations = true;
      for (const int64_t rows : kRows) {
        SCOPED_TRACE(Name(shape, layout, rows));
        const std::vector<float> x = Random(rng, rows * shape.k);
        for (const IntegerUnit unit : Units()) {
          const ScopedIntegerUnit scoped(unit);
          std::vector<float> y(rows * shape.n, -1);
          MultiplyTransposed({{{x.data(), shape.k, rows, nullptr}, w.view, {y.data(), shape.n, nullptr}}});
          for (int64_t m = 0; m < rows; ++m) {
            const std::vector<float> row(x.begin() + m * shape.k, x.begin() + (m + 1) * shape.k);
            for (int64_t j = 0; j<shape.n; j += rows> 4 ? 5 : 1) {
              ASSERT_EQ(y[m * shape.n + j], PlainRounded(row, w, j, Fuses(unit))) << "row " << m << " column " << j;
            }
          }
        }
      }
    }
  }
}

// Every level at its end and every activation too: sums of 16 bits, which some units have, come to their ends.
TEST_P(QuantizedProducts, RoundingOnesHoldTheLargestSums) {
  constexpr int64_t kN = 32, kK = 64, kRowsOfX = 8;
  for (const WeightLayout layout : kLayouts) {
    const float low = layout == WeightLayout::kInt4 ? -8 : -127, high = layout == WeightLayout::kInt4 ? 7 : 127;
    std::vector<float> levels(kN * kK), x(kRowsOfX * kK);
    for (int64_t j = 0; j < kN; ++j) {
      // A group of level 7 alone would get a scale that makes it -8: one weight, which differs from row to row, is
      // that.
      for (int64_t k = 0; k < kK; ++k) levels[j * kK + k] = k % 32 == j ? low : j % 2 == 0 ? high : low;
    }
    for (int64_t m = 0; m < kRowsOfX; ++m) {
      for (int64_t k = 0; k < kK; ++k) x[m * kK + k] = (k >> (m / 2)) % 2 == 0 || m < 2 ? 1.0f : -1.0f;
      for (int64_t k = 0; k < kK; ++k) x[m * kK + k] *= m % 2 == 0 ? 1.0f : -1.0f;
    }
    QuantizedMatrix w(levels, kN, kK, layout);
    ASSERT_EQ(w.values, levels);
    w.view.rounds_activations = true;
    for (const IntegerUnit unit : Units()) {
      SCOPED_TRACE(Name({kN, kK, 0, 0}, layout, kRowsOfX) + (unit == IntegerUnit::kVnni ? ", VNNI" : ""));
      const ScopedIntegerUnit scoped(unit);
      std::vector<float> y(kRowsOfX * kN);
      MultiplyTransposed({{{x.data(), kK, kRowsOfX, nullptr}, w.view, {y.data(), kN, nullptr}}});
      for (int64_t m = 0; m < kRowsOfX; ++m) {
        for (int64_t j = 0; j < kN; ++j) {
          double exact = 0;
          for (int64_t k = 0; k < kK; ++k) exact += double{levels[j * kK + k]} * x[m * kK + k];
          ASSERT_NEAR(y[m * kN + j], exact, 1e-6 * kK * 127) << "row " << m << " column " << j;
        }
      }
    }
  }
}

// Of rounding x: half a step of each entry, whose step is the group's largest entry over 32767 or 127; and float32's
// own.
TEST_P(QuantizedProducts, RoundingOnesDifferFromTheWidenedWeightsByWhatRoundingXLeaves) {
  for (const Shape& shape : kShapes) {
    for (const WeightLayout layout : kLayouts) {
      std::mt19937 rng(static_cast<uint32_t>(shape.n * 1000 + shape.k));
      QuantizedMatrix w(Random(rng, shape.n * shape.k), shape.n, shape.k, layout, shape.row_unit, shape.column_unit);
      w.view.rounds_activations = true;
      SCOPED_TRACE(Name(shape, layout, 1));
      std::vector<float> x = Random(rng, shape.k), y(shape.n);
      x[shape.k / 2] *= 50;  // An outlier costs its own group alone.
      MultiplyTransposed({{{x.data(), shape.k, 1, nullptr}, w.view, {y.data(), shape.n, nullptr}}});
      const QuantizedCut& cut = w.view.cut;
      for (int64_t j = 0; j < shape.n; ++j) {
        double exact = 0, bound = 1e-30;
        for (int64_t g = 0; g < cut.Groups(shape.k); ++g) {
          double largest = 0, weights = 0;
          for (int64_t k = cut.GroupColumn(g); k < cut.GroupColumn(g) + cut.ColumnsOf(g); ++k) {
            const double value = w.values[j * shape.k + k];
            exact += x[k] * value;
            bound += 1e-6 * std::abs(x[k] * value);
            largest = std::max<double>(largest, std::abs(x[k]));
            weights += std::abs(value);
          }
          bound += 0.501 * largest / (layout == WeightLayout::kInt4 ? 127 : 32767) * weights;
        }
        ASSERT_NEAR(y[j], exact, bound) << "column " << j;
      }
    }
  }
}

// Sum of products in double, and of their magnitudes, which bounds float32's rounding.
struct Exact {
  double value = 0, size = 0;
  void Add(double a, double b) { value += a * b, size += std::abs(a * b); }
  double bound() const { return 1e-6 * size + 1e-30; }
};

TEST_P(QuantizedProducts, DotFormOfWholeActivationsIsTheNaiveSumAndARowIsBitwiseTheSameAlone) {
  for (const Shape& shape : kShapes) {
    for (const WeightLayout layout : kLayouts) {
      std::mt19937 rng(static_cast<uint32_t>(shape.n * 1000 + shape.k));
      const QuantizedMatrix w(Random(rng, shape.n * shape.k), shape.n, shape.k, layout, shape.row_unit,
                              shape.column_unit);
      for (const int64_t rows : kRows) {
        SCOPED_TRACE(Name(shape, layout, rows));
        const std::vector<float> x = Random(rng, rows * shape.k);
        for (const IntegerUnit unit : Units()) {
          const ScopedIntegerUnit scoped(unit);
          std::vector<float> y(rows * shape.n, -1), alone(shape.n);
          MultiplyTransposed({{{x.data(), shape.k, rows, nullptr}, w.view, {y.data(), shape.n, nullptr}}});
          for (int64_t m = 0; m < rows; ++m) {
            for (int64_t j = 0; j < shape.n; ++j) {
              Exact exact;
              for (int64_t k = 0; k < shape.k; ++k) exact.Add(x[m * shape.k + k], w.values[j * shape.k + k]);
              ASSERT_NEAR(y[m * shape.n + j], exact.value, exact.bound()) << "row " << m << " column " << j;
            }
            MultiplyTransposed(
                {{{x.data() + m * shape.k, shape.k, 1, nullptr}, w.view, {alone.data(), shape.n, nullptr}}});
            ASSERT_EQ(0, std::memcmp(alone.data(), y.data() + m * shape.n, shape.n * sizeof(float))) << "row " << m;
          }
        }
      }
    }
  }
}

TEST_P(QuantizedProducts, OuterFormIsTheNaiveSumAndARowIsBitwiseTheSameAlone) {
  for (const Shape& shape : kShapes) {
    for (const WeightLayout layout : kLayouts) {
      std::mt19937 rng(static_cast<uint32_t>(shape.n * 1000 + shape.k));
      const QuantizedMatrix w(Random(rng, shape.n * shape.k), shape.n, shape.k, layout, shape.row_unit,
                              shape.column_unit);
      for (const int64_t rows : kRows) {
        SCOPED_TRACE(Name(shape, layout, rows));
        const std::vector<float> a = Random(rng, rows * shape.n), start = Random(rng, rows * shape.k);
        std::vector<float> y = start;
        MultiplyAdd({{{a.data(), shape.n, rows, nullptr}, w.view, {y.data(), shape.k, nullptr}}});
        for (int64_t m = 0; m < rows; ++m) {
          for (int64_t k = 0; k < shape.k; ++k) {
            Exact exact;
            exact.Add(1, start[m * shape.k + k]);
            for (int64_t j = 0; j < shape.n; ++j) exact.Add(a[m * shape.n + j], w.values[j * shape.k + k]);
            ASSERT_NEAR(y[m * shape.k + k], exact.value, 2 * exact.bound()) << "row " << m << " column " << k;
          }
          std::vector<float> alone(start.begin() + m * shape.k, start.begin() + (m + 1) * shape.k);
          MultiplyAdd({{{a.data() + m * shape.n, shape.n, 1, nullptr}, w.view, {alone.data(), shape.k, nullptr}}});
          ASSERT_EQ(0, std::memcmp(alone.data(), y.data() + m * shape.k, shape.k * sizeof(float))) << "row " << m;
        }
      }
    }
  }
}

// An expert's rows and columns are views of a whole matrix. Rows of x and y by index, as experts take them.
TEST_P(QuantizedProducts, OfSomeRowsAndColumnsAreThoseOfTheWhole) {
  constexpr int64_t kExperts = 3, kNeurons = 20, kHidden = 70, kWidth = kExperts * kNeurons;
  for (const WeightLayout layout : kLayouts) {
    for (const bool rounds : {false, true}) {
      std::mt19937 rng(9);
      QuantizedMatrix in(Random(rng, kExperts * 2 * kNeurons * kHidden), kExperts * 2 * kNeurons, kHidden, layout,
                         2 * kNeurons, 0);
      QuantizedMatrix out(Random(rng, kHidden * kWidth), kHidden, kWidth, layout, 0, kNeurons);
      in.view.rounds_activations = out.view.rounds_activations = rounds;
      const std::vector<float> x = Random(rng, 4 * kHidden), between = Random(rng, kWidth);
      std::vector<float> whole(kExperts * 2 * kNeurons), sums(kHidden, 0.0f);
      MultiplyTransposed({{{x.data() + 2 * kHidden, kHidden, 1, nullptr}, in.view, {whole.data(), 0, nullptr}}});
      for (int64_t e = 0; e < kExperts; ++e) {
        const int64_t row = 2, begin = e * 2 * kNeurons;
        std::vector<float> part(2 * kNeurons), own(kHidden), back(kNeurons, 0.0f), naive(kNeurons, 0.0f);
        MultiplyTransposed({{{x.data(), kHidden, 1, &row},
                             in.view.Rows(begin, begin + 2 * kNeurons),
                             {part.data(), 2 * kNeurons, nullptr}}});
        EXPECT_EQ(0, std::memcmp(part.data(), whole.data() + begin, part.size() * sizeof(float)));
        const WeightView down = out.view.Columns(e * kNeurons, (e + 1) * kNeurons);
        MultiplyTransposed({{{between.data() + e * kNeurons, kNeurons, 1, nullptr}, down, {own.data(), 0, nullptr}}});
        std::vector<float> copied(kNeurons);
        for (int64_t j = 0; j < kHidden; ++j) {
          sums[j] += own[j];
          CopyQuantizedRow(down, j, copied.data());
          for (int64_t k = 0; k < kNeurons; ++k) ASSERT_EQ(copied[k], out.values[j * kWidth + e * kNeurons + k]);
        }
        MultiplyAdd({{{x.data(), kHidden, 1, nullptr}, down, {back.data(), kNeurons, nullptr}}});
        for (int64_t k = 0; k < kNeurons; ++k) {
          Exact exact;
          for (int64_t j = 0; j < kHidden; ++j) exact.Add(x[j], out.values[j * kWidth + e * kNeurons + k]);
          ASSERT_NEAR(back[k], exact.value, exact.bound());
        }
      }
      std::vector<float> all(kHidden);
      MultiplyTransposed({{{between.data(), kWidth, 1, nullptr}, out.view, {all.data(), 0, nullptr}}});
      for (int64_t j = 0; j < kHidden; ++j) {
        Exact exact;
        for (int64_t k = 0; k < kWidth; ++k) exact.Add(between[k], out.values[j * kWidth + k]);
        ASSERT_NEAR(all[j], sums[j], 4 * exact.bound()) << "rounds " << rounds;
      }
    }
  }
}

// Not a number meets every output of its row and no other row.
TEST_P(QuantizedProducts, WhatIsNotANumberStaysVisibleInItsRow) {
  std::mt19937 rng(11);
  for (const WeightLayout layout : kLayouts) {
    QuantizedMatrix w(Random(rng, 48 * 64), 48, 64, layout);
    std::vector<float> a = Random(rng, 2 * 48), back(2 * 64);
    a[40] = std::numeric_limits<float>::quiet_NaN();
    MultiplyAdd({{{a.data(), 48, 2, nullptr}, w.view, {back.data(), 64, nullptr}}});
    for (int64_t k = 0; k < 64; ++k) {
      EXPECT_TRUE(std::isnan(back[k]));
      EXPECT_FALSE(std::isnan(back[64 + k]));
    }
    for (const auto& [bad, rounds] : {std::pair{std::numeric_limits<float>::quiet_NaN(), true},
                                      std::pair{std::numeric_limits<float>::infinity(), true},
                                      std::pair{std::numeric_limits<float>::quiet_NaN(), false}}) {
      w.view.rounds_activations = rounds;
      std::vector<float> x = Random(rng, 2 * 64), y(2 * 48), alone(48);
      x[40] = bad;
      MultiplyTransposed({{{x.data(), 64, 2, nullptr}, w.view, {y.data(), 48, nullptr}}});
      MultiplyTransposed({{{x.data() + 64, 64, 1, nullptr}, w.view, {alone.data(), 48, nullptr}}});
      for (int64_t j = 0; j < 48; ++j) {
        EXPECT_TRUE(std::isnan(y[j]));
        EXPECT_EQ(y[48 + j], alone[j]);
      }
    }
  }
}

// The LM head as an objective reads it, of a vocabulary that is no multiple of 16, and in several blocks. Passes in
// turn go over it in either direction.
TEST_P(QuantizedProducts, SoftmaxMeanOverAQuantizedHeadIsThatOfItsNumbers) {
  constexpr int64_t kTokens = 1636, kHidden = 64, kRowsOfX = 3;
  std::mt19937 rng(13);
  const QuantizedMatrix head(Random(rng, kTokens * kHidden), kTokens, kHidden, WeightLayout::kInt8);
  const std::vector<float> x = Random(rng, kRowsOfX * kHidden);
  for (const IntegerUnit unit : Units()) {
    const ScopedIntegerUnit scoped(unit);
    std::vector<float> tops(kRowsOfX), means(kRowsOfX * kHidden), again(means.size());
    std::vector<double> sums(kRowsOfX);
    SoftmaxMean({x.data(), kHidden, kRowsOfX, nullptr}, head.view, 1, tops.data(), sums.data(), means.data());
    SoftmaxMean({x.data(), kHidden, kRowsOfX, nullptr}, head.view, 1, tops.data(), sums.data(), again.data());
    EXPECT_EQ(means, again);
    for (int64_t m = 0; m < kRowsOfX; ++m) {
      std::vector<double> mean(kHidden, 0.0);
      double total = 0;
      for (int64_t t = 0; t < kTokens; ++t) {
        double logit = 0;
        for (int64_t k = 0; k < kHidden; ++k) logit += double{x[m * kHidden + k]} * head.values[t * kHidden + k];
        const double share = std::exp(logit - tops[m]);
        total += share;
        for (int64_t k = 0; k < kHidden; ++k) mean[k] += share * head.values[t * kHidden + k];
      }
      EXPECT_NEAR(sums[m], total, 1e-4 * total);
      for (int64_t k = 0; k < kHidden; ++k) EXPECT_NEAR(means[m * kHidden + k], mean[k] / total, 1e-4);
    }
  }
}

TEST(IntegerUnit, IsTheProcessorsOwnUnlessATestChooses) {
  const IntegerUnit own = FastestIntegerUnit();
  SetIntegerUnitForTest(IntegerUnit::kVectors);
  EXPECT_EQ(FastestIntegerUnit(), IntegerUnit::kVectors);
  SetIntegerUnitForTest(std::nullopt);
  EXPECT_EQ(FastestIntegerUnit(), own);
}

}  // namespace
}  // namespace c3po::cpu
