#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "client/eval/statistics.h"

namespace c3po {
namespace {

TEST(Proportion, IsWilsonsInterval) {
  // Newcombe, Statistics in Medicine 17, 1998, 857-872, table I, method 3.
  const struct {
    int64_t right, items;
    double low, high;
  } published[] = {{81, 263, 0.2553, 0.3662}, {15, 148, 0.0624, 0.1605}, {0, 20, 0, 0.1611}, {1, 29, 0.0061, 0.1718}};
  for (const auto& row : published) {
    const Estimate estimate = Proportion(row.right, row.items);
    EXPECT_DOUBLE_EQ(estimate.value, static_cast<double>(row.right) / static_cast<double>(row.items));
    EXPECT_NEAR(estimate.low, row.low, 5e-5) << row.right;
    EXPECT_NEAR(estimate.high, row.high, 5e-5) << row.right;
  }
}

// The score test's own definition, searched for without the closed form.
TEST(Proportion, HoldsWhatTheScoreTestDoesNotReject) {
  for (const int64_t items : {1, 5, 27, 400}) {
    for (int64_t right = 0; right <= items; right += std::max<int64_t>(1, items / 5)) {
      const Estimate estimate = Proportion(right, items);
      const double p = estimate.value;
      const auto rejected = [&](double truth) {
        return std::abs(p - truth) > 1.959963984540054 * std::sqrt(truth * (1 - truth) / static_cast<double>(items));
      };
      for (const double step : {1e-6, -1e-6}) {
        if (const double end = estimate.low + step; end > 0) {
          EXPECT_EQ(rejected(end), step < 0) << right << "/" << items;
        }
        if (const double end = estimate.high + step; end < 1) {
          EXPECT_EQ(rejected(end), step > 0) << right << "/" << items;
        }
      }
    }
  }
}

TEST(Proportion, OfAllAndOfNoneIsNoPoint) {
  const Estimate all = Proportion(27, 27), none = Proportion(0, 27);
  EXPECT_EQ(all.high, 1);
  EXPECT_NEAR(all.low, 0.8754, 5e-5);
  EXPECT_EQ(none.low, 0);
  EXPECT_NEAR(none.high, 1 - all.low, 1e-12);
  EXPECT_EQ(Proportion(0, 0).high, 0);
}

TEST(PairedDifference, IsNewcombesInterval) {
  // Newcombe's method 10 written anew in Python, for cells (both, first, second, neither).
  const struct {
    int64_t both, first, second, neither;
    double low, high;
  } made[] = {{36, 12, 2, 0, 0.0569, 0.3404},
              {20, 12, 2, 16, 0.0562, 0.3292},
              {18, 14, 0, 18, 0.1441, 0.3963},
              {29, 1, 0, 0, -0.0834, 0.1667},
              {30, 0, 0, 0, -0.1135, 0.1135}};
  for (const auto& row : made) {
    const int64_t items = row.both + row.first + row.second + row.neither;
    const Estimate estimate = PairedDifference({items, row.both + row.first, row.first, row.second});
    EXPECT_DOUBLE_EQ(estimate.value, static_cast<double>(row.first - row.second) / static_cast<double>(items));
    EXPECT_NEAR(estimate.low, row.low, 6e-5) << row.both;
    EXPECT_NEAR(estimate.high, row.high, 6e-5) << row.both;
    const Estimate turned = PairedDifference({items, row.both + row.second, row.second, row.first});
    EXPECT_NEAR(turned.low, -estimate.high, 1e-12);
    EXPECT_NEAR(turned.high, -estimate.low, 1e-12);
  }
  EXPECT_EQ(PairedDifference({}).high, 0);
}

TEST(Intervals, CoverTheTruthAboutAsOftenAsTheySay) {
  constexpr uint64_t kSeed = 20261122;
  constexpr int kRuns = 4000;
  std::mt19937_64 random(kSeed);
  std::binomial_distribution<int64_t> draw(150, 0.6);
  // 12 % improved, 5 % worsened, half right by both: a difference of 0.07.
  std::discrete_distribution<int> change({0.5, 0.12, 0.05, 0.33});
  int accuracy_covered = 0, difference_covered = 0;
  for (int run = 0; run < kRuns; ++run) {
    const Estimate accuracy = Proportion(draw(random), 150);
    int64_t cells[4] = {};
    for (int i = 0; i < 250; ++i) ++cells[change(random)];
    const Estimate difference = PairedDifference({250, cells[0] + cells[1], cells[1], cells[2]});
    accuracy_covered += accuracy.low <= 0.6 && 0.6 <= accuracy.high;
    difference_covered += difference.low <= 0.07 && 0.07 <= difference.high;
  }
  // The standard error of a coverage of 0.95 over 4,000 runs is 0.0034.
  EXPECT_NEAR(accuracy_covered, 0.95 * kRuns, 0.015 * kRuns) << "seed " << kSeed;
  EXPECT_NEAR(difference_covered, 0.95 * kRuns, 0.015 * kRuns) << "seed " << kSeed;
}

TEST(McNemarTest, ExactBelowTwentyFiveDiscordantPairs) {
  // By hand: 2 * (1 + 10) / 2^10; 2 * (C(6,0) + C(6,1)) / 2^6; 2 / 2^5.
  EXPECT_DOUBLE_EQ(McNemarTest(9, 1).p_value, 22.0 / 1024);
  EXPECT_DOUBLE_EQ(McNemarTest(1, 5).p_value, 14.0 / 64);
  EXPECT_DOUBLE_EQ(McNemarTest(5, 0).p_value, 2.0 / 32);
  EXPECT_TRUE(McNemarTest(9, 1).exact);
  EXPECT_EQ(McNemarTest(0, 0).p_value, 1);
  EXPECT_EQ(McNemarTest(4, 4).p_value, 1);
}

TEST(McNemarTest, ChiSquareWithContinuityCorrectionFromTwentyFiveOn) {
  // By hand: (22 - 1)^2 / 48 = 9.1875; the p-value by table of chi-square with one degree of freedom is 0.00244.
  const McNemarResult result = McNemarTest(35, 13);
  EXPECT_FALSE(result.exact);
  EXPECT_DOUBLE_EQ(result.statistic, 9.1875);
  EXPECT_NEAR(result.p_value, 0.002437, 2e-6);
  EXPECT_DOUBLE_EQ(McNemarTest(13, 35).p_value, result.p_value);
  EXPECT_EQ(McNemarTest(20, 20).p_value, 1);
  // The conventional bound: 3.841 is the 95 % point.
  EXPECT_NEAR(std::erfc(std::sqrt(3.841458820694124 / 2)), 0.05, 1e-12);
}

TEST(McNemarTest, ChiSquareIsCloseToTheExactTest) {
  for (int64_t discordant = kMcNemarExactBelow; discordant <= 80; ++discordant) {
    for (int64_t worsened = 0; 2 * worsened <= discordant; ++worsened) {
      double tail = 0;
      for (int64_t i = 0; i <= worsened; ++i) {
        const double n = static_cast<double>(discordant), k = static_cast<double>(i);
        tail += std::exp(std::lgamma(n + 1) - std::lgamma(k + 1) - std::lgamma(n - k + 1) - n * std::log(2.0));
      }
      EXPECT_NEAR(McNemarTest(discordant - worsened, worsened).p_value, std::min(1.0, 2 * tail), 0.003)
          << discordant << " " << worsened;
    }
  }
}

TEST(Quantile, InterpolatesBetweenOrderStatistics) {
  const std::vector<double> values = {40, 10, 30, 20};
  EXPECT_EQ(Quantile(values, 0), 10);
  EXPECT_EQ(Quantile(values, 1), 40);
  EXPECT_EQ(Quantile(values, 0.5), 25);
  EXPECT_DOUBLE_EQ(Quantile(values, 0.25), 17.5);
  EXPECT_EQ(Quantile({7}, 0.9), 7);
  EXPECT_EQ(Quantile({}, 0.5), 0);
}

}  // namespace
}  // namespace c3po
