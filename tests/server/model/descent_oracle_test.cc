// Gradient descent as a request runs it, against the slow way: every loss by the whole uncached model in double, every
// gradient by autograd through it and through the softmax, every step by the rule's formula. The gradient of one point
// says little of the path: Adam turns an entry of 1e-9 into a step as long as that of any other.

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <random>

#include "server/compute/device.h"
#include "server/pathway/pathway_optimizer.h"
#include "server/weights/checkpoint.h"
#include "tests/server/model/neighbor_scenario.h"
#include "tests/server/model/quantized_tiny.h"
#include "tests/server/model/reference_loss.h"
#include "tests/server/pathway/one_unit.h"

namespace c3po {
namespace {

constexpr int kSteps = 5;
constexpr double kTolerance = 1e-4;
// Of two weights' logarithms: what float32 may take for a tie.
constexpr double kTie = 2e-5;

struct DescentCase {
  Scenario scenario;  // of its layers the last ones, where the model has fewer
  StepRule step_rule;
  double rate;
  int core = 0;
  bool starts_shifted = false;
  bool normalized = false;   // the top-k weights are divided by their sum, whatever the folder says
  std::string weights = "";  // int8 or int4: the model is quantized, the oracle is that of its widened weights
};

void PrintTo(const DescentCase& c, std::ostream* out) {
  PrintTo(c.scenario, out);
  *out << ", step rule " << int(c.step_rule) << " rate " << c.rate << " core " << c.core
       << (c.normalized ? ", normalized " : " ") << c.weights;
}

// The folder's weights under a configuration that normalizes.
std::unique_ptr<MoeModel> LoadNormalized(const std::string& name) {
  const auto checkpoint = *Checkpoint::Open(TinyFolder(name));
  ModelConfig config = *ModelConfig::Parse(checkpoint->config_json(), "config.json");
  EXPECT_FALSE(config.norm_topk_prob);
  config.norm_topk_prob = true;
  return PackTiny(name, config, WeightPlacement());
}

// A request and two neighbors: choices of one and two tokens, and two of two tokens that begin alike.
struct Problem {
  std::vector<int32_t> prompt, answer;
  ObjectiveSpec spec;
  OptimizationProblem optimization;
  std::unique_ptr<NeighborhoodObjective> objective;
};

std::vector<NeighborCase> SmallCases(std::mt19937& rng, const MoeModel& model, const Scenario& scenario) {
  const int vocabulary = model.shape().vocabulary_size;
  const auto random = [&](int count) { return RandomTokens(rng, count, vocabulary); };
  std::vector<NeighborCase> cases = {{"a", random(3), {random(1), random(2)}, 1, 0.9}, {"b", random(2), {}, 0, 0.4}};
  const std::vector<int32_t> begin = random(1);
  for (int i = 0; i < 2; ++i) cases[1].continuations.push_back({begin[0], random(1)[0]});
  for (NeighborCase& c : cases) {
    if (scenario.one_token_choices) c.continuations = {random(1), random(1), random(1)};
    if (scenario.loss == SurrogateLoss::kPairs) {
      c.continuations = cases[0].continuations;
      c.gold = &c == &cases[0] ? 1 : 0;
    }
    if (scenario.loss == SurrogateLoss::kAnswer) c.continuations = {c.continuations[c.gold]}, c.gold = 0;
  }
  return cases;
}

Problem MakeProblem(std::mt19937& rng, MoeModel& model, const DescentCase& c) {
  const Scenario& scenario = c.scenario;
  const int vocabulary = model.shape().vocabulary_size;
  Problem problem{RandomTokens(rng, 6, vocabulary), RandomTokens(rng, 3, vocabulary), {}, {}, nullptr};
  problem.spec = {SmallCases(rng, model, scenario), {}, scenario.layers, scenario.rule, scenario.loss};
  problem.spec.trust = scenario.trust;
  for (const NeighborCase& neighbor : problem.spec.cases) {
    problem.spec.states.push_back(
        model.PrepareNeighbor(neighbor, {scenario.layers.front(), scenario.prompt_positions})->state);
  }
  problem.objective = *model.NewObjective(problem.spec);
  OwnedSegment segment = PromptSegment({{0, 64}}, problem.prompt);
  segment.want_capture = true;
  OptimizationProblem& optimization = problem.optimization;
  optimization.initial = RunSegments(model, {segment})->at(0).capture.pathway.Rows(scenario.layers);
  optimization.critical_layers = scenario.layers;
  optimization.core_experts = c.core;
  optimization.rule = scenario.rule;
  optimization.objective = problem.objective.get();
  if (c.starts_shifted) {
    optimization.initial_shift = optimization.initial;
    for (float& shift : optimization.initial_shift.weights) shift = std::normal_distribution<float>(0, 0.3f)(rng);
  }
  return problem;
}

// What a descent found: losses at the start and after each step, and the answer's log-probabilities at the best.
struct Outcome {
  std::vector<double> losses, answer;
};

// As the server does it.
Outcome Descend(MoeModel& model, const Problem& problem, const DescentCase& c) {
  auto optimizer = *MakeGradientDescent(problem.optimization, {kSteps, c.rate, c.step_rule});
  while (!*OneUnit(*optimizer)) {
  }
  OwnedSegment segment = PromptSegment({{0, 64}}, problem.prompt);
  segment.tokens.insert(segment.tokens.end(), problem.answer.begin(), problem.answer.end() - 1);
  segment.targets.assign(segment.tokens.begin() + 1, segment.tokens.end());
  segment.targets.push_back(problem.answer.back());
  const int length = static_cast<int>(problem.prompt.size());
  segment.routing = std::make_shared<const RoutingOverride>(optimizer->Override());
  segment.override_start = length - c.scenario.prompt_positions;
  if (c.scenario.rule == ApplicationRule::kLastPromptToken) segment.override_end = length;
  const std::vector<float> logprobs = RunSegments(model, {segment})->at(0).target_logprobs;
  return {optimizer->losses(), {logprobs.begin() + length - 1, logprobs.end()}};
}

// The direction of a step, which the rate is multiplied by.
class NaiveStep {
 public:
  explicit NaiveStep(StepRule rule) : rule_(rule) {}
  at::Tensor operator()(const at::Tensor& g) {
    if (rule_ == StepRule::kGradient) return g;
    if (rule_ == StepRule::kNormalized) return g / g.norm();
    ++step_;
    mean_ = step_ == 1 ? 0.1 * g : 0.9 * mean_ + 0.1 * g;
    square_ = step_ == 1 ? 0.001 * g * g : 0.999 * square_ + 0.001 * g * g;
    return mean_ / (1 - std::pow(0.9, step_)) / (at::sqrt(square_ / (1 - std::pow(0.999, step_))) + 1e-8);
  }

