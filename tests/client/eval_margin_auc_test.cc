#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <random>
#include <vector>

#include "client/eval/margin_auc.h"

namespace c3po {
namespace {

// Rows (0, margin): label 1 against label 0.
LabelScores OfMargins(const std::vector<double>& negatives, const std::vector<double>& positives) {
  LabelScores scores;
  scores.labels = 2;
  for (const bool positive : {false, true}) {
    for (const double margin : positive ? positives : negatives) {
      scores.scores.insert(scores.scores.end(), {0, margin});
      scores.gold.push_back(positive ? 1 : 0);
    }
  }
  return scores;
}

// Scores from a few values, so that many margins are equal.
LabelScores RandomScores(size_t labels, size_t texts, double signal, uint64_t seed) {
  std::mt19937_64 random(seed);
  LabelScores scores;
  scores.labels = labels;
  for (size_t i = 0; i < texts; ++i) {
    const int gold = static_cast<int>(random() % labels);
    scores.gold.push_back(gold);
    for (size_t c = 0; c < labels; ++c) {
      scores.scores.push_back(static_cast<double>(random() % 8) + (static_cast<int>(c) == gold ? signal : 0));
    }
  }
  return scores;
}

// The header's definition, by all pairs of questions.
double ByAllPairs(const LabelScores& scores) {
  double sum = 0;
  int pairs = 0;
  for (size_t c = 0; c < scores.labels; ++c) {
    for (size_t d = c + 1; d < scores.labels; ++d) {
      double wins = 0, compared = 0;
      for (size_t i = 0; i < scores.texts(); ++i) {
        for (size_t j = 0; j < scores.texts(); ++j) {
          if (scores.gold[i] != static_cast<int>(c) || scores.gold[j] != static_cast<int>(d)) continue;
          const double left = scores.row(i)[c] - scores.row(i)[d], right = scores.row(j)[c] - scores.row(j)[d];
          wins += left > right ? 1 : left == right ? 0.5 : 0;
          ++compared;
        }
      }
      sum += wins / compared;
      ++pairs;
    }
  }
  return sum / pairs;
}

MarginAuc Measure(const LabelScores& scores) {
  const std::optional<MarginAuc> auc = MeasureMarginAuc(scores);
  EXPECT_TRUE(auc.has_value());
  return auc.value_or(MarginAuc());
}

TEST(MarginAuc, CountsPairsAndHalvesTies) {
  // 6 pairs: 1 > 0 and 1 > -1; 0 = 0 and 0 > -1; -2 below both.
  EXPECT_DOUBLE_EQ(Measure(OfMargins({0, -1}, {1, 0, -2})).value, 3.5 / 6);
  EXPECT_DOUBLE_EQ(Measure(OfMargins({-1, -2}, {1, 2})).value, 1);
  EXPECT_DOUBLE_EQ(Measure(OfMargins({1, 2}, {-1, -2})).value, 0);
  EXPECT_DOUBLE_EQ(Measure(OfMargins({3, 3}, {3, 3, 3})).value, 0.5);
}

TEST(MarginAuc, IsThatOfAllPairs) {
  for (const size_t labels : {2u, 3u, 6u}) {
    for (uint64_t seed = 0; seed < 8; ++seed) {
      SCOPED_TRACE(testing::Message() << labels << " labels, seed " << seed);
      const LabelScores scores = RandomScores(labels, 90, static_cast<double>(seed) / 2, seed);
      EXPECT_NEAR(Measure(scores).value, ByAllPairs(scores), 1e-12);
    }
  }
}

TEST(MarginAuc, NoOffsetAndNoPositiveScaleChangesIt) {
  const LabelScores scores = RandomScores(4, 80, 2, 3);
  LabelScores shifted = scores;
  const double offsets[] = {5, -3, 0, 64};
  for (size_t i = 0; i < shifted.scores.size(); ++i) shifted.scores[i] = 0.25 * shifted.scores[i] + offsets[i % 4];
  EXPECT_EQ(Measure(shifted).value, Measure(scores).value);
  const AucDifference difference = CompareMarginAuc({Measure(shifted)}, {Measure(scores)});
  EXPECT_EQ(difference.difference.low, 0);
  EXPECT_EQ(difference.difference.high, 0);
  EXPECT_EQ(difference.p_value, 1);
}

TEST(MarginAuc, IsAbsentWhereNoTwoLabelsHaveQuestions) {
  EXPECT_FALSE(MeasureMarginAuc(OfMargins({}, {1, 2, 3})));
  EXPECT_FALSE(MeasureMarginAuc(OfMargins({1}, {1, 2, 3})));  // One question has no variance.
  EXPECT_FALSE(MeasureMarginAuc(LabelScores{2, {}, {}}));
  for (const double bad : {std::nan(""), std::numeric_limits<double>::infinity()}) {
    EXPECT_FALSE(MeasureMarginAuc(OfMargins({1, 2}, {bad, 2})));
  }
  // Of three labels the one without questions takes no part; nothing is made up for its pairs.
  LabelScores scores = RandomScores(2, 40, 2, 1);
  LabelScores with_third{3, {}, scores.gold};
  for (size_t i = 0; i < scores.texts(); ++i) {
    with_third.scores.insert(with_third.scores.end(), {scores.row(i)[0], scores.row(i)[1], -7});
  }
  EXPECT_DOUBLE_EQ(Measure(with_third).value, Measure(scores).value);
}

// The structural components written out, without sorting and for two labels only.
double NaiveVariance(const std::vector<double>& negatives, const std::vector<double>& positives) {
  const auto win = [](double positive, double negative) {
    return positive > negative ? 1.0 : positive == negative ? 0.5 : 0.0;
  };
  const auto share = [](const std::vector<double>& values) {
    double mean = 0, squares = 0;
    for (const double each : values) mean += each / static_cast<double>(values.size());
    for (const double each : values) squares += (each - mean) * (each - mean);
    return squares / static_cast<double>(values.size() - 1) / static_cast<double>(values.size());
  };
  std::vector<double> of_positives, of_negatives;
  for (const double positive : positives) {
    double sum = 0;
    for (const double negative : negatives) sum += win(positive, negative);
    of_positives.push_back(sum / static_cast<double>(negatives.size()));
  }
  for (const double negative : negatives) {
    double sum = 0;
    for (const double positive : positives) sum += win(positive, negative);
    of_negatives.push_back(sum / static_cast<double>(positives.size()));
  }
  return share(of_positives) + share(of_negatives);
}

TEST(MarginAuc, TheIntervalIsDeLongs) {
  std::mt19937_64 random(5);
  std::normal_distribution<double> noise(0, 1);
  std::vector<double> negatives, positives;
  for (int i = 0; i < 70; ++i) negatives.push_back(std::round(4 * noise(random)) / 4);
  for (int i = 0; i < 40; ++i) positives.push_back(std::round(4 * (noise(random) + 0.8)) / 4);
  const Estimate estimate = PoolMarginAuc({Measure(OfMargins(negatives, positives))});
  const double reach = 1.959963984540054 * std::sqrt(NaiveVariance(negatives, positives));
  EXPECT_NEAR(estimate.high - estimate.value, reach, 1e-12);
  EXPECT_NEAR(estimate.value - estimate.low, reach, 1e-12);
}

// Two tasks weigh as many questions as they have, and questions drawn again within each label and task vary as the
// interval says, for several labels and for a difference in pairs.
TEST(MarginAuc, TheBootstrapAgrees) {
  std::vector<LabelScores> before = {RandomScores(3, 150, 1, 11), RandomScores(2, 90, 2, 12)}, after = before;
  std::mt19937_64 random(13);
  for (LabelScores& task : after) {
    for (size_t i = 0; i < task.texts(); ++i)
      task.scores[i * task.labels + task.gold[i]] += static_cast<double>(random() % 3);
  }
  const auto pool = [](const std::vector<LabelScores>& tasks) {
    std::vector<MarginAuc> aucs;
    for (const LabelScores& task : tasks) aucs.push_back(Measure(task));
    return aucs;
  };
  const std::vector<MarginAuc> pooled_after = pool(after), pooled_before = pool(before);
  const Estimate estimate = PoolMarginAuc(pooled_after);
  EXPECT_NEAR(estimate.value, (150 * pooled_after[0].value + 90 * pooled_after[1].value) / 240, 1e-12);
  const AucDifference difference = CompareMarginAuc(pooled_after, pooled_before);
  std::vector<double> values, differences;
  for (int draw = 0; draw < 600; ++draw) {
    std::vector<LabelScores> drawn_after = after, drawn_before = before;
    for (size_t t = 0; t < after.size(); ++t) {
      std::vector<std::vector<size_t>> of_label(after[t].labels);
      for (size_t i = 0; i < after[t].texts(); ++i) of_label[after[t].gold[i]].push_back(i);
      for (size_t i = 0; i < after[t].texts(); ++i) {
        const std::vector<size_t>& same = of_label[after[t].gold[i]];
        const size_t from = same[random() % same.size()];
        for (size_t c = 0; c < after[t].labels; ++c) {
          drawn_after[t].scores[i * after[t].labels + c] = after[t].row(from)[c];
          drawn_before[t].scores[i * after[t].labels + c] = before[t].row(from)[c];
        }
      }
    }
    values.push_back(PoolMarginAuc(pool(drawn_after)).value);
    differences.push_back(values.back() - PoolMarginAuc(pool(drawn_before)).value);
  }
  const auto reach = [](const std::vector<double>& drawn) {
    const double mean = Mean(drawn);
    double squares = 0;
    for (const double each : drawn) squares += (each - mean) * (each - mean);
    return 1.959963984540054 * std::sqrt(squares / static_cast<double>(drawn.size() - 1));
  };
  EXPECT_NEAR((estimate.high - estimate.low) / 2 / reach(values), 1, 0.12);
  EXPECT_NEAR((difference.difference.high - difference.difference.low) / 2 / reach(differences), 1, 0.12);
  EXPECT_LT(difference.p_value, 1e-4);
  EXPECT_GT(difference.difference.low, 0);
}

// Of methods that order alike but for chance, one test in twenty finds a difference.
TEST(MarginAuc, TheTestFindsNothingWhereNothingIs) {
  std::mt19937_64 random(17);
  std::normal_distribution<double> noise(0, 1);
  int found = 0;
  constexpr int kTrials = 600;
  for (int trial = 0; trial < kTrials; ++trial) {
    std::vector<double> first[2], second[2];
    for (const int positive : {0, 1}) {
      for (int i = 0; i < 50; ++i) {
        const double shared = noise(random) + positive;
        first[positive].push_back(shared + noise(random));
        second[positive].push_back(shared + noise(random));
      }
    }
    found +=
        CompareMarginAuc({Measure(OfMargins(first[0], first[1]))}, {Measure(OfMargins(second[0], second[1]))}).p_value <
        0.05;
  }
  EXPECT_NEAR(static_cast<double>(found) / kTrials, 0.05, 0.03);
}

TEST(MarginAuc, SeparationIsNoCertainty) {
  const MarginAuc all = Measure(OfMargins({-1, -2, -3, -4, -5}, {1, 2, 3, 4, 5, 6}));
  const MarginAuc none = Measure(OfMargins({1, 2, 3, 4, 5}, {-1, -2, -3, -4, -5, -6}));
  const Estimate estimate = PoolMarginAuc({all});
  EXPECT_EQ(estimate.value, 1);
  EXPECT_EQ(estimate.high, 1);
  EXPECT_NEAR(estimate.low, Proportion(5, 5).low, 1e-12);
  const AucDifference difference = CompareMarginAuc({all}, {none});
  EXPECT_EQ(difference.difference.value, 1);
  EXPECT_LT(difference.difference.low, 0.5);
  EXPECT_DOUBLE_EQ(difference.p_value, 2.0 / 32);
  EXPECT_EQ(PoolMarginAuc({}).value, 0);
}

}  // namespace
}  // namespace c3po
