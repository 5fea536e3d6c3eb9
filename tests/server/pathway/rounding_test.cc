// What an optimizer makes of a number that is 0 but for rounding, or of two that are equal but for it: nothing.

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "tests/server/pathway/quadratic.h"

namespace c3po {
namespace {

// J(w) = 100 sum_{e in T} c_e w_e / sum_{e in T} w_e in each layer, T its two largest weights: a model that divides the
// selected weights by their sum. Gradients are rounded to float32, as a model's are.
class NormalizedTop2 final : public NeighborhoodObjective {
 public:
  explicit NormalizedTop2(Pathway costs) : costs_(std::move(costs)) {}
  bool weights_are_normalized() const override { return true; }
  absl::StatusOr<double> Evaluate(const RoutingOverride& routing, Pathway* gradient) override {
    const Pathway& w = routing.values;
    if (gradient) *gradient = Pathway(w.layers, w.experts);
    double loss = 0;
    for (int l = 0; l < w.layers; ++l) {
      const std::vector<bool> selected = CoreExperts(w.Rows({l}), 2);
      double total = 0, mean = 0;
      for (int e = 0; e < w.experts; ++e) total += selected[e] ? w.Row(l)[e] : 0;
      for (int e = 0; e < w.experts; ++e) mean += selected[e] ? 100 * costs_.Row(l)[e] * w.Row(l)[e] / total : 0;
      loss += mean;
      for (int e = 0; gradient && e < w.experts; ++e) {
        if (selected[e]) gradient->Row(l)[e] = static_cast<float>((100 * costs_.Row(l)[e] - mean) / total);
      }
    }
    return loss;
  }

 private:
  const Pathway costs_;
};

// Experts that are not selected keep theta = 0: their weights, over the row's normalization, are as they were.
TEST(GradientDescent, DoesNotMoveExpertsThatANormalizingModelDidNotSelect) {
  for (const StepRule rule : {StepRule::kGradient, StepRule::kNormalized, StepRule::kAdam}) {
    for (uint32_t seed = 1; seed <= 5; ++seed) {
      SCOPED_TRACE(testing::Message() << "rule " << static_cast<int>(rule) << " seed " << seed);
      std::mt19937 rng(seed);
      NormalizedTop2 objective(RandomPathway(rng, 3, 8));
      OptimizationProblem problem = MakeProblem(rng, &objective, 0);
      for (int l = 0; l < 3; ++l) {
        for (int e = 0; e < 8; ++e)
          problem.initial.Row(l)[e] = e < 2 ? 0.4f + 0.01f * e : 0.19f / 6 + 0.001f * (e - 4.5f);
      }
      const auto optimizer = *MakeGradientDescent(problem, {10, 0.05, rule});
      RunToEnd(*optimizer);
      EXPECT_LT(optimizer->losses().back(), optimizer->losses().front());
      for (int l = 0; l < 3; ++l) {
        const absl::Span<const float> before = problem.initial.Row(l), after = optimizer->pathway().Row(l);
        // The sum of w0 e^theta over all experts, theta = 0 outside the selected two, whose gradients sum to 0.
        const double scale = after[7] / before[7];
        for (int e = 2; e < 8; ++e) EXPECT_NEAR(after[e] / before[e], scale, 1e-6);
        double moved = 0;
        for (int e = 0; e < 2; ++e) moved += std::log(after[e] / before[e] / scale);
        EXPECT_NEAR(moved, 0, 1e-4);
      }
    }
  }
}

// A loss that no weight changes, as float32 gives it: each evaluation a little lower than the one before.
TEST(KernelRegression, KeepsTheQuerysOwnPathwayWhenRoundingAloneIsBetter) {
  class Flat final : public NeighborhoodObjective {
   public:
    absl::StatusOr<double> Evaluate(const RoutingOverride&, Pathway*) override { return 2 - 1e-7 * ++evaluations; }
    int evaluations = 0;
  };
  std::mt19937 rng(9);
  Flat objective;
  const OptimizationProblem problem = MakeProblem(rng, &objective, 0);
  const auto optimizer = *MakeKernelRegression(problem, {{RandomPathway(rng, 3, 8), 1.0}});
  RunToEnd(*optimizer);
  EXPECT_EQ(*optimizer->alpha(), 1);
  EXPECT_EQ(optimizer->pathway().weights, problem.initial.weights);
}

}  // namespace
}  // namespace c3po
