// Evaluations of several objectives as one pass: what comes of each is bitwise what comes of it alone.

#include "server/model/neighbor_pass.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <random>
#include <tuple>

#include "server/model/neighbor_loss.h"
#include "tests/server/model/neighbor_scenario.h"
#include "tests/server/model/rounded_arithmetic.h"

namespace c3po {
namespace {

// An objective of its own and a point to evaluate it at; made twice from one seed, they are the same.
struct Asked {
  std::unique_ptr<NeighborhoodObjective> objective;
  Evaluation evaluation;
};

Asked MakeAsked(uint32_t seed, MoeModel& model, const Scenario& scenario, bool want_gradient) {
  std::mt19937 rng(seed);
  auto objective = model.NewObjective(MakeSpec(rng, model, scenario));
  EXPECT_TRUE(objective.ok()) << objective.status();
  Asked asked{*std::move(objective), {}};
  asked.evaluation = {asked.objective.get(), MakeRouting(rng, model, scenario), want_gradient};
  return asked;
}

std::vector<Evaluation> EvaluationsOf(const std::vector<Asked>& asked) {
  std::vector<Evaluation> evaluations;
  for (const Asked& a : asked) evaluations.push_back(a.evaluation);
  return evaluations;
}

// Every rule and loss, layers with the same first one, with another first one, and with a gap.
std::vector<Scenario> Company(const std::string& model) {
  using R = ApplicationRule;
  using L = SurrogateLoss;
  return {{model, R::kEveryNewToken, L::kAnswer, {2, 3}},
          {model, R::kRouterShift, L::kChoices, {1, 2, 3}},
          {model, R::kLastPromptToken, L::kChoices, {2, 3}, true},
          {model, R::kRouterShift, L::kAnswer, {2}},
          {model, R::kEveryNewToken, L::kChoices, {1, 3}},
          {model, R::kEveryNewToken, L::kChoices, {0, 1, 2, 3}},
          {model, R::kLastPromptToken, L::kAnswer, {3}},
          {model, R::kRouterShift, L::kChoices, {2, 3}, true},
          {model, R::kRouterShift, L::kChoices, {1, 2, 3}, false, 4},
          {model, R::kRouterShift, L::kChoices, {2, 3}, false, 2, false},
          {model, R::kRouterShift, L::kPairs, {1, 2, 3}},
          {model, R::kEveryNewToken, L::kPairs, {2, 3}, true, 1, true, 1},
          {model, R::kRouterShift, L::kAnswer, {2, 3}, false, 1, true, 2}};
}

// In float32, and with products in bfloat16.
class NeighborPassCompany : public testing::TestWithParam<std::tuple<const char*, const char*>> {};

TEST_P(NeighborPassCompany, EachObjectiveGetsBitwiseWhatItGetsAlone) {
  const auto [name, arithmetic] = GetParam();
  const ScopedBfloat16Unit unit(Bfloat16UnitsHere().back());
  const std::unique_ptr<MoeModel> model = LoadTiny(name, arithmetic, "cpu", arithmetic);
  const std::vector<Scenario> all = Company(name);
  for (uint32_t seed = 1; seed <= 6; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 rng(seed);
    std::vector<Asked> together, alone;
    for (size_t i = 0; i < 2 + rng() % 7; ++i) {
      const Scenario& scenario = all[rng() % all.size()];
      const bool want_gradient = rng() % 4 > 0;
      const auto own_seed = static_cast<uint32_t>(rng());
      together.push_back(MakeAsked(own_seed, *model, scenario, want_gradient));
      alone.push_back(MakeAsked(own_seed, *model, scenario, want_gradient));
    }
    // The second round finds first-layer outputs of the first one remembered.
    for (int round = 0; round < 2; ++round) {
      const auto results = model->EvaluateTogether(EvaluationsOf(together));
      ASSERT_EQ(results.size(), together.size());
      for (size_t i = 0; i < results.size(); ++i) {
        SCOPED_TRACE(testing::Message() << "evaluation " << i << " of " << results.size());
        ASSERT_TRUE(results[i].ok()) << results[i].status();
        const auto expected = alone[i].evaluation.Run();
        ASSERT_TRUE(expected.ok()) << expected.status();
        EXPECT_EQ(results[i]->loss, expected->loss);
        EXPECT_EQ(results[i]->gradient.weights, expected->gradient.weights);
        EXPECT_EQ(results[i]->gradient.weights.empty(), !together[i].evaluation.want_gradient);
        EXPECT_EQ(together[i].objective->correct_choices(), alone[i].objective->correct_choices());
        for (size_t j = 0; j < i; ++j) EXPECT_NE(results[i]->loss, results[j]->loss);  // No two are the same problem.
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, NeighborPassCompany,
                         testing::Combine(testing::Values("olmoe_tiny", "mixtral_tiny", "mixtral_dense_tiny",
                                                          "qwen2_moe_tiny", "qwen3_moe_tiny", "deepseek_tiny",
                                                          "deepseek_v2_lite_tiny", "deepseek_v2_tiny",
                                                          "granite_moe_tiny"),
                                          testing::Values("float32", "bfloat16")));

TEST(NeighborPass, OneThatFailsLeavesTheOthersAsTheyAre) {
  const std::unique_ptr<MoeModel> model = LoadTiny("olmoe_tiny");
  const std::vector<Scenario> all = Company("olmoe_tiny");
  std::vector<Asked> asked;
  for (uint32_t i = 0; i < 5; ++i) asked.push_back(MakeAsked(i, *model, all[i], /*want_gradient=*/true));
  const auto before = model->EvaluateTogether(EvaluationsOf(asked));
  asked[0].evaluation.routing.values.weights[0] = std::numeric_limits<float>::infinity();
  asked[3].evaluation.routing.layers = {0};  // Below its first critical layer.
  const auto results = model->EvaluateTogether(EvaluationsOf(asked));
  EXPECT_EQ(results[0].status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(results[3].status().code(), absl::StatusCode::kInvalidArgument);
  for (const size_t i : {1, 2, 4}) {
    ASSERT_TRUE(results[i].ok()) << results[i].status();
    EXPECT_EQ(results[i]->loss, before[i]->loss);
    EXPECT_EQ(results[i]->gradient.weights, before[i]->gradient.weights);
  }
}

// A pass that several objectives need first fails for one of them by its numbers alone.
TEST(NeighborPass, ABaseIsFoundForOthersBesideOneThatFails) {
  const std::unique_ptr<MoeModel> model = LoadTiny("olmoe_tiny");
  const Scenario scenario{"olmoe_tiny", ApplicationRule::kRouterShift, SurrogateLoss::kPairs, {2, 3}, true, 1, true, 1};
  std::vector<Asked> asked, alone;
  for (uint32_t i = 0; i < 3; ++i) asked.push_back(MakeAsked(i, *model, scenario, /*want_gradient=*/i != 1));
  for (uint32_t i = 0; i < 3; ++i) alone.push_back(MakeAsked(i, *model, scenario, /*want_gradient=*/i != 1));
  std::vector<float>& shift = asked[0].evaluation.routing.values.weights;
  std::fill(shift.begin(), shift.end(), std::numeric_limits<float>::quiet_NaN());
  asked[2].evaluation.routing.layers = {0, 1};  // Below its first critical layer.
  const auto results = model->EvaluateTogether(EvaluationsOf(asked));
  EXPECT_EQ(results[0].status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(results[2].status().code(), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(results[1].ok()) << results[1].status();
  EXPECT_EQ(results[1]->loss, alone[1].evaluation.Run()->loss);
  // What failed has its base now, and the next evaluation is as any.
  asked[0].evaluation.routing = alone[0].evaluation.routing;
  EXPECT_EQ(asked[0].evaluation.Run()->loss, alone[0].evaluation.Run()->loss);
}

TEST(NeighborPass, AnObjectiveThatIsNotTheModelsRunsByItself) {
  class Fixed final : public NeighborhoodObjective {
   public:
    absl::StatusOr<double> Evaluate(const RoutingOverride& routing, Pathway* gradient) override {
      if (gradient) *gradient = routing.values;
      return 5;
    }
  };
  const std::unique_ptr<MoeModel> model = LoadTiny("olmoe_tiny"), other = LoadTiny("mixtral_tiny");
  Fixed fixed;
  const Asked own = MakeAsked(1, *model, Company("olmoe_tiny")[0], true);
  const Asked others = MakeAsked(2, *other, Company("mixtral_tiny")[0], true);
  const auto results =
      model->EvaluateTogether({{&fixed, own.evaluation.routing, true}, others.evaluation, own.evaluation});
  EXPECT_EQ(results[0]->loss, 5);
  EXPECT_EQ(results[1]->loss, others.evaluation.Run()->loss);
  EXPECT_EQ(results[2]->loss, own.evaluation.Run()->loss);
}

}  // namespace
}  // namespace c3po
