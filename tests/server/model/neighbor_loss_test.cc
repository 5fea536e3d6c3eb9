#include "server/model/neighbor_loss.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "tests/server/model/neighbor_scenario.h"
#include "tests/server/model/reference_loss.h"

namespace c3po {
namespace {

std::pair<double, at::Tensor> LossAndGradient(const ReferenceModel& reference, at::ScalarType dtype,
                                              const std::vector<NeighborCase>& cases, const Scenario& scenario,
                                              const Pathway& point) {
  const at::Tensor values = ToTensor(point, dtype).requires_grad_(true);
  const at::Tensor loss = ReferenceLoss(reference, cases, scenario, values);
  loss.backward();
  return {loss.item<double>(), values.grad().to(at::kDouble)};
}

class NeighborLossOracle : public testing::TestWithParam<Scenario> {};

TEST_P(NeighborLossOracle, CachedLossAndClosedFormGradientEqualAutogradThroughTheWholeModel) {
  const Scenario& scenario = GetParam();
  const std::unique_ptr<MoeModel> model = LoadTiny(scenario.model);
  const ModelWeights weights = TinyWeights(scenario.model, model->config());
  const ReferenceModel reference(model->config(), weights);
  std::vector<ReferenceModel> in_float32;
  for (const uint32_t roundings : {0u, 1u, 2u}) {
    in_float32.emplace_back(model->config(), weights, at::kFloat, roundings);
  }
  for (const uint32_t seed : {1u, 2u, 3u}) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 rng(seed);
    const ObjectiveSpec spec = MakeSpec(rng, *model, scenario);
    auto objective = model->NewObjective(spec);
    ASSERT_TRUE(objective.ok()) << objective.status();
    const RoutingOverride routing = MakeRouting(rng, *model, scenario);
    // The second evaluation reuses what the first remembered of the first critical layer.
    Pathway gradient, again;
    const auto first = (*objective)->Evaluate(routing, &gradient);
    const auto second = (*objective)->Evaluate(routing, &again);
    ASSERT_TRUE(first.ok() && second.ok()) << first.status();
    EXPECT_EQ(*first, *second);
    EXPECT_EQ(gradient.weights, again.weights);

    const auto [expected, oracle] = LossAndGradient(reference, at::kDouble, spec.cases, scenario, routing.values);
    std::vector<at::Tensor> rounded;
    for (const ReferenceModel& each : in_float32) {
      rounded.push_back(LossAndGradient(each, at::kFloat, spec.cases, scenario, routing.values).second);
    }
    EXPECT_NEAR(*first, expected, 1e-5 * std::abs(expected));
    int correct = 0;
    ReferenceLoss(reference, spec.cases, scenario, ToTensor(routing.values, at::kDouble), &correct);
    const bool all_have_choices = scenario.one_token_choices;  // Else MakeCases makes cases of one answer as well.
    EXPECT_EQ((*objective)->correct_choices(), all_have_choices ? correct : -1);
    const at::Tensor ours = at::from_blob(gradient.weights.data(), oracle.sizes(), at::kFloat).to(at::kDouble);
    const double whole = oracle.norm().item<double>();
    for (int64_t l = 0; l < oracle.size(0); ++l) {
      const double size = oracle[l].norm().item<double>(), error = (ours[l] - oracle[l]).norm().item<double>();
      // Where float32 itself carries less than five digits through the model, autograd in float32 sets the bound, or
      // what rounding the whole gradient leaves to a layer whose own is small. One such run is one draw: in the same
      // layer it was off by 2e-6 or 6e-6 as libtorch summed on two threads or on one. Hence the worst of several, and
      // factors that leave room for the order in which another processor sums.
      double rounding = 0;
      for (const at::Tensor& each : rounded) {
        rounding = std::max(rounding, (each[l] - oracle[l]).norm().item<double>());
      }
      EXPECT_GT(size, 1e-6);
      EXPECT_LE(error, std::max({1e-5 * size, 8 * rounding, 3e-5 * whole}))
          << "layer " << scenario.layers[l] << ", norm " << size;
      EXPECT_LE(error, 2e-3 * size) << "rounding " << rounding;
    }
  }
}

std::vector<Scenario> AllScenarios() {
  std::vector<Scenario> scenarios;
  for (const char* model : {"olmoe_tiny", "mixtral_tiny", "mixtral_dense_tiny"}) {
    for (const auto rule :
         {ApplicationRule::kLastPromptToken, ApplicationRule::kEveryNewToken, ApplicationRule::kRouterShift}) {
      for (const auto loss : {SurrogateLoss::kAnswer, SurrogateLoss::kChoices}) {
        scenarios.push_back({model, rule, loss, {2, 3}});
      }
    }
    scenarios.push_back({model, ApplicationRule::kEveryNewToken, SurrogateLoss::kChoices, {1, 2, 3}, true});
    scenarios.push_back({model, ApplicationRule::kRouterShift, SurrogateLoss::kChoices, {2, 3}, true});
    scenarios.push_back({model, ApplicationRule::kEveryNewToken, SurrogateLoss::kAnswer, {3}});
    scenarios.push_back({model, ApplicationRule::kEveryNewToken, SurrogateLoss::kChoices, {0, 1, 2, 3}});
    scenarios.push_back({model, ApplicationRule::kRouterShift, SurrogateLoss::kChoices, {0, 1, 2, 3}});
    scenarios.push_back(
        {model, ApplicationRule::kLastPromptToken, SurrogateLoss::kAnswer, {1, 3}});  // A gap between them.
    // Pairs of neighbors; a trust region, which is about choices or about an answer alone.
    scenarios.push_back({model, ApplicationRule::kRouterShift, SurrogateLoss::kPairs, {1, 2, 3}});
    scenarios.push_back({model, ApplicationRule::kEveryNewToken, SurrogateLoss::kPairs, {2, 3}, true});
    scenarios.push_back({model, ApplicationRule::kLastPromptToken, SurrogateLoss::kPairs, {0, 1, 2, 3}, false, 4});
    scenarios.push_back({model, ApplicationRule::kRouterShift, SurrogateLoss::kPairs, {2, 3}, true, 1, true, 0.5});
    scenarios.push_back({model, ApplicationRule::kEveryNewToken, SurrogateLoss::kPairs, {1, 2, 3}, false, 2, false, 2});
    scenarios.push_back({model, ApplicationRule::kRouterShift, SurrogateLoss::kChoices, {1, 2, 3}, false, 1, true, 1});
    scenarios.push_back({model, ApplicationRule::kEveryNewToken, SurrogateLoss::kChoices, {2, 3}, true, 1, true, 3});
    scenarios.push_back({model, ApplicationRule::kRouterShift, SurrogateLoss::kAnswer, {2, 3}, false, 1, true, 2});
    // Some of a prompt; all of it.
    scenarios.push_back({model, ApplicationRule::kRouterShift, SurrogateLoss::kChoices, {1, 2, 3}, false, 4});
    scenarios.push_back({model, ApplicationRule::kLastPromptToken, SurrogateLoss::kAnswer, {2, 3}, false, 3});
    scenarios.push_back({model, ApplicationRule::kEveryNewToken, SurrogateLoss::kChoices, {2, 3}, true, 100});
    scenarios.push_back({model, ApplicationRule::kRouterShift, SurrogateLoss::kChoices, {1, 2, 3}, false, 4, false});
    scenarios.push_back({model, ApplicationRule::kLastPromptToken, SurrogateLoss::kAnswer, {2}, false, 1, false});
  }
  // The other families differ in what a layer is, not in how the loss reads it.
  for (const char* model : {"qwen2_moe_tiny", "qwen3_moe_tiny", "deepseek_tiny", "deepseek_v2_lite_tiny",
                            "deepseek_v2_tiny", "granite_moe_tiny"}) {
    scenarios.push_back({model, ApplicationRule::kEveryNewToken, SurrogateLoss::kChoices, {0, 1, 2, 3}});
    scenarios.push_back({model, ApplicationRule::kRouterShift, SurrogateLoss::kAnswer, {1, 2, 3}});
    scenarios.push_back({model, ApplicationRule::kLastPromptToken, SurrogateLoss::kChoices, {2, 3}, true});
    scenarios.push_back({model, ApplicationRule::kRouterShift, SurrogateLoss::kChoices, {2, 3}, false, 6});
    scenarios.push_back({model, ApplicationRule::kEveryNewToken, SurrogateLoss::kChoices, {1, 2, 3}, false, 1, false});
    scenarios.push_back({model, ApplicationRule::kRouterShift, SurrogateLoss::kPairs, {1, 2, 3}});
    scenarios.push_back({model, ApplicationRule::kRouterShift, SurrogateLoss::kPairs, {1, 2, 3}, true, 2, true, 1});
    scenarios.push_back({model, ApplicationRule::kEveryNewToken, SurrogateLoss::kPairs, {2, 3}, false, 1, true, 1});
  }
  return scenarios;
}

INSTANTIATE_TEST_SUITE_P(AllScenarios, NeighborLossOracle, testing::ValuesIn(AllScenarios()));

absl::StatusOr<Pathway> GradientOf(MoeModel& model, const Scenario& scenario, std::vector<NeighborCase> cases,
                                   const RoutingOverride& routing) {
  ObjectiveSpec spec{std::move(cases), {}, scenario.layers, scenario.rule, scenario.loss};
  for (const NeighborCase& neighbor : spec.cases) {
    spec.states.push_back(model.PrepareNeighbor(neighbor, MovingPart{scenario.layers.front()})->state);
  }
  const auto objective = *model.NewObjective(spec);
  Pathway gradient;
  const absl::Status status = objective->Evaluate(routing, &gradient).status();
  if (!status.ok()) return status;
  return gradient;
}

// Steps of one length for every entry, as Adam's and normalized ones are, follow an entry however small it is: what is
// 0 must be nothing else.

// One row, in the last layer: as many entries as experts are selected.
TEST(NeighborLoss, ExpertsThatANormalizingModelDoesNotSelectHaveGradientZero) {
  for (const char* name : {"mixtral_tiny", "qwen3_moe_tiny", "granite_moe_tiny"}) {
    for (const auto rule : {ApplicationRule::kRouterShift, ApplicationRule::kEveryNewToken}) {
      SCOPED_TRACE(testing::Message() << name << " rule " << static_cast<int>(rule));
      const std::unique_ptr<MoeModel> model = LoadTiny(name);
      const Scenario scenario{name, rule, SurrogateLoss::kAnswer, {3}};
      for (uint32_t seed = 1; seed <= 8; ++seed) {
        std::mt19937 rng(seed);
        const std::vector<NeighborCase> cases = {{"a", {5, 3, 8}, {{static_cast<int32_t>(seed)}}, 0, 1}};
        const auto gradient = GradientOf(*model, scenario, cases, MakeRouting(rng, *model, scenario));
        ASSERT_TRUE(gradient.ok()) << gradient.status();
        const auto& g = gradient->weights;
        EXPECT_EQ(std::count_if(g.begin(), g.end(), [](float x) { return x != 0; }), model->shape().experts_per_token);
      }
    }
  }
}

// Choices of one length that begin with the same token: their difference does not depend on how likely it is, and the
// last layer's weights at the last prompt token move nothing else.
TEST(NeighborLoss, TheTokenThatAllChoicesBeginWithGivesNoGradient) {
  const std::unique_ptr<MoeModel> model = LoadTiny("olmoe_tiny");
  const Scenario scenario{"olmoe_tiny", ApplicationRule::kLastPromptToken, SurrogateLoss::kChoices, {3}};
  for (uint32_t seed = 1; seed <= 8; ++seed) {
    std::mt19937 rng(seed);
    const int32_t begin = RandomTokens(rng, 1, model->shape().vocabulary_size)[0];
    std::vector<NeighborCase> cases = {{"a", {5, 3, 8}, {{begin, 1}, {begin, 2}, {begin, 3}, {begin, 4}}, 1, 1}};
    const RoutingOverride routing = MakeRouting(rng, *model, scenario);
    const auto same = GradientOf(*model, scenario, cases, routing);
    ASSERT_TRUE(same.ok()) << same.status();
    for (const float g : same->weights) EXPECT_EQ(g, 0);
    cases[0].continuations[2][0] = (begin + 1) % model->shape().vocabulary_size;
    const auto other = GradientOf(*model, scenario, cases, routing);
    ASSERT_TRUE(other.ok()) << other.status();
    EXPECT_TRUE(std::any_of(other->weights.begin(), other->weights.end(), [](float g) { return g != 0; }));
  }
}

TEST(NeighborLoss, RefusesAStateMadeForAnotherFirstLayer) {
  const std::unique_ptr<MoeModel> model = LoadTiny("olmoe_tiny");
  std::mt19937 rng(1);
  ObjectiveSpec spec{
      MakeCases(rng, *model, Scenario{}), {}, {2, 3}, ApplicationRule::kEveryNewToken, SurrogateLoss::kAnswer};
  for (const NeighborCase& neighbor : spec.cases) {
    spec.states.push_back(model->PrepareNeighbor(neighbor, MovingPart{1})->state);
  }
  EXPECT_EQ(model->NewObjective(spec).status().code(), absl::StatusCode::kInvalidArgument);
}

// Evaluated at once, an objective and its copy, whose base is another pass's, have the same bits; a failure of what an
// objective needs first is its own.
TEST(NeighborLoss, TheModelAloneIsAskedOnceAndHasNoShift) {
  const Scenario scenario{"olmoe_tiny", ApplicationRule::kRouterShift, SurrogateLoss::kPairs, {2, 3}, true, 1, true, 4};
  const std::unique_ptr<MoeModel> model = LoadTiny("olmoe_tiny");
  std::mt19937 rng(3);
  const ObjectiveSpec spec = MakeSpec(rng, *model, scenario);
  ObjectiveSpec free = spec;
  free.trust = 0;
  const auto held = *model->NewObjective(spec), other = *model->NewObjective(spec), loss = *model->NewObjective(free);
  EXPECT_EQ(held->pairs(), 3);
  const RoutingOverride far = MakeRouting(rng, *model, scenario);
  RoutingOverride unshifted = far;
  std::fill(unshifted.values.weights.begin(), unshifted.values.weights.end(), 0.0f);
  // As when descent begins at a prior: the first evaluation is far from the model alone.
  const auto run = model->NewEvaluationRun({{held.get(), far, true}});
  ASSERT_TRUE(*run->Advance(PiecewiseWork::kToTheEnd));
  const int64_t with_base = run->spent();
  const auto first = run->TakeResults(), again = model->EvaluateTogether({{held.get(), far, true}});
  EXPECT_EQ(first[0]->loss, again[0]->loss);
  EXPECT_EQ(first[0]->gradient.weights, again[0]->gradient.weights);
  const auto later = model->NewEvaluationRun({{held.get(), far, true}});
  ASSERT_TRUE(*later->Advance(PiecewiseWork::kToTheEnd));
  EXPECT_GT(with_base, later->spent());
  EXPECT_LT(with_base, 2 * later->spent()) << "more than a pass up";
  EXPECT_GT(first[0]->loss, *loss->Evaluate(far, nullptr) + 1e-6);
  EXPECT_NEAR(*held->Evaluate(unshifted, nullptr), *loss->Evaluate(unshifted, nullptr), 1e-12);
  const auto together = model->EvaluateTogether({{loss.get(), far, true}, {other.get(), far, true}});
  EXPECT_EQ(together[1]->loss, first[0]->loss);
  EXPECT_EQ(together[1]->gradient.weights, first[0]->gradient.weights);
}

TEST(NeighborLoss, RefusesAWeightThatIsNone) {
  const std::unique_ptr<MoeModel> model = LoadTiny("olmoe_tiny");
  std::mt19937 rng(1);
  ObjectiveSpec spec = MakeSpec(rng, *model, {"olmoe_tiny", ApplicationRule::kRouterShift, SurrogateLoss::kPairs, {3}});
  for (const double trust : {-1.0, std::numeric_limits<double>::infinity(), std::nan("")}) {
    spec.trust = trust;
    EXPECT_EQ(model->NewObjective(spec).status().code(), absl::StatusCode::kInvalidArgument) << trust;
  }
  spec.trust = 0;
  spec.cases[0].texts = {"one"};
  EXPECT_EQ(model->NewObjective(spec).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(NeighborCache, SaysWhatIsAHit) {
  const std::unique_ptr<MoeModel> model = LoadTiny("mixtral_tiny");
  std::mt19937 rng(4);
  const std::vector<NeighborCase> cases = MakeCases(rng, *model, Scenario{});
  const auto first = model->PrepareNeighbor(cases[0], MovingPart{2});
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_FALSE(first->hit);
  const int64_t bytes = model->neighbor_cache_bytes();
  EXPECT_GT(bytes, 0);
  const auto second = model->PrepareNeighbor(cases[0], MovingPart{2});
  EXPECT_TRUE(second->hit);
  EXPECT_EQ(second->state, first->state);
  EXPECT_EQ(model->neighbor_cache_bytes(), bytes);
  EXPECT_FALSE(model->PrepareNeighbor(cases[0], MovingPart{1})->hit);
  EXPECT_FALSE(model->PrepareNeighbor(cases[0], MovingPart{2, 3})->hit);
  EXPECT_TRUE((*model->NewPreparation(cases[0], MovingPart{2, 3}))->hit());
  EXPECT_FALSE((*model->NewPreparation(cases[1], MovingPart{2}))->hit());
}

}  // namespace
}  // namespace c3po
