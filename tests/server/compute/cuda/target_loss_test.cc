#include "server/compute/cuda/target_loss.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "tests/host_cuda/device_array.h"
#include "tests/host_cuda/kernel_run.h"

namespace c3po::cuda {
namespace {

using host_cuda::DeviceArray;

size_t At(int64_t i) { return static_cast<size_t>(i); }

// An objective: cases of continuations of targets, some of which are the same as an earlier one.
// By pairs where these are given: a case's choice c is label c + its own number, modulo how many it has.
struct Objective {
  bool contrasts = true;
  std::vector<int32_t> pair_begin;
  std::vector<PairPlaces> pairs;
  std::vector<double> pair_weights;
  double trust = 0;
  std::vector<double> base;
  std::vector<double> weights;
  std::vector<int32_t> gold, case_begin{0}, target_begin{0}, first_same;
  std::vector<float> logprobs;

  int cases() const { return static_cast<int>(weights.size()); }
  int continuations() const { return static_cast<int>(target_begin.size()) - 1; }
  int targets() const { return static_cast<int>(first_same.size()); }
  int ContinuationOf(int target) const {
    int c = 0;
    while (target_begin[At(c + 1)] <= target) ++c;
    return c;
  }
  void AddCase(const std::vector<int>& lengths, int answer, double weight) {
    for (const int length : lengths) target_begin.push_back(target_begin.back() + length);
    case_begin.push_back(continuations());
    gold.push_back(answer);
    weights.push_back(weight);
    for (int t = targets(); t < target_begin.back(); ++t) first_same.push_back(t);
  }
};

std::vector<float> Derivatives(const Objective& objective) {
  std::vector<int32_t> same_begin{0}, same;
  for (int t = 0; t < objective.targets(); ++t) {
    for (int u = t; u < objective.targets(); ++u) {
      if (objective.first_same[At(u)] == t) same.push_back(objective.ContinuationOf(u));
    }
    same_begin.push_back(static_cast<int32_t>(same.size()));
  }
  const DeviceArray<float> logprobs(objective.logprobs), out(At(objective.targets()));
  const DeviceArray<double> weights(objective.weights), scores(At(objective.continuations())),
      derivatives(At(objective.continuations()));
  const DeviceArray<int32_t> gold(objective.gold), case_begin(objective.case_begin),
      target_begin(objective.target_begin), begin(same_begin), group(same), pair_begin(objective.pair_begin);
  const DeviceArray<PairPlaces> pairs(objective.pairs);
  const DeviceArray<double> pair_weights(objective.pair_weights), base(objective.base);
  TargetLossArgs args;
  args.logprobs = logprobs.data();
  args.cases = objective.cases();
  args.continuations = objective.continuations();
  args.targets = objective.targets();
  args.contrasts = objective.contrasts ? 1 : 0;
  args.case_weights = weights.data();
  args.case_gold = gold.data();
  args.case_begin = case_begin.data();
  args.target_begin = target_begin.data();
  args.same_begin = begin.data();
  args.same = group.data();
  if (!objective.pair_begin.empty()) {
    args.pair_begin = pair_begin.data();
    args.pairs = pairs.data();
    args.pair_weights = pair_weights.data();
  }
  args.trust = objective.trust;
  if (objective.trust > 0) args.base = base.data();
  args.scores = scores.data();
  args.derivatives = derivatives.data();
  args.dlogprobs = out.data();
  EXPECT_EQ(LaunchTargetLoss(args, nullptr), nullptr);
  return out.Values();
}

// Of the softmax over a case's scores, or of its only continuation against all else.
long double Divergence(const std::vector<long double>& scores, const double* base) {
  if (scores.size() == 1) {
    const long double q = std::exp(scores[0]), q0 = base[0];
    return q0 * std::log(q0 / q) + (1 - q0) * std::log((1 - q0) / (1 - q));
  }
  long double sum = 0, result = 0;
  for (const long double score : scores) sum += std::exp(score);
  for (size_t c = 0; c < scores.size(); ++c) result += base[c] * (std::log(base[c] * sum) - scores[c]);
  return result;
}

// J, in extended precision.
long double Loss(const Objective& objective, const std::vector<long double>& logprobs) {
  long double total = 0;
  std::vector<long double> all;
  const bool over_pairs = !objective.pair_begin.empty();
  for (int i = 0; i < objective.cases(); ++i) {
    std::vector<long double> scores;
    for (int c = objective.case_begin[At(i)]; c < objective.case_begin[At(i + 1)]; ++c) {
      const int begin = objective.target_begin[At(c)], end = objective.target_begin[At(c + 1)];
      long double sum = 0;
      for (int t = begin; t < end; ++t) sum += logprobs[At(t)];
      scores.push_back(sum / (end - begin));
    }
    all.insert(all.end(), scores.begin(), scores.end());
    long double loss = over_pairs ? 0 : -scores[At(objective.gold[At(i)])], sum = 0;
    if (objective.contrasts && scores.size() > 1) {
      for (const long double score : scores) sum += std::exp(score);
      loss += std::log(sum);
    }
    if (objective.trust > 0) {
      loss += objective.trust * Divergence(scores, objective.base.data() + objective.case_begin[At(i)]);
    }
    total += objective.weights[At(i)] * loss;
  }
  // Each pair stands with both of its cases.
  for (int i = 0; over_pairs && i < objective.cases(); ++i) {
    for (int p = objective.pair_begin[At(i)]; p < objective.pair_begin[At(i + 1)]; ++p) {
      const PairPlaces at = objective.pairs[At(p)];
      const long double own = all[At(objective.case_begin[At(i)] + objective.gold[At(i)])] - all[At(at.own_other)];
      const long double other = all[At(at.other)] - all[At(at.answer)];
      total += objective.pair_weights[At(p)] * std::log(1 + std::exp(-(own - other))) / 2;
    }
  }
  return total;
}

// By moving the log-probability that targets share.
void ExpectDerivativesOfTheLoss(const Objective& objective) {
  const std::vector<float> actual = Derivatives(objective);
  for (int t = 0; t < objective.targets(); ++t) {
    if (objective.first_same[At(t)] != t) {
      EXPECT_EQ(actual[At(t)], 0) << t;
      continue;
    }
    constexpr long double kStep = 1e-5L;
    std::vector<long double> up(objective.logprobs.begin(), objective.logprobs.end()), down = up;
    for (int u = 0; u < objective.targets(); ++u) {
      if (objective.first_same[At(u)] != t) continue;
      up[At(u)] += kStep;
      down[At(u)] -= kStep;
    }
    const long double expected = (Loss(objective, up) - Loss(objective, down)) / (2 * kStep);
    EXPECT_NEAR(actual[At(t)], static_cast<double>(expected), 2e-7 * std::abs(double{actual[At(t)]}) + 1e-9) << t;
  }
}

// Cases with one and with several continuations, of one token and of many, more than threads; beginnings that are
// shared within a case.
Objective RandomObjective(uint32_t seed, bool contrasts, int cases) {
  std::mt19937 random(seed);
  Objective objective;
  objective.contrasts = contrasts;
  for (int i = 0; i < cases; ++i) {
    std::vector<int> lengths;
    for (uint32_t c = 0; c < 1 + random() % 5; ++c) lengths.push_back(1 + static_cast<int>(random() % 6));
    objective.AddCase(lengths, static_cast<int>(random() % lengths.size()), 0.1 + 0.9 * (random() % 1000) / 1000.0);
    const int first = objective.case_begin[At(i)];
    for (int c = first + 1; c < objective.continuations(); ++c) {
      const int begin = objective.target_begin[At(c)], of_first = objective.target_begin[At(first)];
      if (random() % 2 == 0) objective.first_same[At(begin)] = of_first;
    }
  }
  std::normal_distribution<float> normal(-3, 2);
  objective.logprobs.resize(At(objective.targets()));
  for (int t = 0; t < objective.targets(); ++t) {
    const int first = objective.first_same[At(t)];
    objective.logprobs[At(t)] = first == t ? normal(random) : objective.logprobs[At(first)];
  }
  return objective;
}

// Over pairs of cases with as many continuations and different answers.
void MakePairs(Objective& objective) {
  objective.contrasts = false;
  objective.pair_begin = {0};
  const auto size = [&](int i) { return objective.case_begin[At(i + 1)] - objective.case_begin[At(i)]; };
  const auto label = [&](int i) { return (objective.gold[At(i)] + i) % size(i); };
  const auto place = [&](int i, int of) {
    return objective.case_begin[At(i)] + ((of - i) % size(i) + size(i)) % size(i);
  };
  for (int i = 0; i < objective.cases(); ++i) {
    for (int j = 0; j < objective.cases(); ++j) {
      if (size(i) != size(j) || label(i) == label(j)) continue;
      objective.pairs.push_back({place(i, label(j)), place(j, label(j)), place(j, label(i))});
      objective.pair_weights.push_back(objective.weights[At(i)] * objective.weights[At(j)] / 5);
    }
    objective.pair_begin.push_back(static_cast<int32_t>(objective.pairs.size()));
  }
}

// The model alone is anything; no continuation is almost certain, where differences are too coarse.
void MakeTrust(Objective& objective, double trust) {
  objective.trust = trust;
  for (float& logprob : objective.logprobs) logprob = -0.5f - std::abs(logprob);
  std::mt19937 random(5);
  for (int i = 0; i < objective.cases(); ++i) {
    std::vector<double> drawn;
    double sum = 0;
    for (int c = objective.case_begin[At(i)]; c < objective.case_begin[At(i + 1)]; ++c) {
      drawn.push_back(0.1 + 0.9 * (random() % 1000) / 1000.0);
      sum += drawn.back();
    }
    if (drawn.size() == 1) sum = 1.1;  // Less than certain.
    for (const double one : drawn) objective.base.push_back(one / sum);
  }
}

TEST(CudaTargetLoss, GivesTheDerivativesOfTheLoss) {
  for (const bool contrasts : {true, false}) {
    for (const int cases : {1, 3, 70}) {
      SCOPED_TRACE(testing::Message() << cases << " cases" << (contrasts ? ", contrasted" : ""));
      Objective objective = RandomObjective(static_cast<uint32_t>(cases), contrasts, cases);
      ExpectDerivativesOfTheLoss(objective);
      MakeTrust(objective, 0.7);
      ExpectDerivativesOfTheLoss(objective);
    }
  }
}

TEST(CudaTargetLoss, GivesTheDerivativesOfALossOverPairs) {
  for (const int cases : {5, 9, 64}) {
    SCOPED_TRACE(testing::Message() << cases << " cases");
    Objective objective = RandomObjective(static_cast<uint32_t>(cases), true, cases);
    MakePairs(objective);
    EXPECT_FALSE(objective.pairs.empty());
    ExpectDerivativesOfTheLoss(objective);
    MakeTrust(objective, 3);
    ExpectDerivativesOfTheLoss(objective);
  }
}

TEST(CudaTargetLoss, GivesTheSameBitsInAnyOrderOfThreads) {
  for (const bool over_pairs : {false, true}) {
    Objective objective = RandomObjective(9, true, 40);
    if (over_pairs) {
      MakePairs(objective);
      MakeTrust(objective, 1);
    }
    host_cuda::SetSeed(1);
    const std::vector<float> expected = Derivatives(objective);
    for (uint64_t seed = 2; seed < 8; ++seed) {
      host_cuda::SetSeed(seed);
      EXPECT_EQ(Derivatives(objective), expected);
    }
  }
}

// Two choices of one length that begin alike do not depend on their beginning: exactly.
TEST(CudaTargetLoss, WhatCancelsIsZero) {
  Objective objective;
  objective.AddCase({3, 3, 3}, 1, 0.7);
  for (const int t : {3, 6}) objective.first_same[At(t)] = 0;
  objective.logprobs = {-1.1f, -2.3f, -0.7f, -1.1f, -0.2f, -3, -1.1f, -5, -0.01f};
  const std::vector<float> derivatives = Derivatives(objective);
  EXPECT_EQ(derivatives[0], 0);
  EXPECT_NE(derivatives[1], 0);
  EXPECT_LT(derivatives[4], 0);
  EXPECT_EQ(derivatives[4], derivatives[5]);
}

// The answer's derivative is minus the others', however near to 1 its probability is.
TEST(CudaTargetLoss, KeepsTheDerivativeOfAnAnswerThatIsAlmostCertain) {
  Objective objective;
  objective.AddCase({1, 1}, 0, 1);
  objective.logprobs = {-1e-7f, -60};
  const std::vector<float> derivatives = Derivatives(objective);
  EXPECT_GT(derivatives[1], 0);
  EXPECT_EQ(derivatives[0], -derivatives[1]);
}

// What float32 rounds to certain has a derivative in a trust region, and one that is finite.
TEST(CudaTargetLoss, ACertainAnswerStaysFiniteInATrustRegion) {
  Objective objective;
  objective.AddCase({1}, 0, 1);
  objective.logprobs = {0};
  objective.trust = 1;
  objective.base = {0.5};
  const float derivative = Derivatives(objective)[0];
  EXPECT_TRUE(std::isfinite(derivative));
  EXPECT_NEAR(derivative, 0.5 / 1e-7 - 1, 1e2);
}

TEST(CudaTargetLoss, AnUnlikelyFirstChoiceDoesNotOverflow) {
  Objective objective;
  objective.AddCase({1, 1}, 0, 0.25);
  objective.logprobs = {-2000, -1};
  EXPECT_EQ(Derivatives(objective), (std::vector<float>{-0.25f, 0.25f}));
}

// One case that is not finite leaves the others as they are.
TEST(CudaTargetLoss, WhatIsNoNumberStaysInItsCase) {
  Objective objective;
  objective.AddCase({1, 2}, 0, 0.5);
  objective.AddCase({1, 1}, 1, 0.5);
  objective.logprobs = {std::numeric_limits<float>::quiet_NaN(), -1, -2, -1, -2};
  const std::vector<float> derivatives = Derivatives(objective);
  objective.logprobs[0] = -3;
  const std::vector<float> finite = Derivatives(objective);
  EXPECT_EQ(derivatives[3], finite[3]);
  EXPECT_EQ(derivatives[4], finite[4]);
  EXPECT_NE(finite[3], 0);
}

}  // namespace
}  // namespace c3po::cuda
