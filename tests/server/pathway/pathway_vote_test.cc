// A vote, against separate descents and their mean.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <vector>

#include "server/pathway/pathway_optimizer.h"
#include "tests/server/pathway/quadratic.h"

namespace c3po {
namespace {

// What a vote is over, the same for the same seed.
struct Ballot {
  Ballot(uint32_t seed, int parts, ApplicationRule rule, bool held_out) : rng(seed) {
    problem = MakeProblem(rng, nullptr, 5, rule);
    for (int i = 0; i < parts; ++i) {
      objectives.push_back(std::make_unique<Quadratic>(RandomPathway(rng, 3, 8)));
      of.push_back({objectives.back().get(), 0.5 + i});
    }
    if (held_out) {
      // Near what the parts' mean is, so that the mean is better than the start.
      validation = std::make_unique<Quadratic>(RandomPathway(rng, 3, 8));
      problem.validation = validation.get();
    }
  }
  double LossAt(const RoutingOverride& routing) {
    double sum = 0, weights = 0;
    for (const VotePart& part : of) {
      sum += part.weight * *part.objective->Evaluate(routing, nullptr);
      weights += part.weight;
    }
    return sum / weights;
  }

  std::mt19937 rng;
  std::vector<std::unique_ptr<Quadratic>> objectives;
  std::unique_ptr<Quadratic> validation;
  std::vector<VotePart> of;
  OptimizationProblem problem;
};

GradientDescentOptions Options(int seed) {
  GradientDescentOptions options{5, seed % 2 == 0 ? 0.3 : 3.0, StepRule::kNormalized};
  options.backtrack = seed % 3 == 0;  // So that parts take different numbers of evaluations.
  options.patience = seed % 4 == 0 ? 2 : 0;
  options.step_scale = seed % 5 == 0 ? 0.5 : 1;
  return options;
}

// Every evaluation that can run beside others does.
void RunSideBySide(PathwayOptimizer& optimizer, std::vector<size_t>& sizes) {
  for (int i = 0; i < 1000; ++i) {
    std::vector<LossAndGradient> results;
    for (const Evaluation& evaluation : optimizer.AskAll()) results.push_back(*evaluation.Run());
    sizes.push_back(results.size());
    const auto finished = optimizer.TellAll(results);
    ASSERT_TRUE(finished.ok()) << finished.status();
    if (*finished) return;
  }
  FAIL() << "did not finish";
}

TEST(PathwayVote, IsTheMeanOfSeparateDescents) {
  int means = 0, starts = 0;
  for (int seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    const int parts = 1 + seed % 4;
    const ApplicationRule rule = seed % 2 == 0 ? ApplicationRule::kRouterShift : ApplicationRule::kEveryNewToken;
    Ballot ballot(static_cast<uint32_t>(seed), parts, rule, seed % 3 != 2),
        same(static_cast<uint32_t>(seed), parts, rule, seed % 3 != 2);
    std::vector<double> sum(ballot.problem.initial.weights.size());
    RoutingOverride start;
    int64_t steps = 0;
    for (const VotePart& part : ballot.of) {
      OptimizationProblem own = ballot.problem;
      own.objective = part.objective;
      const auto descent = *MakeGradientDescent(own, Options(seed));
      start = descent->Override();
      RunToEnd(*descent);
      steps += descent->steps_taken();
      const RoutingOverride found = descent->Override();
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += double{found.values.weights[i]} / parts;
    }
    RoutingOverride mean = start;
    for (size_t i = 0; i < sum.size(); ++i) mean.values.weights[i] = static_cast<float>(sum[i]);

    const auto vote = *MakePathwayVote(same.problem, same.of, Options(seed));
    EXPECT_EQ(vote->Override().values.weights, start.values.weights);
    std::vector<size_t> sizes;
    RunSideBySide(*vote, sizes);
    EXPECT_EQ(sizes.front(), static_cast<size_t>(parts));
    EXPECT_EQ(sizes.back(), static_cast<size_t>(parts) + (same.validation != nullptr ? 1 : 0));
    EXPECT_EQ(vote->steps_taken(), steps);
    ASSERT_EQ(vote->losses().size(), 2u);
    EXPECT_NEAR(vote->losses()[0], ballot.LossAt(start), 1e-6);
    EXPECT_NEAR(vote->losses()[1], ballot.LossAt(mean), 1e-6);
    double before = vote->losses()[0], after = vote->losses()[1];
    EXPECT_EQ(vote->validation_losses().empty(), same.validation == nullptr);
    if (same.validation != nullptr) {
      before = vote->validation_losses()[0];
      after = vote->validation_losses()[1];
      EXPECT_NEAR(before, *ballot.validation->Evaluate(start, nullptr), 1e-6);
      EXPECT_NEAR(after, *ballot.validation->Evaluate(mean, nullptr), 1e-6);
    }
    EXPECT_EQ(*vote->selected_step(), after < before ? 1 : 0);
    EXPECT_EQ(vote->best_loss(), vote->losses()[static_cast<size_t>(*vote->selected_step())]);
    const RoutingOverride found = vote->Override();
    EXPECT_EQ(found.kind, start.kind);
    EXPECT_EQ(found.layers, start.layers);
    const RoutingOverride& expected = after < before ? mean : start;
    ++(after < before ? means : starts);
    for (size_t i = 0; i < sum.size(); ++i) EXPECT_NEAR(found.values.weights[i], expected.values.weights[i], 1e-6);
    for (int l = 0; l < 3; ++l) {
      double row = 0;
      for (const float w : vote->pathway().Row(l)) row += w;
      EXPECT_NEAR(row, 1, 1e-5);
    }
  }
  EXPECT_GT(means, 10);
  EXPECT_GT(starts, 0);
}

// One evaluation at a time it finds what it finds side by side.
TEST(PathwayVote, FindsTheSameOneByOne) {
  for (int seed = 1; seed <= 12; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Ballot ballot(static_cast<uint32_t>(seed), 3, ApplicationRule::kRouterShift, true),
        same(static_cast<uint32_t>(seed), 3, ApplicationRule::kRouterShift, true);
    const auto alone = *MakePathwayVote(ballot.problem, ballot.of, Options(seed)),
               together = *MakePathwayVote(same.problem, same.of, Options(seed));
    RunToEnd(*alone);
    std::vector<size_t> sizes;
    RunSideBySide(*together, sizes);
    EXPECT_EQ(alone->Override().values.weights, together->Override().values.weights);
    EXPECT_EQ(alone->losses(), together->losses());
    EXPECT_EQ(alone->validation_losses(), together->validation_losses());
    int evaluations = ballot.validation->evaluations;
    for (const auto& objective : ballot.objectives) evaluations += objective->evaluations;
    EXPECT_LE(2 * sizes.size(), static_cast<size_t>(evaluations));  // Three at a time, as long as none has finished.
  }
}

TEST(PathwayVote, BeginsAtThePriorAndStaysThereWhereNothingIsBetter) {
  Ballot ballot(3, 2, ApplicationRule::kRouterShift, true);
  ballot.problem.initial_shift = Pathway(3, 8);
  for (float& value : ballot.problem.initial_shift.weights) value = 0.25f;
  GradientDescentOptions options{0, 0.1, StepRule::kGradient};
  const auto vote = *MakePathwayVote(ballot.problem, ballot.of, options);
  RunToEnd(*vote);
  EXPECT_EQ(*vote->selected_step(), 0);
  EXPECT_EQ(vote->Override().values.weights, ballot.problem.initial_shift.weights);
}

TEST(PathwayVote, RefusesWhatIsNoVote) {
  Ballot ballot(1, 2, ApplicationRule::kEveryNewToken, false);
  EXPECT_EQ(MakePathwayVote(ballot.problem, {}, {}).status().code(), absl::StatusCode::kInvalidArgument);
  ballot.of[1].weight = 0;
  EXPECT_THAT(MakePathwayVote(ballot.problem, ballot.of, {}).status().message(), testing::HasSubstr("parts[1]"));
  ballot.of[1].weight = 1;
  EXPECT_EQ(MakePathwayVote(ballot.problem, ballot.of, {-1}).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace c3po
