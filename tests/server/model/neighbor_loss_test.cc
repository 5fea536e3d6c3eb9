#include "server/model/neighbor_loss.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <numeric>
#include <random>

#include "tests/server/model/reference_model.h"

namespace c3po {
namespace {

std::unique_ptr<MoeModel> LoadTiny(const std::string& name) {
  MoeModelOptions options;
  options.folder = std::string(C3PO_TESTDATA_DIR) + "/model/" + name;
  options.dtype = "float32";
  auto model = MoeModel::Load(options);
  EXPECT_TRUE(model.ok()) << model.status();
  return *std::move(model);
}

std::vector<int32_t> RandomTokens(std::mt19937& rng, int count, int vocabulary) {
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(rng() % vocabulary);
  return tokens;
}

Pathway RandomPathway(std::mt19937& rng, int layers, int experts) {
  Pathway pathway(layers, experts);
  for (int l = 0; l < layers; ++l) {
    double sum = 0;
    for (float& w : pathway.Row(l)) sum += w = std::uniform_real_distribution<float>(0.05f, 1)(rng);
    for (float& w : pathway.Row(l)) w = static_cast<float>(w / sum);
  }
  return pathway;
}

struct Scenario {
  std::string model;
  ApplicationRule rule = ApplicationRule::kEveryNewToken;
  SurrogateLoss loss = SurrogateLoss::kAnswer;
  std::vector<int> layers;
  bool one_token_choices = false;  // where the LM head is read at the choices' tokens only
};

void PrintTo(const Scenario& s, std::ostream* out) {
  *out << s.model << " rule " << int(s.rule) << " loss " << int(s.loss) << " first layer " << s.layers.front() << " of "
       << s.layers.size();
}

// Three neighbors: prompts of 1, 5 and 12 tokens; one with a single answer, one with four choices of several lengths of
// which two share a beginning, one with one-token choices.
std::vector<NeighborCase> MakeCases(std::mt19937& rng, const MoeModel& model, const Scenario& scenario) {
  const int vocabulary = model.shape().vocabulary_size;
  std::vector<NeighborCase> cases(3);
  cases[0] = {"a", RandomTokens(rng, 5, vocabulary), {RandomTokens(rng, 3, vocabulary)}, 0, 0.9};
  cases[1] = {"b", RandomTokens(rng, 12, vocabulary), {}, 2, 0.4};
  const std::vector<int32_t> shared = RandomTokens(rng, 2, vocabulary);
  for (int length : {1, 2, 3, 4}) {
    std::vector<int32_t> choice = length >= 3 ? shared : std::vector<int32_t>();
    const std::vector<int32_t> rest = RandomTokens(rng, length - static_cast<int>(choice.size()), vocabulary);
    choice.insert(choice.end(), rest.begin(), rest.end());
    cases[1].continuations.push_back(choice);
  }
  cases[2] = {"c",
              RandomTokens(rng, 1, vocabulary),
              {RandomTokens(rng, 1, vocabulary), RandomTokens(rng, 1, vocabulary)},
              1,
              0.7};
  if (scenario.loss == SurrogateLoss::kAnswer) {
    for (NeighborCase& c : cases) c = {c.reference_id, c.prompt, {c.continuations[c.gold]}, 0, c.kernel_weight};
  }
  if (scenario.one_token_choices) {
    for (NeighborCase& c : cases) {
      c = {c.reference_id, c.prompt, {{3}, {7}, {int32_t(rng() % vocabulary)}}, int(rng() % 3), c.kernel_weight};
    }
  }
  return cases;
}

// J by the oracle, differentiable in `values`. `correct`, unless null, receives how many cases' answer scores highest.
at::Tensor ReferenceLoss(const ReferenceModel& reference, const std::vector<NeighborCase>& cases,
                         const Scenario& scenario, const at::Tensor& values, int* correct = nullptr) {
  at::Tensor total = at::zeros({}, values.options().requires_grad(false));
  double weights = 0;
  for (const NeighborCase& neighbor : cases) {
    std::vector<at::Tensor> scores;
    for (const std::vector<int32_t>& continuation : neighbor.continuations) {
      std::vector<int32_t> tokens = neighbor.prompt;
      tokens.insert(tokens.end(), continuation.begin(), continuation.end() - 1);
      std::vector<bool> positions(tokens.size(), false);
      const size_t last = neighbor.prompt.size() - 1;
      for (size_t t = last; t < tokens.size(); ++t) {
        positions[t] = t == last || scenario.rule != ApplicationRule::kLastPromptToken;
      }
      const at::Tensor logprobs = reference.LogProbabilities(
          tokens,
          ReferenceModel::Override{scenario.rule == ApplicationRule::kRouterShift, scenario.layers, values, positions});
      at::Tensor sum = at::zeros({}, values.options().requires_grad(false));
      for (size_t t = 0; t < continuation.size(); ++t) sum = sum + logprobs[last + t][continuation[t]];
      scores.push_back(sum / double(continuation.size()));
    }
    if (correct) *correct += at::stack(scores).argmax().item<int64_t>() == neighbor.gold;
    at::Tensor loss = -scores[neighbor.gold];
    if (scenario.loss == SurrogateLoss::kChoices && scores.size() > 1)
      loss = loss + at::logsumexp(at::stack(scores), 0);
    total = total + neighbor.kernel_weight * loss;
    weights += neighbor.kernel_weight;
  }
  return total / weights;
}

at::Tensor ToTensor(const Pathway& pathway, at::ScalarType dtype) {
  float* data = const_cast<float*>(pathway.weights.data());
  return at::from_blob(data, {pathway.layers, pathway.experts}, at::kFloat).to(dtype).clone();
}

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
  const ReferenceModel reference(*model), reference32(*model, at::kFloat);
  for (const uint32_t seed : {1u, 2u, 3u}) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 rng(seed);
    ObjectiveSpec spec{MakeCases(rng, *model, scenario), {}, scenario.layers, scenario.rule, scenario.loss};
    for (const NeighborCase& neighbor : spec.cases) {
      auto state = model->PrepareNeighbor(neighbor, scenario.layers.front());
      ASSERT_TRUE(state.ok()) << state.status();
      spec.states.push_back(*state);
    }
    auto objective = model->NewObjective(spec);
    ASSERT_TRUE(objective.ok()) << objective.status();
    RoutingOverride routing{OverrideKindOf(scenario.rule), scenario.layers,
                            RandomPathway(rng, int(scenario.layers.size()), model->shape().experts)};
    if (routing.kind == RoutingOverride::Kind::kLogitShift) {
      for (float& shift : routing.values.weights) shift = std::normal_distribution<float>(0, 0.5f)(rng);
    }
    // The second evaluation reuses what the first remembered of the first critical layer.
    Pathway gradient, again;
    const auto first = (*objective)->Evaluate(routing, &gradient);
    const auto second = (*objective)->Evaluate(routing, &again);
    ASSERT_TRUE(first.ok() && second.ok()) << first.status();
    EXPECT_EQ(*first, *second);
    EXPECT_EQ(gradient.weights, again.weights);

