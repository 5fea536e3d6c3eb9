#include "index/base/label_offset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace c3po {
namespace {

using ::testing::HasSubstr;

// The header's objective, term by term and in no clever order.
double ObjectiveOf(const LabelScores& scores, double scale, const std::vector<double>& offsets) {
  const size_t labels = scores.labels;
  double squares = 0;
  for (size_t i = 0; i < scores.texts(); ++i) {
    double mean = 0;
    for (const double s : scores.row(i)) mean += s / static_cast<double>(labels);
    for (const double s : scores.row(i)) squares += (s - mean) * (s - mean);
  }
  const double spread = std::sqrt(squares / static_cast<double>(scores.scores.size()));
  double value = kLabelOffsetRidge / 2 * scale * spread * scale * spread;
  for (const double offset : offsets) value += kLabelOffsetRidge / 2 * offset * offset;
  for (size_t i = 0; i < scores.texts(); ++i) {
    double sum = 0;
    for (size_t c = 0; c < labels; ++c) sum += std::exp(scale * scores.row(i)[c] + offsets[c]);
    value -= scale * scores.row(i)[scores.gold[i]] + offsets[scores.gold[i]] - std::log(sum);
  }
  return value;
}

// Scores in which `signal` tells the right label and the first label is preferred by `bias`.
LabelScores RandomScores(size_t labels, size_t texts, double signal, double bias, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> noise(0, 1);
  LabelScores scores;
  scores.labels = labels;
  for (size_t i = 0; i < texts; ++i) {
    const int gold = static_cast<int>(random() % labels);
    scores.gold.push_back(gold);
    for (size_t c = 0; c < labels; ++c) {
      scores.scores.push_back(-3 + noise(random) + (static_cast<int>(c) == gold ? signal : 0) + (c == 0 ? bias : 0));
    }
  }
  return scores;
}

LabelOffset Fit(const LabelScores& scores) {
  const absl::StatusOr<LabelOffset> fitted = FitLabelOffset(scores);
  EXPECT_TRUE(fitted.ok()) << fitted.status();
  return fitted.ok() ? *fitted : LabelOffset();
}

int RightOf(const LabelScores& scores, const LabelOffset& offset) {
  int right = 0;
  for (size_t i = 0; i < scores.texts(); ++i) right += ChooseLabel(offset, scores.row(i)) == scores.gold[i];
  return right;
}

// For two labels b = (t, -t), since the penalty allows no other mean.
TEST(LabelOffset, NoPointOfAFineGridIsBetterForTwoLabels) {
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    SCOPED_TRACE(seed);
    const LabelScores scores = RandomScores(2, 10 + 15 * seed, 0.4 * static_cast<double>(seed), 2, seed);
    const LabelOffset fitted = Fit(scores);
    const double reached = ObjectiveOf(scores, fitted.scale, fitted.offsets);
    double best = std::numeric_limits<double>::infinity(), best_scale = 0, best_offset = 0;
    for (int a = 0; a <= 120; ++a) {
      for (int t = -120; t <= 120; ++t) {
        const double scale = a / 20.0, offset = t / 20.0;
        const double value = ObjectiveOf(scores, scale, {offset, -offset});
        if (value < best) best = value, best_scale = scale, best_offset = offset;
      }
    }
    EXPECT_LE(reached, best + 1e-9);
    EXPECT_NEAR(fitted.scale, best_scale, 0.1);
    EXPECT_NEAR(fitted.offsets[0], best_offset, 0.1);
    EXPECT_NEAR(fitted.offsets[0] + fitted.offsets[1], 0, 1e-9);
  }
}

// Around the solution for several labels nothing is lower, whichever way one goes.
TEST(LabelOffset, NoStepFromTheFitIsBetterForManyLabels) {
  for (const size_t labels : {3u, 5u, 20u}) {
    SCOPED_TRACE(labels);
    const LabelScores scores = RandomScores(labels, 120, 1, 1.5, labels);
    const LabelOffset fitted = Fit(scores);
    const double reached = ObjectiveOf(scores, fitted.scale, fitted.offsets);
    std::mt19937_64 random(labels);
    std::normal_distribution<double> noise(0, 1);
    for (const double length : {1e-4, 1e-2, 1.0}) {
      for (int direction = 0; direction < 200; ++direction) {
        std::vector<double> offsets = fitted.offsets;
        for (double& each : offsets) each += length * noise(random);
        const double scale = std::max(0.0, fitted.scale + length * noise(random));
        EXPECT_GE(ObjectiveOf(scores, scale, offsets), reached - 1e-9);
      }
    }
  }
}

TEST(LabelOffset, TakesOutAPreferenceForALabel) {
  const LabelScores fair = RandomScores(2, 300, 2, 0, 7);
  LabelScores leaning = fair;
  for (size_t i = 0; i < leaning.scores.size(); i += 2) leaning.scores[i] += 5;
  const LabelOffset none{1, {0, 0}}, fitted = Fit(leaning);
  EXPECT_LT(RightOf(leaning, none), 200);
  EXPECT_GE(RightOf(leaning, fitted), RightOf(fair, none) - 6);
  // The same choices as a fit to what has no such preference, but for the penalty on the larger offset.
  const LabelOffset of_fair = Fit(fair);
  int different = 0;
  for (size_t i = 0; i < fair.texts(); ++i) {
    different += ChooseLabel(of_fair, fair.row(i)) != ChooseLabel(fitted, leaning.row(i));
  }
  EXPECT_LE(different, 1);
  EXPECT_NEAR(fitted.scale, of_fair.scale, 0.02 * of_fair.scale);
}

