#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "client/eval/statistics.h"

namespace c3po {
namespace {

// The bootstrap as a textbook has it: single items are drawn.
Estimate ItemwiseBootstrap(const std::vector<OutcomeCounts>& strata, int resamples, uint64_t seed) {
  std::mt19937_64 random(seed);
  int64_t items = 0;
  for (const OutcomeCounts& stratum : strata) items += stratum.items;
  std::vector<double> means;
  for (int resample = 0; resample < resamples; ++resample) {
    int64_t sum = 0;
    for (const OutcomeCounts& stratum : strata) {
      std::uniform_int_distribution<int64_t> draw(0, stratum.items - 1);
      for (int64_t i = 0; i < stratum.items; ++i) {
        const int64_t item = draw(random);
        sum += item < stratum.plus ? 1 : item < stratum.plus + stratum.minus ? -1 : 0;
      }
    }
    means.push_back(static_cast<double>(sum) / static_cast<double>(items));
  }
  return {0, Quantile(means, 0.025), Quantile(means, 0.975)};
}

TEST(BootstrapMean, AgreesWithDrawingSingleItems) {
  const std::vector<std::vector<OutcomeCounts>> cases = {
      {{100, 60, 0}}, {{80, 20, 7}}, {{200, 35, 13}, {50, 10, 10}, {300, 2, 1}}, {{40, 0, 9}}};
  for (const auto& strata : cases) {
    const Estimate fast = BootstrapMean(strata);
    const Estimate slow = ItemwiseBootstrap(strata, 10000, 7);
    int64_t items = 0;
    for (const OutcomeCounts& stratum : strata) items += stratum.items;
    // Both are random: ends agree within a quarter of the standard error, or the grid of sums where that is coarser.
    const double tolerance = std::max((slow.high - slow.low) / 16, 1.01 / static_cast<double>(items));
    EXPECT_NEAR(fast.low, slow.low, tolerance) << items;
    EXPECT_NEAR(fast.high, slow.high, tolerance) << items;
  }
}

TEST(BootstrapMean, ValueIsTheMeanOverAllItems) {
  const std::vector<OutcomeCounts> strata = {{10, 4, 1}, {30, 5, 2}};
  EXPECT_DOUBLE_EQ(BootstrapMean(strata).value, 6.0 / 40);
}

TEST(BootstrapMean, IsTheSameEachTimeAndMovesWithTheSeed) {
  const std::vector<OutcomeCounts> strata = {{97, 31, 5}};
  BootstrapOptions options;
  options.resamples = 500;
  const Estimate first = BootstrapMean(strata, options), second = BootstrapMean(strata, options);
  EXPECT_EQ(first.low, second.low);
  EXPECT_EQ(first.high, second.high);
  // Sums are coarse, so that one other seed may give the same ends; ten do not.
  bool moved = false;
  for (int i = 0; i < 10; ++i) {
    ++options.seed;
    const Estimate other = BootstrapMean(strata, options);
    moved = moved || other.low != first.low || other.high != first.high;
  }
  EXPECT_TRUE(moved);
}

TEST(BootstrapMean, EdgesAreFinite) {
  EXPECT_EQ(BootstrapMean({}).high, 0);
  const std::vector<OutcomeCounts> no_items = {{0, 0, 0}}, all_right = {{5, 5, 0}}, all_worse = {{5, 0, 5}};
  EXPECT_EQ(BootstrapMean(no_items).value, 0);
  EXPECT_EQ(BootstrapMean(all_right).low, 1);
  EXPECT_EQ(BootstrapMean(all_right).high, 1);
  EXPECT_EQ(BootstrapMean(all_worse).high, -1);
}

TEST(BootstrapMean, IntervalsCoverTheTruthAboutAsOftenAsTheySay) {
  constexpr uint64_t kSeed = 20261122;
  constexpr int kRuns = 1000;
  std::mt19937_64 random(kSeed);
  BootstrapOptions options;
  options.resamples = 1000;
  int accuracy_covered = 0, difference_covered = 0;
  for (int run = 0; run < kRuns; ++run) {
    // Two tasks of accuracies 0.6 and 0.8; 12 % improved and 5 % worsened.
    std::vector<OutcomeCounts> accuracy = {{150, 0, 0}, {100, 0, 0}}, difference = {{250, 0, 0}};
    accuracy[0].plus = std::binomial_distribution<int64_t>(150, 0.6)(random);
    accuracy[1].plus = std::binomial_distribution<int64_t>(100, 0.8)(random);
    std::discrete_distribution<int> change({0.83, 0.12, 0.05});
    for (int i = 0; i < 250; ++i) {
      const int kind = change(random);
      difference[0].plus += kind == 1;
      difference[0].minus += kind == 2;
    }
    options.seed = kSeed + run;
    const Estimate of_accuracy = BootstrapMean(accuracy, options), of_difference = BootstrapMean(difference, options);
    accuracy_covered += of_accuracy.low <= 0.68 && 0.68 <= of_accuracy.high;
    difference_covered += of_difference.low <= 0.07 && 0.07 <= of_difference.high;
  }
  std::printf("seed %lu: covered %d (accuracy) and %d (difference) of %d\n", kSeed, accuracy_covered,
              difference_covered, kRuns);
  // The standard error of a coverage of 0.95 over 1,000 runs is 0.007; the percentile method falls a little short.
  EXPECT_GE(accuracy_covered, 925);
  EXPECT_LE(accuracy_covered, 975);
  EXPECT_GE(difference_covered, 925);
  EXPECT_LE(difference_covered, 975);
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