    const auto [expected, oracle] = LossAndGradient(reference, at::kDouble, spec.cases, scenario, routing.values);
    const auto autograd = LossAndGradient(reference32, at::kFloat, spec.cases, scenario, routing.values).second;
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
      // what rounding the whole gradient leaves to a layer whose own is small.
      const double rounding = (autograd[l] - oracle[l]).norm().item<double>();
      EXPECT_GT(size, 1e-6);
      EXPECT_LE(error, std::max({1e-5 * size, 4 * rounding, 2e-6 * whole}))
          << "layer " << scenario.layers[l] << ", norm " << size;
      EXPECT_LE(error, 2e-4 * size) << "rounding " << rounding;
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
  }
  // The other families differ in what a layer is, not in how the loss reads it.
  for (const char* model : {"qwen2_moe_tiny", "qwen3_moe_tiny", "deepseek_tiny", "deepseek_v2_lite_tiny",
                            "deepseek_v2_tiny", "granite_moe_tiny"}) {
    scenarios.push_back({model, ApplicationRule::kEveryNewToken, SurrogateLoss::kChoices, {0, 1, 2, 3}});
    scenarios.push_back({model, ApplicationRule::kRouterShift, SurrogateLoss::kAnswer, {1, 2, 3}});
    scenarios.push_back({model, ApplicationRule::kLastPromptToken, SurrogateLoss::kChoices, {2, 3}, true});
  }
  return scenarios;
}

INSTANTIATE_TEST_SUITE_P(AllScenarios, NeighborLossOracle, testing::ValuesIn(AllScenarios()));

TEST(NeighborLoss, RefusesAStateMadeForAnotherFirstLayer) {
  const std::unique_ptr<MoeModel> model = LoadTiny("olmoe_tiny");
  std::mt19937 rng(1);
  ObjectiveSpec spec{
      MakeCases(rng, *model, Scenario{}), {}, {2, 3}, ApplicationRule::kEveryNewToken, SurrogateLoss::kAnswer};
  for (const NeighborCase& neighbor : spec.cases) spec.states.push_back(*model->PrepareNeighbor(neighbor, 1));
  EXPECT_EQ(model->NewObjective(spec).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(NeighborCache, KeepsRecentStatesUnderItsBudgetAndCountsHits) {
  const std::unique_ptr<MoeModel> model = LoadTiny("mixtral_tiny");
  std::mt19937 rng(4);
  const std::vector<NeighborCase> cases = MakeCases(rng, *model, Scenario{});
  ASSERT_TRUE(model->PrepareNeighbor(cases[0], 2).ok());
  ASSERT_TRUE(model->PrepareNeighbor(cases[0], 2).ok());
  ASSERT_TRUE(model->PrepareNeighbor(cases[0], 1).ok());
  EXPECT_EQ(model->neighbor_cache_stats().hits, 1);
  EXPECT_EQ(model->neighbor_cache_stats().misses, 2);
  EXPECT_GT(model->neighbor_cache_stats().bytes, 0);
  NeighborCache small(1);
  small.Insert("key", std::static_pointer_cast<const MoeNeighborState>(*model->PrepareNeighbor(cases[1], 2)));
  EXPECT_EQ(small.Find("key"), nullptr);
  EXPECT_EQ(small.bytes(), 0);
}

}  // namespace
}  // namespace c3po
