#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "server/pathway/pathway_optimizer.h"
#include "tests/server/pathway/quadratic.h"

namespace c3po {
namespace {

TEST(Shifted, IsTheSoftmaxOfTheShiftedLogarithms) {
  std::mt19937 rng(41);
  const Pathway w = RandomPathway(rng, 3, 8);
  std::vector<double> shift(w.weights.size());
  for (double& value : shift) value = std::normal_distribution<double>(0, 2)(rng);
  const Pathway shifted = Shifted(w, shift);
  for (int l = 0; l < 3; ++l) {
    double sum = 0;
    for (int e = 0; e < 8; ++e) sum += std::exp(std::log(double{w.Row(l)[e]}) + shift[size_t(l) * 8 + e]);
    for (int e = 0; e < 8; ++e) {
      const double naive = std::exp(std::log(double{w.Row(l)[e]}) + shift[size_t(l) * 8 + e]) / sum;
      EXPECT_NEAR(shifted.Row(l)[e], naive, 1e-6) << l << ", " << e;
    }
  }
}

// What a report tells of a shift is what descent under ROUTER_SHIFT says it found.
TEST(GradientDescent, ItsPathwayIsTheStartShiftedByWhatItApplies) {
  std::mt19937 rng(43);
  Quadratic objective(RandomPathway(rng, 3, 8));
  OptimizationProblem problem = MakeProblem(rng, &objective, 5, ApplicationRule::kRouterShift);
  auto optimizer = MakeGradientDescent(problem, {8, 0.5, StepRule::kAdam});
  RunToEnd(**optimizer);
  const Pathway shifted = Shifted(problem.initial, (*optimizer)->Override().values.weights);
  for (size_t i = 0; i < shifted.weights.size(); ++i) {
    EXPECT_NEAR(shifted.weights[i], (*optimizer)->pathway().weights[i], 1e-6);
  }
}

}  // namespace
}  // namespace c3po
