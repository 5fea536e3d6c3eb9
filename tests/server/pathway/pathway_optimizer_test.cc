#include "server/pathway/pathway_optimizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "tests/server/pathway/quadratic.h"

namespace c3po {
namespace {

void ExpectOnSimplex(const Pathway& pathway) {
  for (int l = 0; l < pathway.layers; ++l) {
    double sum = 0;
    for (float w : pathway.Row(l)) {
      EXPECT_GE(w, 0);
      sum += w;
    }
    EXPECT_NEAR(sum, 1, 1e-5);
  }
}

// The step on theta in double, straight from the formula.
std::vector<double> NaiveGradientStep(const Pathway& initial, const std::vector<double>& theta, const Pathway& target,
                                      const std::vector<bool>& core, double rate, double* loss) {
  std::vector<double> w(theta.size()), result = theta;
  *loss = 0;
  for (int l = 0; l < initial.layers; ++l) {
    const size_t begin = size_t(l) * initial.experts, end = begin + initial.experts;
    double sum = 0, mean = 0;
    for (size_t i = begin; i < end; ++i) sum += w[i] = initial.weights[i] * std::exp(theta[i]);
    for (size_t i = begin; i < end; ++i) {
      w[i] /= sum;
      mean += w[i] * (w[i] - target.weights[i]);
      *loss += std::pow(w[i] - target.weights[i], 2) / 2;
    }
    for (size_t i = begin; i < end; ++i) {
      if (core[i]) result[i] -= rate * w[i] * (w[i] - target.weights[i] - mean);
    }
  }
  return result;
}

TEST(GradientDescent, FollowsTheSoftmaxFormulaInDoublePrecision) {
  for (uint32_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 rng(seed);
    const Pathway target = RandomPathway(rng, 3, 8);
    Quadratic objective(target);
    const OptimizationProblem problem = MakeProblem(rng, &objective, 5);
    const std::vector<bool> core = CoreExperts(problem.initial, 5);
    auto optimizer = MakeGradientDescent(problem, {7, 0.8, StepRule::kGradient});
    ASSERT_TRUE(optimizer.ok());
    RunToEnd(**optimizer);
    ASSERT_EQ((*optimizer)->losses().size(), 8u);
    std::vector<double> theta(target.weights.size());
    for (int step = 0; step < 8; ++step) {
      double loss = 0;
      theta = NaiveGradientStep(problem.initial, theta, target, core, 0.8, &loss);
      EXPECT_NEAR((*optimizer)->losses()[step], loss, 1e-6);
    }
    ExpectOnSimplex((*optimizer)->pathway());
  }
}

TEST(GradientDescent, EveryStepRuleLowersASmoothLossAndKeepsTheSimplex) {
  for (const StepRule rule : {StepRule::kGradient, StepRule::kNormalized, StepRule::kAdam}) {
    std::mt19937 rng(7);
    Quadratic objective(RandomPathway(rng, 3, 8));
    auto optimizer = MakeGradientDescent(MakeProblem(rng, &objective, 0), {20, 0.05, rule});
    RunToEnd(**optimizer);
    const std::vector<double>& losses = (*optimizer)->losses();
    EXPECT_LT(losses.back(), losses.front());
    EXPECT_TRUE(std::is_sorted(losses.rbegin(), losses.rend()));
    ExpectOnSimplex((*optimizer)->pathway());
  }
}

TEST(GradientDescent, ReturnsTheBestPathwayWhenALargeStepOvershoots) {
  std::mt19937 rng(3);
  Quadratic objective(RandomPathway(rng, 3, 8));
  auto optimizer = MakeGradientDescent(MakeProblem(rng, &objective, 0), {15, 5.0, StepRule::kNormalized});
  RunToEnd(**optimizer);
  const std::vector<double>& losses = (*optimizer)->losses();
  EXPECT_EQ((*optimizer)->best_loss(), *std::min_element(losses.begin(), losses.end()));
  EXPECT_EQ(*objective.Evaluate((*optimizer)->Override(), nullptr), (*optimizer)->best_loss());
}

TEST(GradientDescent, WithBacktrackingTheLossNeverRisesAndEndsLower) {
  for (const StepRule rule : {StepRule::kGradient, StepRule::kNormalized, StepRule::kAdam}) {
    for (const double rate : {0.01, 1.0, 30.0}) {
      SCOPED_TRACE(testing::Message() << "rule " << static_cast<int>(rule) << " rate " << rate);
      std::mt19937 rng(11);
      Quadratic objective(RandomPathway(rng, 3, 8));
      GradientDescentOptions options{25, rate, rule};
      options.backtrack = true;
      const auto optimizer = *MakeGradientDescent(MakeProblem(rng, &objective, 0), options);
      RunToEnd(*optimizer);
      const std::vector<double>& losses = optimizer->losses();
      EXPECT_TRUE(std::is_sorted(losses.rbegin(), losses.rend()));
      EXPECT_LT(losses.back(), losses.front());
      EXPECT_EQ(optimizer->best_loss(), losses.back());
    }
  }
}

// The same iterates as without patience, up to as many in a row as it allows behind the best one so far.
TEST(GradientDescent, EndsAfterAsManyStepsInVainAsItsPatience) {
  for (const bool backtrack : {false, true}) {
    for (const int patience : {1, 2, 4}) {
      SCOPED_TRACE(testing::Message() << "backtrack " << backtrack << " patience " << patience);
      std::mt19937 rng(11);
      Quadratic objective(RandomPathway(rng, 3, 8));
      const OptimizationProblem problem = MakeProblem(rng, &objective, 0);
      GradientDescentOptions options{40, 8.0, StepRule::kNormalized};
      options.backtrack = backtrack;
      const auto all = *MakeGradientDescent(problem, options);
      options.patience = patience;
      const auto patient = *MakeGradientDescent(problem, options);
      RunToEnd(*all);
      RunToEnd(*patient);
      size_t steps = 0;
      int in_vain = 0;
      double least = all->losses().front();
      while (steps + 1 < all->losses().size() && in_vain < patience) {
        const double loss = all->losses()[++steps];
        in_vain = loss < least ? 0 : in_vain + 1;
        least = std::min(least, loss);
      }
      EXPECT_EQ(patient->losses(), std::vector<double>(all->losses().begin(), all->losses().begin() + steps + 1));
      EXPECT_EQ(patient->best_loss(), least);
      if (patience == 1) {
        EXPECT_LT(steps, 40u);
      }
    }
  }
}

TEST(GradientDescent, ExpertsOutsideTheCoreKeepTheirRatios) {
  std::mt19937 rng(5);
  Quadratic objective(RandomPathway(rng, 3, 8));
  const OptimizationProblem problem = MakeProblem(rng, &objective, 3);
  const std::vector<bool> core = CoreExperts(problem.initial, 3);
  EXPECT_EQ(std::count(core.begin(), core.end(), true), 9);
  auto optimizer = MakeGradientDescent(problem, {10, 0.3, StepRule::kAdam});
  RunToEnd(**optimizer);
  for (int l = 0; l < 3; ++l) {
    std::vector<double> ratios;
    for (int e = 0; e < 8; ++e) {
      if (!core[size_t(l) * 8 + e]) ratios.push_back((*optimizer)->pathway().Row(l)[e] / problem.initial.Row(l)[e]);
    }
    for (double ratio : ratios) EXPECT_NEAR(ratio, ratios.front(), 1e-5);
  }
}

TEST(GradientDescent, UnderRouterShiftTheOverrideIsALogitShiftThatGivesTheSameSoftmax) {
  std::mt19937 rng(11);
  Pathway target(3, 8);
  for (float& s : target.weights) s = std::normal_distribution<float>(0, 1)(rng);
  Quadratic objective(target);
  const OptimizationProblem problem = MakeProblem(rng, &objective, 0, ApplicationRule::kRouterShift);
  auto optimizer = MakeGradientDescent(problem, {10, 0.2, StepRule::kGradient});
  RunToEnd(**optimizer);
  EXPECT_EQ(objective.last_kind, RoutingOverride::Kind::kLogitShift);
  const RoutingOverride routing = (*optimizer)->Override();
  ASSERT_EQ(routing.kind, RoutingOverride::Kind::kLogitShift);
  for (int l = 0; l < 3; ++l) {
    double sum = 0;
    for (int e = 0; e < 8; ++e) sum += problem.initial.Row(l)[e] * std::exp(double{routing.values.Row(l)[e]});
    for (int e = 0; e < 8; ++e) {
      EXPECT_NEAR(problem.initial.Row(l)[e] * std::exp(double{routing.values.Row(l)[e]}) / sum,
                  (*optimizer)->pathway().Row(l)[e], 1e-5);
    }
  }
}

TEST(GradientDescent, ZeroStepsMeasureTheLossAndMoveNothing) {
  std::mt19937 rng(2);
  Quadratic objective(RandomPathway(rng, 3, 8));
  const OptimizationProblem problem = MakeProblem(rng, &objective, 0);
  auto optimizer = MakeGradientDescent(problem, {0, 0.1, StepRule::kAdam});
  RunToEnd(**optimizer);
  EXPECT_EQ((*optimizer)->losses().size(), 1u);
  EXPECT_EQ((*optimizer)->pathway().weights, problem.initial.weights);
}

TEST(GradientDescent, RefusesNegativeStepsAndRates) {
  std::mt19937 rng(2);
  Quadratic objective(RandomPathway(rng, 3, 8));
  EXPECT_FALSE(MakeGradientDescent(MakeProblem(rng, &objective, 0), {-1, 0.1, StepRule::kAdam}).ok());
  EXPECT_FALSE(MakeGradientDescent(MakeProblem(rng, &objective, 0), {1, std::nan(""), StepRule::kAdam}).ok());
  GradientDescentOptions impatient{1, 0.1, StepRule::kAdam};
  impatient.patience = -1;
  EXPECT_FALSE(MakeGradientDescent(MakeProblem(rng, &objective, 0), impatient).ok());
}

TEST(KernelRegression, BlendsWithTheKernelMeanAndPicksTheGridsMinimum) {
  for (uint32_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 rng(seed);
    std::vector<WeightedPathway> neighbors;
    for (int i = 0; i < 4; ++i)
      neighbors.push_back({RandomPathway(rng, 3, 8), std::uniform_real_distribution<double>(0.1, 1)(rng)});
    const Pathway target = RandomPathway(rng, 3, 8);
    Quadratic objective(target);
    const OptimizationProblem problem = MakeProblem(rng, &objective, 0);
    auto optimizer = MakeKernelRegression(problem, neighbors);
    ASSERT_TRUE(optimizer.ok());
    RunToEnd(**optimizer);
    // Naive: every alpha of the grid in double.
    double total = 0, best = 1e300, best_alpha = -1;
    for (const WeightedPathway& n : neighbors) total += n.weight;
    for (int step = 0; step <= 10; ++step) {
      const double alpha = 1 - step / 10.0;
      double loss = 0;
      for (size_t i = 0; i < target.weights.size(); ++i) {
        double mean = 0;
        for (const WeightedPathway& n : neighbors) mean += n.weight * n.pathway.weights[i] / total;
        loss += std::pow(alpha * problem.initial.weights[i] + (1 - alpha) * mean - target.weights[i], 2) / 2;
      }
      if (loss < best - 1e-12) {
        best = loss;
        best_alpha = alpha;
      }
    }
    EXPECT_NEAR((*optimizer)->best_loss(), best, 1e-6);
    EXPECT_NEAR(*(*optimizer)->alpha(), best_alpha, 1e-9);
    ExpectOnSimplex((*optimizer)->pathway());
    EXPECT_EQ(objective.evaluations, 11);
  }
}

TEST(KernelRegression, KeepsTheQuerysOwnPathwayWhenNothingIsBetter) {
  std::mt19937 rng(9);
  OptimizationProblem problem = MakeProblem(rng, nullptr, 0);
  Quadratic objective(problem.initial);
  problem.objective = &objective;
  auto optimizer = MakeKernelRegression(problem, {{RandomPathway(rng, 3, 8), 1.0}});
  RunToEnd(**optimizer);
  EXPECT_EQ(*(*optimizer)->alpha(), 1);
  EXPECT_EQ((*optimizer)->pathway().weights, problem.initial.weights);
}

TEST(ModeFinding, IsTheMeanShiftOfTheFormula) {
  for (uint32_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 rng(seed);
    std::vector<Pathway> references;
    for (int i = 0; i < 12; ++i) references.push_back(RandomPathway(rng, 3, 8));
    const auto nearest = [&](const std::vector<double>& w) {
      std::vector<std::pair<double, size_t>> order;
      for (size_t r = 0; r < references.size(); ++r) {
        double sum = 0;
        for (size_t i = 0; i < w.size(); ++i) sum += std::pow(w[i] - references[r].weights[i], 2);
        order.emplace_back(std::sqrt(sum), r);
      }
      std::sort(order.begin(), order.end());
      order.resize(4);
      return order;
    };
    ModeFindingOptions options{5, 0.3, Kernel::kGaussian, 0.4, {}};
    options.nearest = [&](const Pathway& w) -> absl::StatusOr<std::vector<PathwayAtDistance>> {
      std::vector<PathwayAtDistance> near;
      for (const auto& [distance, r] : nearest({w.weights.begin(), w.weights.end()}))
        near.push_back({references[r], distance});
      return near;
    };
    Quadratic objective(RandomPathway(rng, 3, 8));
    const OptimizationProblem problem = MakeProblem(rng, &objective, 0);
    auto optimizer = MakeModeFinding(problem, options);
    ASSERT_TRUE(optimizer.ok());
    RunToEnd(**optimizer);
    std::vector<double> w(problem.initial.weights.begin(), problem.initial.weights.end());
    for (int step = 0; step < 5; ++step) {
      const auto near = nearest(w);
      double total = 0;
      std::vector<double> mean(w.size());
      for (const auto& [distance, r] : near) {
        const double kernel = std::exp(-distance * distance / (2 * 0.4 * 0.4));
        total += kernel;
        for (size_t i = 0; i < w.size(); ++i) mean[i] += kernel * references[r].weights[i];
      }
      for (size_t i = 0; i < w.size(); ++i) w[i] = 0.3 * w[i] + 0.7 * mean[i] / total;
    }
    for (size_t i = 0; i < w.size(); ++i) EXPECT_NEAR((*optimizer)->pathway().weights[i], w[i], 1e-5);
    EXPECT_EQ((*optimizer)->losses().size(), 2u);
    ExpectOnSimplex((*optimizer)->pathway());
  }
}

TEST(ModeFinding, RefusesAlphaOutsideItsRange) {
  std::mt19937 rng(1);
  ModeFindingOptions options{5, 1.5, Kernel::kGaussian, 0,
                             [](const Pathway&) { return std::vector<PathwayAtDistance>(); }};
  EXPECT_FALSE(MakeModeFinding(MakeProblem(rng, nullptr, 0), options).ok());
}

TEST(Kernels, AreOneAtDistanceZeroWhereTheyAreRadialAndFall) {
  for (const Kernel kernel : {Kernel::kGaussian, Kernel::kMatern, Kernel::kLinear, Kernel::kPolynomial}) {
    double last = 1e9;
    for (double d = 0; d <= 1.4; d += 0.1) {
      const double value = KernelValue(kernel, d, 0.5);
      EXPECT_LE(value, last);
      EXPECT_GE(value, 0);
      last = value;
    }
  }
  EXPECT_DOUBLE_EQ(KernelValue(Kernel::kGaussian, 0, 0.5), 1);
  EXPECT_DOUBLE_EQ(KernelValue(Kernel::kMatern, 0, 0.5), 1);
  EXPECT_NEAR(KernelValue(Kernel::kGaussian, 0.5, 0.5), std::exp(-0.5), 1e-12);
  EXPECT_DOUBLE_EQ(KernelValue(Kernel::kPolynomial, 0, 1), 4);
}

TEST(Kernels, TakeTheFarthestNeighborAsWidthAndNeverAllVanish) {
  EXPECT_THAT(
      KernelValues(Kernel::kGaussian, {0.1, 0.5}, 0),
      testing::ElementsAre(testing::DoubleNear(std::exp(-0.02), 1e-9), testing::DoubleNear(std::exp(-0.5), 1e-9)));
  EXPECT_THAT(KernelValues(Kernel::kGaussian, {1.0, 1.1}, 1e-4), testing::ElementsAre(1, 1));
  EXPECT_THAT(KernelValues(Kernel::kGaussian, {0, 0}, 0), testing::ElementsAre(1, 1));
}

// J(s) for s taken as a shift: no log and no softmax between the iterate and the loss.
TEST(GradientDescent, BeginsAtThePriorAndTakesTheIterateThatHeldOutNeighborsLikeBest) {
  std::mt19937 rng(7);
  Pathway near(3, 8), far(3, 8), start(3, 8);
  std::fill(start.weights.begin(), start.weights.end(), 0.5f);
  std::fill(near.weights.begin(), near.weights.end(), 0.7f);
  std::fill(far.weights.begin(), far.weights.end(), 1.5f);
  Quadratic fitted(far), held_out(near);
  OptimizationProblem problem = MakeProblem(rng, &fitted, 0, ApplicationRule::kRouterShift);
  problem.initial_shift = start;
  problem.validation = &held_out;
  // theta_t = 1.5 - 0.9^t: of 0.5, 0.6, 0.69, 0.771 ... the held-out target 0.7 is nearest to the second iterate.
  auto optimizer = MakeGradientDescent(problem, {6, 0.1, StepRule::kGradient});
  ASSERT_TRUE(optimizer.ok()) << optimizer.status();
  RunToEnd(**optimizer);
  EXPECT_EQ((*optimizer)->selected_step(), 2);
  ASSERT_EQ((*optimizer)->validation_losses().size(), 7u);
  for (float value : (*optimizer)->Override().values.weights) EXPECT_NEAR(value, 0.69, 1e-5);
  EXPECT_NEAR((*optimizer)->best_loss(), 24 * 0.81 * 0.81 / 2, 1e-4);

  auto halved = MakeGradientDescent(problem, {6, 0.1, StepRule::kGradient, 0.5});
  ASSERT_TRUE(halved.ok());
  RunToEnd(**halved);
  for (float value : (*halved)->Override().values.weights) EXPECT_NEAR(value, 0.5 + 0.19 / 2, 1e-5);
}

TEST(GradientDescent, RefusesAPriorOfAnotherShapeOrRuleAndScalesOutsideTheirRange) {
  std::mt19937 rng(8);
  Quadratic objective(RandomPathway(rng, 3, 8));
  OptimizationProblem problem = MakeProblem(rng, &objective, 0);
  EXPECT_FALSE(MakeGradientDescent(problem, {1, 0.1, StepRule::kAdam, 0.0}).ok());
  EXPECT_FALSE(MakeGradientDescent(problem, {1, 0.1, StepRule::kAdam, 1.5}).ok());
  problem.initial_shift = Pathway(3, 8);
  EXPECT_FALSE(MakeGradientDescent(problem, {1, 0.1}).ok());
  problem.rule = ApplicationRule::kRouterShift;
  EXPECT_TRUE(MakeGradientDescent(problem, {1, 0.1}).ok());
  problem.initial_shift = Pathway(2, 8);
  EXPECT_FALSE(MakeGradientDescent(problem, {1, 0.1}).ok());
}

TEST(KernelRegression, AFixedAlphaIsTakenWhateverTheLossSays) {
  std::mt19937 rng(9);
  OptimizationProblem problem = MakeProblem(rng, nullptr, 0);
  Quadratic objective(problem.initial);  // The query's own pathway could not be bettered.
  problem.objective = &objective;
  const std::vector<WeightedPathway> neighbors = {{RandomPathway(rng, 3, 8), 1.0}, {RandomPathway(rng, 3, 8), 3.0}};
  auto optimizer = MakeKernelRegression(problem, neighbors, 0.0);
  ASSERT_TRUE(optimizer.ok());
  RunToEnd(**optimizer);
  EXPECT_EQ((*optimizer)->alpha(), 0.0);
  const Pathway mean = KernelMean(neighbors);
  for (size_t i = 0; i < mean.weights.size(); ++i) {
    EXPECT_NEAR((*optimizer)->pathway().weights[i], mean.weights[i], 1e-6);
  }
  EXPECT_GT((*optimizer)->best_loss(), 0);
  EXPECT_FALSE(MakeKernelRegression(problem, neighbors, 1.5).ok());
}

}  // namespace
}  // namespace c3po