// An offset must not turn a model's order around: the bound is active, and the majority label is left.
TEST(LabelOffset, AScaleBelowZeroIsNoOffset) {
  LabelScores scores;
  scores.labels = 2;
  for (int i = 0; i < 30; ++i) {
    const int gold = i % 3 == 0 ? 0 : 1;
    scores.gold.push_back(gold);
    scores.scores.push_back(gold == 0 ? -2 : -1);  // The wrong label is the likelier one.
    scores.scores.push_back(gold == 0 ? -1 : -2);
  }
  const LabelOffset fitted = Fit(scores);
  EXPECT_EQ(fitted.scale, 0);
  EXPECT_EQ(RightOf(scores, fitted), 20);
  const double reached = ObjectiveOf(scores, 0, fitted.offsets);
  for (int t = -500; t <= 500; ++t) EXPECT_GE(ObjectiveOf(scores, 0, {t / 100.0, -t / 100.0}), reached - 1e-9);
  for (int a = 1; a <= 50; ++a) EXPECT_GE(ObjectiveOf(scores, a / 25.0, fitted.offsets), reached - 1e-9);
}

TEST(LabelOffset, StaysFiniteWhereLabelsSeparateOrAreMissing) {
  LabelScores separated;
  separated.labels = 3;
  separated.gold = {0, 0, 1, 1};  // Nothing has label 2.
  separated.scores = {-1, -9, -9, -1, -9, -9, -9, -1, -9, -9, -1, -9};
  const LabelOffset fitted = Fit(separated);
  EXPECT_EQ(RightOf(separated, fitted), 4);
  EXPECT_TRUE(std::isfinite(fitted.scale));
  EXPECT_GT(fitted.scale, 0);
  for (const double offset : fitted.offsets) EXPECT_LT(std::abs(offset), 50);
  EXPECT_LT(fitted.offsets[2], fitted.offsets[0]);
}

TEST(LabelOffset, ScoresThatTellNothingLeaveTheMajorityLabel) {
  LabelScores scores;
  scores.labels = 2;
  scores.gold = {1, 1, 0};
  scores.scores.assign(6, -4);
  const LabelOffset fitted = Fit(scores);
  EXPECT_EQ(fitted.scale, 0);
  EXPECT_EQ(ChooseLabel(fitted, {-1, -9}), 1);
}

TEST(LabelOffset, RefusesWhatIsNoScore) {
  const LabelScores good = RandomScores(2, 4, 1, 0, 1);
  LabelScores scores = good;
  scores.scores[5] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THAT(FitLabelOffset(scores).status().message(), HasSubstr("score 1 of text 2 is nan"));
  scores.scores[5] = -std::numeric_limits<double>::infinity();
  EXPECT_EQ(FitLabelOffset(scores).status().code(), absl::StatusCode::kInvalidArgument);
  scores = good;
  scores.gold[3] = 2;
  EXPECT_THAT(FitLabelOffset(scores).status().message(), HasSubstr("gold label 2 is not in [0, 2)"));
  scores.gold[3] = -1;
  EXPECT_EQ(FitLabelOffset(scores).status().code(), absl::StatusCode::kInvalidArgument);
  scores = good;
  scores.scores.pop_back();
  EXPECT_THAT(FitLabelOffset(scores).status().message(), HasSubstr("7 scores are not 2 for each of 4 texts"));
  EXPECT_EQ(FitLabelOffset(LabelScores{2, {}, {}}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(FitLabelOffset(LabelScores{1, {-1}, {0}}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(LabelOffset, OfABatchIsTheMeanOfItsScores) {
  const absl::StatusOr<LabelOffset> batch = BatchLabelOffset(2, {-1, -3, -2, -8, -3, -4});
  ASSERT_TRUE(batch.ok()) << batch.status();
  EXPECT_EQ(batch->scale, 1);
  EXPECT_DOUBLE_EQ(batch->offsets[0], -1.5);  // Means -2 and -5: 2 and 5 moved to sum 0.
  EXPECT_DOUBLE_EQ(batch->offsets[1], 1.5);
  EXPECT_EQ(ChooseLabel(*batch, {-1, -3}), 1);
  EXPECT_EQ(ChooseLabel(*batch, {-2, -8}), 0);
  EXPECT_FALSE(BatchLabelOffset(2, {-1, -3}).ok());  // One text less its own mean is nothing.
  EXPECT_FALSE(BatchLabelOffset(2, {-1, -3, -2}).ok());
  EXPECT_FALSE(BatchLabelOffset(1, {-1, -3}).ok());
  EXPECT_FALSE(BatchLabelOffset(2, {-1, -3, std::nan(""), -2}).ok());
}

TEST(LabelOffset, OfEqualScoresTheFirstIsChosen) {
  EXPECT_EQ(ChooseLabel({1, {0, 0, 0}}, {-2, -1, -1}), 1);
  EXPECT_EQ(ChooseLabel({0, {0, 0}}, {-5, -1}), 0);
}

}  // namespace
}  // namespace c3po
