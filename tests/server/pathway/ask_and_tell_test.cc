// An optimizer that is asked and told beside others finds what its steps find.

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "server/pathway/pathway_optimizer.h"
#include "tests/server/pathway/quadratic.h"

namespace c3po {
namespace {

// One of every kind, the same for the same seed.
std::unique_ptr<PathwayOptimizer> MakeKind(int kind, uint32_t seed, NeighborhoodObjective* objective,
                                           NeighborhoodObjective* validation) {
  std::mt19937 rng(seed);
  OptimizationProblem problem = MakeProblem(rng, objective, 5);
  const std::vector<WeightedPathway> neighbors = {{RandomPathway(rng, 3, 8), 1.0}, {RandomPathway(rng, 3, 8), 3.0}};
  if (kind == 0) return *MakeKernelRegression(problem, neighbors);
  if (kind == 1) return *MakeKernelRegression(problem, neighbors, 0.3);
  if (kind == 2) {
    ModeFindingOptions options{3, 0.3, Kernel::kGaussian, 0.4, {}};
    options.nearest = [near = neighbors[0].pathway](const Pathway&) -> absl::StatusOr<std::vector<PathwayAtDistance>> {
      return std::vector<PathwayAtDistance>{{near, 0.5}};
    };
    return *MakeModeFinding(problem, options);
  }
  GradientDescentOptions options{6, 4.0, StepRule::kNormalized};  // So far that some steps are taken back.
  options.backtrack = kind == 3;
  if (kind != 5) problem.validation = validation;
  return *MakeGradientDescent(problem, options);
}

TEST(PathwayOptimizer, AskedAndToldBesideOthersItFindsWhatItsStepsFind) {
  struct Side {
    Side(int kind, uint32_t seed, const Pathway& target, const Pathway& held_out)
        : objective(target), validation(held_out), optimizer(MakeKind(kind, seed, &objective, &validation)) {}
    Quadratic objective, validation;
    std::unique_ptr<PathwayOptimizer> optimizer;
    bool finished = false;
  };
  std::mt19937 rng(13);
  std::vector<std::unique_ptr<Side>> stepped, told;
  for (int i = 0; i < 12; ++i) {
    const Pathway target = RandomPathway(rng, 3, 8), held_out = RandomPathway(rng, 3, 8);
    for (auto* sides : {&stepped, &told}) {
      sides->push_back(std::make_unique<Side>(i % 6, static_cast<uint32_t>(i), target, held_out));
    }
    RunToEnd(*stepped.back()->optimizer);
  }
  for (bool any = true; any;) {
    any = false;
    std::vector<std::pair<Side*, absl::StatusOr<LossAndGradient>>> results;
    for (const auto& side : told) {
      if (side->finished) continue;
      any = true;
      (void)side->optimizer->Ask();  // Changes nothing.
      if (const auto wanted = side->optimizer->Ask()) {
        results.emplace_back(side.get(), wanted->Run());
        EXPECT_EQ(results.back().second->gradient.weights.empty(), !wanted->want_gradient);
      } else {
        EXPECT_FALSE(*side->optimizer->Tell(nullptr));
      }
    }
    for (auto& [side, result] : results) side->finished = *side->optimizer->Tell(&*result);
  }
  for (size_t i = 0; i < told.size(); ++i) {
    SCOPED_TRACE(testing::Message() << "optimizer " << i);
    const PathwayOptimizer &a = *stepped[i]->optimizer, &b = *told[i]->optimizer;
    EXPECT_EQ(a.losses(), b.losses());
    EXPECT_EQ(a.validation_losses(), b.validation_losses());
    EXPECT_EQ(a.Override().values.weights, b.Override().values.weights);
    EXPECT_EQ(a.selected_step(), b.selected_step());
    EXPECT_EQ(a.best_loss(), b.best_loss());
    EXPECT_EQ(stepped[i]->objective.evaluations, told[i]->objective.evaluations);
    // Held-out neighbors are asked about where there are any, and not after a step that is taken back.
    EXPECT_EQ(told[i]->validation.evaluations > 0, i % 6 == 3 || i % 6 == 4);
  }
  EXPECT_LT(told[3]->validation.evaluations, told[3]->objective.evaluations);
}

// The unit is what Ask says: what is told against it is refused and changes nothing.
TEST(PathwayOptimizer, ToldWhatItDidNotAskForItSaysSoAndGoesOn) {
  for (int kind = 0; kind < 6; ++kind) {
    SCOPED_TRACE(testing::Message() << "kind " << kind);
    std::mt19937 rng(29);
    const Pathway target = RandomPathway(rng, 3, 8), held_out = RandomPathway(rng, 3, 8);
    Quadratic objective(target), validation(held_out), alone_objective(target), alone_validation(held_out);
    const auto alone = MakeKind(kind, 3, &alone_objective, &alone_validation);
    RunToEnd(*alone);
    const auto optimizer = MakeKind(kind, 3, &objective, &validation);
    for (bool finished = false; !finished;) {
      const LossAndGradient wrong{-1, target};
      const auto refused = optimizer->Tell(optimizer->Ask() ? nullptr : &wrong);
      EXPECT_EQ(refused.status().code(), absl::StatusCode::kInternal);
      finished = *OneUnit(*optimizer);
    }
    EXPECT_EQ(optimizer->losses(), alone->losses());
    EXPECT_EQ(optimizer->Override().values.weights, alone->Override().values.weights);
  }
}

}  // namespace
}  // namespace c3po
