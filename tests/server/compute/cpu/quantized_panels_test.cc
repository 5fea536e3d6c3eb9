// Groups of 8- and 4-bit weights against the format's definition, in double.
#include "server/compute/cpu/quantized_panels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "server/compute/cpu/matrix_products.h"

namespace c3po::cpu {
namespace {

constexpr int kRows = kPanelRows, kColumns = kGroupColumns;

// 16 rows of 32 weights, a column's side by side, as QuantizeGroups takes them.
using Group = std::vector<float>;

class QuantizedGroupsOf : public testing::TestWithParam<WeightLayout> {
 protected:
  WeightLayout layout() const { return GetParam(); }
  int lowest() const { return layout() == WeightLayout::kInt8 ? -127 : -8; }
  int highest() const { return layout() == WeightLayout::kInt8 ? 127 : 7; }

  // The scale of a row and what its weights became.
  struct Row {
    float scale;
    std::vector<float> values;
  };
  // `columns`: what each weighs; empty: all the same.
  Row Quantized(const Group& group, int row, std::vector<float> columns = {}) const {
    QuantizedGroups groups;
    for (float& each : columns) each = std::sqrt(each);
    EXPECT_TRUE(QuantizeGroups(layout(), group.data(), groups, columns.empty() ? nullptr : columns.data()));
    std::vector<char> panel(PanelBytes(layout(), 1));
    StoreGroup(layout(), groups, row, panel.data(), row, 0, 1);
    Row result{0, std::vector<float>(kColumns)};
    WidenGroup(layout(), panel.data(), row, 0, 1, result.values.data());
    const uint32_t bits = uint32_t{groups.scales[row]} << 16;
    std::memcpy(&result.scale, &bits, 4);
    return result;
  }
};

INSTANTIATE_TEST_SUITE_P(Formats, QuantizedGroupsOf, testing::Values(WeightLayout::kInt8, WeightLayout::kInt4),
                         [](const auto& info) {
                           return std::string(info.param == WeightLayout::kInt8 ? "Int8" : "Int4");
                         });

Group Normal(uint32_t seed, float size) {
  std::mt19937 rng(seed);
  Group group(kRows * kColumns);
  for (float& w : group) w = size * std::normal_distribution<float>()(rng);
  return group;
}

// Squares of normal numbers, as activations may be, far from each other.
std::vector<float> Columns(uint32_t seed) {
  std::mt19937 rng(seed);
  std::vector<float> columns(kColumns);
  for (float& each : columns) each = std::exp(3 * std::normal_distribution<float>()(rng));
  return columns;
}

double ErrorOf(const Group& group, int row, const std::vector<double>& values, const std::vector<float>& columns) {
  double error = 0;
  for (int k = 0; k < kColumns; ++k) {
    const double off = group[k * kRows + row] - values[k];
    error += columns[k] * off * off;
  }
  return error;
}

// Every weight is a level of its scale, within half a step of what was stored, but where the last level is below it.
TEST_P(QuantizedGroupsOf, EachWeightIsItsNearestLevel) {
  for (const float size : {1.0f, 3e-9f, 7e20f}) {
    const Group group = Normal(1, size);
    for (int row = 0; row < kRows; ++row) {
      const Row got = Quantized(group, row);
      for (int k = 0; k < kColumns; ++k) {
        const double level = double{got.values[k]} / got.scale, exact = double{group[k * kRows + row]} / got.scale;
        ASSERT_EQ(level, std::nearbyint(level));
        ASSERT_TRUE(level >= lowest() && level <= highest()) << level;
        // In float32 a weight that lies between two levels may be put to either.
        ASSERT_LE(std::abs(level - std::clamp<double>(exact, lowest(), highest())), 0.5 + 1e-4);
      }
    }
  }
}

// A search over ten thousand scales finds the best. Of what it gains over the plain choice, the largest weight at the
// last level, the few candidates get a third at least.
TEST_P(QuantizedGroupsOf, TheSearchGainsAThirdOfWhatThereIsToGain) {
  const Group group = Normal(2, 1);
  for (const bool weighted : {false, true}) {
    const std::vector<float> columns = weighted ? Columns(3) : std::vector<float>(kColumns, 1);
    double ours = 0, best_of_all = 0, plain = 0;
    for (int row = 0; row < kRows; ++row) {
      const Row got = Quantized(group, row, weighted ? columns : std::vector<float>());
      ours += ErrorOf(group, row, {got.values.begin(), got.values.end()}, columns);
      double largest = 0;
      for (int k = 0; k < kColumns; ++k) largest = std::max(largest, std::abs(double{group[k * kRows + row]}));
      const auto error = [&](double scale) {
        std::vector<double> values;
        for (int k = 0; k < kColumns; ++k) {
          const double level = std::nearbyint(double{group[k * kRows + row]} / scale);
          values.push_back(scale * std::clamp<double>(level, lowest(), highest()));
        }
        return ErrorOf(group, row, values, columns);
      };
      double best = std::numeric_limits<double>::infinity();
      for (int i = -5000; i <= 5000; ++i) {
        if (i != 0) best = std::min(best, error(i / 5000.0 * 1.6 * largest / highest()));
      }
      best_of_all += best;
      plain += error(largest / highest());
    }
    EXPECT_GE(ours, 0.99 * best_of_all) << (weighted ? "weighted" : "all the same");
    EXPECT_LE(ours, plain - (plain - best_of_all) / 3)
        << "best " << best_of_all << " plain " << plain << (weighted ? " weighted" : " all the same");
  }
}

// Where one column alone counts, its weight is met but for the scale's rounding.
TEST_P(QuantizedGroupsOf, AColumnThatWeighsAllIsMet) {
  const Group group = Normal(7, 1);
  for (int k = 0; k < kColumns; ++k) {
    std::vector<float> columns(kColumns, 0);
    columns[k] = 3;
    for (int row = 0; row < kRows; ++row) {
      double largest = 0;
      for (int i = 0; i < kColumns; ++i) largest = std::max(largest, std::abs(double{group[i * kRows + row]}));
      const double w = group[k * kRows + row];
      if (std::abs(w) < largest / 4) continue;  // It may be below the first level of every candidate.
      EXPECT_NEAR(Quantized(group, row, columns).values[k], w, std::abs(w) / 256) << "row " << row;
    }
  }
}

TEST_P(QuantizedGroupsOf, OnlyProportionsOfColumnsCount) {
  const Group group = Normal(8, 1);
  const std::vector<float> columns = Columns(9), nothing(kColumns, 0);
  std::vector<float> scaled = columns;
  for (float& each : scaled) each *= 0x1p20f;
  const auto bits = [&](const float* weights) {
    QuantizedGroups groups;
    std::memset(&groups, 0, sizeof(groups));
    EXPECT_TRUE(QuantizeGroups(layout(), group.data(), groups, weights));
    return std::string(reinterpret_cast<const char*>(&groups), sizeof(groups));
  };
  EXPECT_EQ(bits(columns.data()), bits(scaled.data()));
  EXPECT_NE(bits(columns.data()), bits(nullptr));
  EXPECT_EQ(bits(nothing.data()), bits(nullptr));
}

// What the format promises of the error: half a step everywhere, of a step that the largest weight sets.
TEST_P(QuantizedGroupsOf, TheErrorIsAtMostThatOfTheWidestCandidate) {
  const double step = layout() == WeightLayout::kInt8 ? 1 / 123.0 : 1 / 6.5;
  const Group group = Normal(3, 1);
  for (int row = 0; row < kRows; ++row) {
    const Row got = Quantized(group, row);
    double largest = 0, error = 0;
    for (int k = 0; k < kColumns; ++k) largest = std::max(largest, std::abs(double{group[k * kRows + row]}));
    for (int k = 0; k < kColumns; ++k) {
      const double w = group[k * kRows + row];
      error += (got.values[k] - w) * (got.values[k] - w);
    }
    // The best candidate's error is no larger than that of the first one, which clips nothing by more than half a step.
    EXPECT_LE(error, 1.01 * kColumns * step * step / 4 * largest * largest) << "row " << row;
  }
}

TEST_P(QuantizedGroupsOf, WeightsThatAreLevelsStayAsTheyAre) {
  Group group(kRows * kColumns);
  for (int row = 0; row < kRows; ++row) {
    for (int k = 0; k < kColumns; ++k) {
      const int level = k == 0 ? lowest() : lowest() + (k * 7 + row) % (highest() - lowest() + 1);
      group[k * kRows + row] = std::ldexp(static_cast<float>(level), row - 8);
    }
  }
  for (int row = 0; row < kRows; ++row) {
    const Row got = Quantized(group, row);
    for (int k = 0; k < kColumns; ++k) ASSERT_EQ(got.values[k], group[k * kRows + row]) << "row " << row;
  }
}

TEST_P(QuantizedGroupsOf, ZeroAndWhatIsNearlyZeroIsZero) {
  for (const float size : {0.0f, 1e-45f, 0x1p-102f}) {
    Group group(kRows * kColumns, 0.0f);
    for (int k = 0; k < kColumns; ++k) group[k * kRows + 3] = k % 2 == 0 ? size : -size;
    const Row got = Quantized(group, 3);
    for (const float value : got.values) ASSERT_EQ(value, 0) << size;
  }
}

TEST_P(QuantizedGroupsOf, TheLargestNumbersAreHeld) {
  Group group(kRows * kColumns, 0.0f);
  group[5] = -0x1.ffp119f;
  group[kRows + 5] = 0x1p119f;
  const Row got = Quantized(group, 5);
  EXPECT_NEAR(got.values[0] / -0x1.ffp119, 1, 0.01);
  EXPECT_NEAR(got.values[1] / 0x1p119, 1, layout() == WeightLayout::kInt8 ? 0.01 : 0.15);
  EXPECT_EQ(got.values[2], 0);
}

TEST_P(QuantizedGroupsOf, AWeightThatIsNotFiniteOrTooLargeIsRefused) {
  QuantizedGroups groups;
  for (const float bad : {0x1p120f, -std::numeric_limits<float>::max(), std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    for (const int at : {0, 77, kRows * kColumns - 1}) {
      Group group = Normal(4, 1);
      group[at] = bad;
      EXPECT_FALSE(QuantizeGroups(layout(), group.data(), groups)) << bad << " at " << at;
    }
  }
}

TEST_P(QuantizedGroupsOf, LevelsTimesTheirScaleAreTheWidenedWeights) {
  const Group group = Normal(11, 1);
  QuantizedGroups groups;
  ASSERT_TRUE(QuantizeGroups(layout(), group.data(), groups));
  std::set<int> seen;
  for (int row = 0; row < kRows; ++row) {
    const Row got = Quantized(group, row);
    int8_t levels[kColumns];
    LevelsOf(layout(), groups, row, levels);
    for (int k = 0; k < kColumns; ++k) {
      EXPECT_EQ(got.scale * static_cast<float>(levels[k]), got.values[k]) << row << " " << k;
      seen.insert(levels[k]);
    }
  }
  EXPECT_LT(*seen.begin(), lowest() / 2);
  EXPECT_GT(*seen.rbegin(), highest() / 2);
}

TEST_P(QuantizedGroupsOf, EveryWidthOfVectorsGivesTheSameBits) {
  for (uint32_t seed = 1; seed <= 200; ++seed) {
    const Group group = Normal(seed, std::ldexp(1.0f, static_cast<int>(seed) - 100));
    QuantizedGroups four, other;
    const std::vector<float> columns = Columns(seed);
    const float* const weights = seed % 2 == 0 ? columns.data() : nullptr;
    ASSERT_TRUE(QuantizeGroupsBy(4, layout(), group.data(), four, weights));
    for (const int lanes : {8, 16}) {
      if (lanes > WidestLanes()) continue;
      std::memset(&other, 0, sizeof(other));
      ASSERT_TRUE(QuantizeGroupsBy(lanes, layout(), group.data(), other, weights));
      ASSERT_EQ(0, std::memcmp(four.scales, other.scales, sizeof(four.scales))) << "seed " << seed;
      ASSERT_EQ(0, std::memcmp(four.words, other.words, static_cast<size_t>(QuantBytes(layout())))) << "seed " << seed;
    }
  }
}

// With roots of what each column weighs, scales follow these: the error of a column that weighs much falls.
TEST_P(QuantizedGroupsOf, ScalesFollowWhatTheColumnsWeigh) {
  double own = 0, weighted = 0;
  for (uint32_t seed = 1; seed <= 50; ++seed) {
    const Group group = Normal(seed, 1);
    std::vector<float> roots(kColumns, 0.05F);
    roots[seed % kColumns] = 1;
    for (const float* const weighting : {static_cast<const float*>(nullptr), const_cast<const float*>(roots.data())}) {
      QuantizedGroups groups;
      ASSERT_TRUE(QuantizeGroups(layout(), group.data(), groups, weighting));
      for (int row = 0; row < kRows; ++row) {
        std::vector<char> panel(PanelBytes(layout(), 1));
        StoreGroup(layout(), groups, row, panel.data(), row, 0, 1);
        std::vector<float> values(kColumns);
        WidenGroup(layout(), panel.data(), row, 0, 1, values.data());
        double& error = weighting == nullptr ? own : weighted;
        for (int k = 0; k < kColumns; ++k) {
          error += std::pow(double{roots[k]} * (double{group[k * kRows + row]} - values[k]), 2);
        }
      }
    }
  }
  EXPECT_LT(weighted, 0.8 * own);
}

// Words as files pack them hold the levels in the order of their columns.
TEST_P(QuantizedGroupsOf, WordsOfFilesHoldTheSameLevels) {
  const Group group = Normal(9, 1);
  QuantizedGroups groups;
  ASSERT_TRUE(QuantizeGroups(layout(), group.data(), groups));
  const int bits = layout() == WeightLayout::kInt8 ? 8 : 4, in_word = 32 / bits;
  for (int row = 0; row < kRows; ++row) {
    const Row got = Quantized(group, row);
    for (int k = 0; k < kColumns; ++k) {
      const uint32_t packed = PackedOfQuants(layout(), groups.words[k / in_word * kRows + row]);
      const int level = static_cast<int>(packed >> k % in_word * bits & ((1u << bits) - 1)) - (1 << (bits - 1));
      ASSERT_EQ(got.scale * static_cast<float>(level), got.values[k]) << "row " << row << ", column " << k;
    }
  }
  std::mt19937 random(3);
  for (int i = 0; i < 1000; ++i) {
    const uint32_t word = random();
    ASSERT_EQ(PackedOfQuants(layout(), QuantsOfPacked(layout(), word)), word);
  }
}

// Each row and column of a matrix has a place of its own, whatever its units leave over.
TEST(QuantizedCut, EveryRowAndColumnLiesInOnePanelAndGroup) {
  struct Shape {
    int64_t rows, columns, row_unit, column_unit;
  };
  for (const Shape& shape : {Shape{16, 32, 16, 32}, Shape{260, 64, 260, 64}, Shape{80, 33, 40, 33}, Shape{7, 60, 7, 20},
                             Shape{96, 96, 48, 48}, Shape{64, 128, 16, 64}, Shape{1, 1, 1, 1}}) {
    SCOPED_TRACE(testing::Message() << shape.rows << " x " << shape.columns << " by " << shape.row_unit << " x "
                                    << shape.column_unit);
    const QuantizedCut cut = QuantizedCut::Of(shape.rows, shape.columns, shape.row_unit, shape.column_unit);
    std::set<std::pair<int64_t, int64_t>> places, group_places;
    for (int64_t row = 0; row < shape.rows; ++row) {
      const int64_t panel = cut.PanelOf(row), place = row - cut.PanelRow(panel);
      ASSERT_TRUE(place >= 0 && place < cut.RowsOf(panel) && cut.RowsOf(panel) <= kPanelRows);
      ASSERT_LT(panel, cut.Panels(shape.rows));
      places.emplace(panel, place);
    }
    for (int64_t column = 0; column < shape.columns; ++column) {
      const int64_t group = cut.GroupOf(column), place = column - cut.GroupColumn(group);
      ASSERT_TRUE(place >= 0 && place < cut.ColumnsOf(group) && cut.ColumnsOf(group) <= kGroupColumns);
      ASSERT_LT(group, cut.panel_groups);
      group_places.emplace(group, place);
    }
    EXPECT_EQ(static_cast<int64_t>(places.size()), shape.rows);
    EXPECT_EQ(static_cast<int64_t>(group_places.size()), shape.columns);
    int64_t rows = 0, columns = 0;
    for (int64_t panel = 0; panel < cut.Panels(shape.rows); ++panel) rows += cut.RowsOf(panel);
    for (int64_t group = 0; group < cut.panel_groups; ++group) columns += cut.ColumnsOf(group);
    EXPECT_EQ(rows, shape.rows);
    EXPECT_EQ(columns, shape.columns);
  }
}

TEST(QuantizedPanels, TakeEightAndAHalfOrFourAndAHalfBitsAWeight) {
  EXPECT_EQ(PanelBytes(WeightLayout::kInt8, 64) * 8, kPanelRows * 64 * kGroupColumns * 17 / 2);
  EXPECT_EQ(PanelBytes(WeightLayout::kInt4, 64) * 8, kPanelRows * 64 * kGroupColumns * 9 / 2);
}

}  // namespace
}  // namespace c3po::cpu
