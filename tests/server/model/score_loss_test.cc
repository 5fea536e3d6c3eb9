// The surrogate loss as arithmetic: against a slow oracle in extended precision, its derivatives against differences.

#include "server/model/score_loss.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

namespace c3po {
namespace {

using Scores = ScoreLoss::Scores;

NeighborCase Case(std::vector<std::vector<int32_t>> continuations, int gold, double weight = 1) {
  return {"", {1}, std::move(continuations), gold, weight};
}

// Sets of choices that several cases have, in orders of their own, and cases that have no partner.
std::vector<NeighborCase> RandomCases(std::mt19937& random, int count) {
  const std::vector<std::vector<std::vector<int32_t>>> sets = {{{1}, {2}}, {{1}, {2}, {3, 4}}, {{5, 6}}, {{1}, {2}}};
  std::vector<NeighborCase> cases;
  for (int i = 0; i < count; ++i) {
    std::vector<std::vector<int32_t>> choices = sets[random() % sets.size()];
    std::shuffle(choices.begin(), choices.end(), random);
    const int gold = static_cast<int>(random() % choices.size());
    cases.push_back(Case(std::move(choices), gold, 0.1 + static_cast<double>(random() % 100) / 50));
  }
  return cases;
}

Scores RandomScores(std::mt19937& random, const std::vector<NeighborCase>& cases) {
  std::uniform_real_distribution<double> uniform(-6, -0.05);
  Scores scores;
  for (const NeighborCase& one : cases) {
    for (scores.emplace_back(); scores.back().size() < one.continuations.size();)
      scores.back().push_back(uniform(random));
  }
  return scores;
}

long double LogSum(const std::vector<double>& scores) {
  long double sum = 0;
  for (const double score : scores) sum += std::exp(static_cast<long double>(score));
  return std::log(sum);
}

// The answer's token among `continuations`, or -1.
int PlaceOf(const std::vector<std::vector<int32_t>>& continuations, const std::vector<int32_t>& choice) {
  const auto found = std::find(continuations.begin(), continuations.end(), choice);
  return found == continuations.end() ? -1 : static_cast<int>(found - continuations.begin());
}

// By the formulas, over all pairs of cases, in extended precision.
long double SlowLoss(SurrogateLoss loss, double trust, const std::vector<NeighborCase>& cases, const Scores& base,
                     const Scores& scores) {
  long double pairs = 0, pair_weights = 0, total = 0, divergence = 0, weights = 0;
  for (size_t i = 0; i < cases.size(); ++i) {
    const NeighborCase& first = cases[i];
    const std::vector<double>&s = scores[i], &s0 = base[i];
    const auto gold = static_cast<size_t>(first.gold);
    const long double k = first.kernel_weight;
    weights += k;
    total -= k * s[gold];
    if (loss != SurrogateLoss::kAnswer && s.size() > 1) total += k * LogSum(s);
    for (size_t c = 0; c < s.size() && s.size() > 1; ++c) {
      const long double log_p0 = s0[c] - LogSum(s0), log_p = s[c] - LogSum(s);
      divergence += k * std::exp(log_p0) * (log_p0 - log_p);
    }
    if (s.size() == 1) {
      const long double q0 = std::exp(static_cast<long double>(s0[0])), q = std::exp(static_cast<long double>(s[0]));
      divergence += k * (q0 * std::log(q0 / q) + (1 - q0) * std::log((1 - q0) / (1 - q)));
    }
    for (size_t j = 0; j < i; ++j) {
      const NeighborCase& second = cases[j];
      std::vector<std::vector<int32_t>> a = first.continuations, b = second.continuations;
      const std::vector<int32_t> own = a[gold], others = b[static_cast<size_t>(second.gold)];
      const int own_there = PlaceOf(b, own), others_here = PlaceOf(a, others);
      std::sort(a.begin(), a.end());
      std::sort(b.begin(), b.end());
      if (a != b || own == others) continue;
      const auto own_at = static_cast<size_t>(own_there), others_at = static_cast<size_t>(others_here);
      const long double margin = s[gold] - s[others_at];
      const long double other_margin = scores[j][own_at] - scores[j][static_cast<size_t>(second.gold)];
      pairs += k * second.kernel_weight * std::log(1 + std::exp(-(margin - other_margin)));
      pair_weights += k * second.kernel_weight;
    }
  }
  const bool over_pairs = loss == SurrogateLoss::kPairs && pair_weights > 0;
  return (over_pairs ? pairs / pair_weights : total / weights) + trust * divergence / weights;
}

constexpr SurrogateLoss kLosses[] = {SurrogateLoss::kAnswer, SurrogateLoss::kChoices, SurrogateLoss::kPairs};

TEST(ScoreLoss, IsTheFormulaAndItsDerivativesAreDifferencesOfIt) {
  for (const SurrogateLoss loss : kLosses) {
    for (const double trust : {0.0, 0.3, 20.0}) {
      for (uint32_t seed = 1; seed <= 30; ++seed) {
        SCOPED_TRACE(testing::Message() << "loss " << int(loss) << " trust " << trust << " seed " << seed);
        std::mt19937 random(seed);
        const std::vector<NeighborCase> cases = RandomCases(random, 1 + static_cast<int>(random() % 12));
        const Scores base = RandomScores(random, cases), scores = RandomScores(random, cases);
        ScoreLoss fast(loss, trust, cases);
        EXPECT_EQ(fast.needs_base(), trust > 0);
        if (trust > 0) fast.TakeBase(base);
        EXPECT_FALSE(fast.needs_base());
        Scores derivatives;
        const double value = fast.Evaluate(scores, derivatives);
        const auto slow = [&](const Scores& at) { return SlowLoss(loss, trust, cases, base, at); };
        EXPECT_NEAR(value, static_cast<double>(slow(scores)), 1e-12 * (1 + std::abs(value)));
        ASSERT_EQ(derivatives.size(), scores.size());
        for (size_t i = 0; i < scores.size(); ++i) {
          ASSERT_EQ(derivatives[i].size(), scores[i].size());
          for (size_t c = 0; c < scores[i].size(); ++c) {
            constexpr double kStep = 1e-5;
            Scores up = scores, down = scores;
            up[i][c] += kStep;
            down[i][c] -= kStep;
            const auto difference = static_cast<double>((slow(up) - slow(down)) / (2 * kStep));
            EXPECT_NEAR(derivatives[i][c], difference, 1e-6 * (1 + trust)) << i << ", " << c;
          }
        }
      }
    }
  }
}

std::vector<NeighborCase> TwoLabels() {
  return {Case({{1}, {2}}, 0, 0.5), Case({{2}, {1}}, 0, 1), Case({{1}, {2}}, 1, 0.25), Case({{1}, {2}}, 0, 0.75)};
}

// What moves the labels of all cases alike is no part of the loss: to the last bit, as these numbers add exactly.
TEST(ScoreLoss, OfPairsDoesNotSeeABiasOfTheLabels) {
  const ScoreLoss loss(SurrogateLoss::kPairs, 0, TwoLabels()), choices(SurrogateLoss::kChoices, 0, TwoLabels());
  EXPECT_EQ(loss.pairs(), 4);  // Two cases answer 1, and two answer 2.
  const Scores scores = {{-1, -2.5}, {-0.25, -3}, {-4, -1.5}, {-2, -2.25}};
  Scores biased = scores, derivatives, of_biased;
  constexpr double kBias[] = {0.75, -1.5};  // of the choices 1 and 2
  for (size_t i = 0; i < scores.size(); ++i) {
    for (size_t c = 0; c < 2; ++c) biased[i][c] += kBias[TwoLabels()[i].continuations[c][0] - 1];
  }
  EXPECT_EQ(loss.Evaluate(scores, derivatives), loss.Evaluate(biased, of_biased));
  EXPECT_EQ(derivatives, of_biased);
  EXPECT_NE(choices.Evaluate(scores, derivatives), choices.Evaluate(biased, of_biased)) << "what choices do see";
  // So no bias has a derivative.
  loss.Evaluate(scores, derivatives);
  double of_label[2] = {0, 0};
  for (size_t i = 0; i < scores.size(); ++i) {
    for (size_t c = 0; c < 2; ++c) of_label[TwoLabels()[i].continuations[c][0] - 1] += derivatives[i][c];
  }
  for (const double sum : of_label) EXPECT_NEAR(sum, 0, 1e-15);
}

TEST(ScoreLoss, OfPairsIsLogTwoWhereCasesDoNotDiffer) {
  const ScoreLoss loss(SurrogateLoss::kPairs, 0, TwoLabels());
  Scores derivatives;
  EXPECT_NEAR(loss.Evaluate({{-1, -2}, {-2, -1}, {-1, -2}, {-1, -2}}, derivatives), std::log(2.0), 1e-15);
}

// A case without a partner does not count, and neither does a pair of equal answers.
TEST(ScoreLoss, OnlyPairsCount) {
  std::vector<NeighborCase> cases = TwoLabels();
  const Scores scores = {{-1, -2.5}, {-0.25, -3}, {-4, -1.5}, {-2, -2.25}};
  Scores derivatives, more_derivatives;
  const double alone = ScoreLoss(SurrogateLoss::kPairs, 0, cases).Evaluate(scores, derivatives);
  cases.push_back(Case({{1}, {3}}, 0));
  cases.push_back(Case({{1}}, 0));
  cases.push_back(Case({{1}, {2}, {3}}, 0));
  Scores more = scores;
  for (const Scores::value_type& extra : Scores{{-1, -3}, {-2}, {-1, -2, -3}}) more.push_back(extra);
  const ScoreLoss loss(SurrogateLoss::kPairs, 0, cases);
  EXPECT_EQ(loss.pairs(), 4);
  EXPECT_NEAR(loss.Evaluate(more, more_derivatives), alone, 1e-15);
  for (size_t i = scores.size(); i < more.size(); ++i) {
    for (const double derivative : more_derivatives[i]) EXPECT_EQ(derivative, 0);
  }
}

TEST(ScoreLoss, WithoutAPairIsThatOfChoices) {
  const std::vector<std::vector<NeighborCase>> without = {{Case({{1}, {2}}, 0)},                       // alone
                                                          {Case({{1}, {2}}, 0), Case({{2}, {1}}, 1)},  // one answer
                                                          {Case({{1}, {2}}, 0), Case({{1}, {3}}, 1)},  // other choices
                                                          {Case({{1}, {2}}, 0), Case({{1}}, 0, 2)},    // none
                                                          {Case({{1}, {2}}, 0), Case({{1}, {2}, {3}}, 1)}};
  std::mt19937 random(3);
  for (const std::vector<NeighborCase>& cases : without) {
    const ScoreLoss pairs(SurrogateLoss::kPairs, 0, cases), choices(SurrogateLoss::kChoices, 0, cases);
    EXPECT_EQ(pairs.pairs(), 0);
    EXPECT_EQ(choices.pairs(), -1);
    EXPECT_EQ(pairs.loss(), SurrogateLoss::kChoices);
    const Scores scores = RandomScores(random, cases);
    Scores derivatives, expected;
    EXPECT_EQ(pairs.Evaluate(scores, derivatives), choices.Evaluate(scores, expected));
    EXPECT_EQ(derivatives, expected);
  }
}

// The same text may be other tokens behind another prompt, and other texts the same tokens.
TEST(ScoreLoss, ChoicesAreToldApartByTheirTextsWhereCasesHaveThem) {
  std::vector<NeighborCase> cases = {Case({{1}, {2}}, 0), Case({{7}, {8, 9}}, 0)};
  cases[0].texts = {" yes", " no"};
  cases[1].texts = {" no", " yes"};
  EXPECT_EQ(ScoreLoss(SurrogateLoss::kPairs, 0, cases).pairs(), 1);
  cases[1].continuations = cases[0].continuations;
  cases[1].texts = {" no", " maybe"};
  EXPECT_EQ(ScoreLoss(SurrogateLoss::kPairs, 0, cases).pairs(), 0);
}

// At the model's own scores the trust region is 0 and flat; elsewhere it is above 0.
TEST(ScoreLoss, TrustHoldsWhereTheModelAloneStands) {
  for (const SurrogateLoss loss : kLosses) {
    for (uint32_t seed = 1; seed <= 20; ++seed) {
      std::mt19937 random(seed);
      const std::vector<NeighborCase> cases = RandomCases(random, 6);
      const Scores base = RandomScores(random, cases), other = RandomScores(random, cases);
      const ScoreLoss free(loss, 0, cases);
      ScoreLoss held(loss, 2, cases);
      held.TakeBase(base);
      Scores derivatives, expected;
      EXPECT_NEAR(held.Evaluate(base, derivatives), free.Evaluate(base, expected), 1e-12);
      for (size_t i = 0; i < base.size(); ++i) {
        for (size_t c = 0; c < base[i].size(); ++c) EXPECT_NEAR(derivatives[i][c], expected[i][c], 1e-12);
      }
      EXPECT_GT(held.Evaluate(other, derivatives), free.Evaluate(other, expected));
    }
  }
}

// Of a case with several choices only their differences count, in the loss and in the trust region: to the last bit.
TEST(ScoreLoss, TheDerivativesOfACasesChoicesCancel) {
  std::mt19937 random(5);
  for (const SurrogateLoss loss : {SurrogateLoss::kChoices, SurrogateLoss::kPairs}) {
    for (int trial = 0; trial < 50; ++trial) {
      const std::vector<NeighborCase> cases = RandomCases(random, 8);
      ScoreLoss held(loss, 3, cases);
      held.TakeBase(RandomScores(random, cases));
      Scores derivatives;
      held.Evaluate(RandomScores(random, cases), derivatives);
      for (size_t i = 0; i < cases.size(); ++i) {
        if (derivatives[i].size() == 1) continue;
        double others = 0;
        for (size_t c = 0; c < derivatives[i].size(); ++c) {
          if (static_cast<int>(c) != cases[i].gold) others -= derivatives[i][c];
        }
        EXPECT_EQ(derivatives[i][static_cast<size_t>(cases[i].gold)], others);
      }
    }
  }
}

TEST(ScoreLoss, IsFiniteAtMarginsThatOverflow) {
  ScoreLoss loss(SurrogateLoss::kPairs, 0, {Case({{1}, {2}}, 0), Case({{1}, {2}}, 1)});
  Scores derivatives;
  EXPECT_EQ(loss.Evaluate({{-1, -2000}, {-2000, -1}}, derivatives), 0);
  EXPECT_EQ(derivatives[0][0], 0);
  EXPECT_EQ(loss.Evaluate({{-2000, -1}, {-1, -2000}}, derivatives), 3998);
  EXPECT_EQ(derivatives, (Scores{{-1, 1}, {1, -1}}));
}

// An answer of one continuation that float32 rounds to certain.
TEST(ScoreLoss, TrustIsFiniteWhereAnAnswerIsCertain) {
  for (const double now : {0.0, -1e-9, -3.0}) {
    for (const double before : {0.0, -1e-9, -3.0}) {
      ScoreLoss loss(SurrogateLoss::kAnswer, 1, {Case({{1, 2}}, 0)});
      loss.TakeBase({{before}});
      Scores derivatives;
      const double value = loss.Evaluate({{now}}, derivatives);
      EXPECT_TRUE(std::isfinite(value) && std::isfinite(derivatives[0][0])) << now << ", " << before;
      if (now == before) {
        EXPECT_NEAR(value, -now, 1e-12);
      }
    }
  }
}

}  // namespace
}  // namespace c3po