 private:
  const StepRule rule_;
  int step_ = 0;
  at::Tensor mean_, square_;
};

// Nothing where float32 may route otherwise.
std::optional<Outcome> DescendByAutograd(const ReferenceModel& reference, const Problem& problem,
                                         const DescentCase& c) {
  const Scenario& scenario = c.scenario;
  const OptimizationProblem& optimization = problem.optimization;
  const bool shifts = scenario.rule == ApplicationRule::kRouterShift;
  const at::Tensor initial = ToTensor(optimization.initial, at::kDouble), zero = at::zeros_like(initial);
  at::Tensor core = zero.clone();
  const std::vector<bool> is_core = CoreExperts(optimization.initial, c.core);
  for (size_t i = 0; i < is_core.size(); ++i) core.flatten()[static_cast<int64_t>(i)] = is_core[i] ? 1.0 : 0.0;
  at::Tensor theta = c.starts_shifted ? ToTensor(optimization.initial_shift, at::kDouble) : zero;
  const auto values_at = [&](const at::Tensor& x) { return shifts ? x : at::softmax(at::log(initial) + x, -1); };
  NaiveStep direction(c.step_rule);
  Outcome outcome;
  at::Tensor best;
  for (int step = 0; step <= kSteps; ++step) {
    const at::Tensor variable = theta.clone().requires_grad_(true);
    const at::Tensor loss = ReferenceLoss(reference, problem.spec.cases, scenario, values_at(variable));
    if (reference.smallest_margin() < kTie) return std::nullopt;
    outcome.losses.push_back(loss.item<double>());
    if (outcome.losses.back() == *std::min_element(outcome.losses.begin(), outcome.losses.end())) best = theta;
    if (step == kSteps) break;
    loss.backward();
    theta = theta - c.rate * direction(variable.grad() * core);
  }
  std::vector<int32_t> tokens = problem.prompt;
  tokens.insert(tokens.end(), problem.answer.begin(), problem.answer.end() - 1);
  std::vector<bool> positions;
  const auto last = static_cast<int>(problem.prompt.size()) - 1;
  for (int t = 0; t < static_cast<int>(tokens.size()); ++t) {
    positions.push_back(t > last - scenario.prompt_positions &&
                        (t <= last || scenario.rule != ApplicationRule::kLastPromptToken));
  }
  const at::Tensor logprobs = reference.LogProbabilities(
      tokens, ReferenceModel::Override{shifts, scenario.layers, values_at(best).detach(), positions});
  for (size_t t = 0; t < problem.answer.size(); ++t) {
    outcome.answer.push_back(logprobs[last + static_cast<int64_t>(t)][problem.answer[t]].item<double>());
  }
  if (reference.smallest_margin() < kTie) return std::nullopt;
  return outcome;
}

// The two least losses, of which a descent takes the first, are told apart by more than rounding.
bool HasOneBest(std::vector<double> losses) {
  std::sort(losses.begin(), losses.end());
  return losses[1] - losses[0] > 1e-5;
}

class DescentOracle : public testing::TestWithParam<DescentCase> {};

TEST_P(DescentOracle, EveryLossAndTheAnswerAreThoseOfAutogradThroughTheWholeModel) {
  DescentCase c = GetParam();
  const std::string& name = c.scenario.model;
  const auto model = c.normalized         ? LoadNormalized(name)
                     : !c.weights.empty() ? LoadQuantized(name, c.weights, "float32")
                                          : LoadTiny(name);
  const ModelConfig& config = model->config();
  const aten::MoeWeights widened = c.weights.empty() ? aten::MoeWeights() : WidenedTensors(name, config, c.weights);
  const ModelWeights weights = c.weights.empty() ? TinyWeights(name, config) : ViewsOf(widened);
  const int moe_layers = model->shape().moe_layers;
  for (int& layer : c.scenario.layers) layer += moe_layers;
  bool judged = false;
  for (uint32_t seed = 1; seed <= 5 && !judged; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 rng(seed);
    const Problem problem = MakeProblem(rng, *model, c);
    const ReferenceModel reference(config, weights);
    const std::optional<Outcome> oracle = DescendByAutograd(reference, problem, c);
    judged = oracle && HasOneBest(oracle->losses);
    if (!judged) continue;
    const Outcome &expected = *oracle, got = Descend(*model, problem, c);
    ASSERT_EQ(got.losses.size(), expected.losses.size());
    double loss_error = 0, answer_error = 0;
    for (size_t i = 0; i < got.losses.size(); ++i) {
      loss_error = std::max(loss_error, std::abs(got.losses[i] - expected.losses[i]));
    }
    for (size_t t = 0; t < got.answer.size(); ++t) {
      answer_error = std::max(answer_error, std::abs(got.answer[t] - expected.answer[t]));
    }
    RecordProperty("loss_error", testing::PrintToString(loss_error));
    RecordProperty("answer_error", testing::PrintToString(answer_error));
    EXPECT_LT(loss_error, kTolerance);
    EXPECT_LT(answer_error, kTolerance);
    // It moved.
    EXPECT_GT(std::abs(expected.losses.front() - expected.losses.back()), 10 * kTolerance);
  }
  EXPECT_TRUE(judged) << "every seed met a tie";
}

// Layers are counted from the last one, -1.
std::vector<DescentCase> AllCases() {
  using R = ApplicationRule;
  using L = SurrogateLoss;
  std::vector<DescentCase> cases;
  const auto add = [&](const char* model, bool normalized) {
    const std::vector<DescentCase> own = {
        {{model, R::kEveryNewToken, L::kChoices, {-4, -3, -2, -1}}, StepRule::kAdam, 0.1},
        {{model, R::kLastPromptToken, L::kAnswer, {-2, -1}}, StepRule::kAdam, 0.3, 6},
        {{model, R::kRouterShift, L::kChoices, {-3, -2, -1}, false, 3}, StepRule::kAdam, 0.1},
        {{model, R::kRouterShift, L::kAnswer, {-3, -1}}, StepRule::kAdam, 0.2, 6, true},
        {{model, R::kEveryNewToken, L::kChoices, {-2, -1}, true, 2}, StepRule::kNormalized, 0.3},
        {{model, R::kRouterShift, L::kPairs, {-3, -2, -1}}, StepRule::kAdam, 0.2},
        {{model, R::kRouterShift, L::kPairs, {-2, -1}, true, 1, true, 0.5}, StepRule::kAdam, 0.2, 0, true}};
    for (DescentCase c : own) {
      c.normalized = normalized;
      cases.push_back(c);
    }
  };
  for (const char* model : {"olmoe_tiny", "mixtral_tiny", "mixtral_dense_tiny", "qwen2_moe_tiny", "qwen3_moe_tiny",
                            "deepseek_tiny", "deepseek_v2_lite_tiny", "deepseek_v2_tiny", "granite_moe_tiny"}) {
    add(model, false);
  }
  for (const char* model : {"olmoe_tiny", "qwen2_moe_tiny", "deepseek_v2_lite_tiny"}) add(model, true);
  for (const char* model : {"olmoe_tiny", "mixtral_tiny"}) {
    cases.push_back({{model, R::kRouterShift, L::kChoices, {-2, -1}}, StepRule::kNormalized, 0.3});
    cases.push_back({{model, R::kEveryNewToken, L::kAnswer, {-3, -2, -1}}, StepRule::kGradient, 1.0});
  }
  for (const char* model : {"olmoe_tiny", "mixtral_tiny", "qwen2_moe_tiny", "deepseek_v2_tiny", "granite_moe_tiny"}) {
    for (const char* weights : {"int8", "int4"}) {
      cases.push_back({{model, R::kRouterShift, L::kChoices, {-3, -2, -1}}, StepRule::kAdam, 0.1});
      cases.back().weights = weights;
      cases.push_back({{model, R::kEveryNewToken, L::kAnswer, {-2, -1}, true, 2}, StepRule::kNormalized, 0.3});
      cases.back().weights = weights;
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Families, DescentOracle, testing::ValuesIn(AllCases()));

}  // namespace
}  // namespace c3po
