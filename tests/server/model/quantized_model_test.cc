// Models of 8 and 4 bits: who may ask for them; logits, answers and gradients against the model of the widened weights,
// in double.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "server/compute/device.h"
#include "tests/server/model/neighbor_scenario.h"
#include "tests/server/model/quantized_tiny.h"
#include "tests/server/model/reference_loss.h"
#include "tests/server/model/reference_model.h"

namespace c3po {
namespace {

using ::testing::HasSubstr;

std::string ErrorOf(const PlacementOptions& placement) {
  MoeModelOptions options;
  options.folder = TinyFolder("olmoe_tiny");
  options.device = placement.device;
  options.dtype = placement.dtype;
  options.arithmetic = placement.arithmetic;
  options.weights = placement.weights;
  return std::string(MoeModel::Load(options).status().message());
}

TEST(QuantizedWeights, AreRefusedWithWhatTheyCannotBe) {
  EXPECT_THAT(ErrorOf({"cpu", "auto", "auto", "int3"}),
              HasSubstr("weights \"int3\" is not one of auto, float32, bfloat16, int8, int4"));
  EXPECT_THAT(ErrorOf({"cpu", "auto", "bfloat16", "int8"}), HasSubstr("arithmetic bfloat16 is not of weights int8"));
  EXPECT_THAT(ErrorOf({"cpu", "auto", "int16", "int8"}), HasSubstr("arithmetic \"int16\" is not one of"));
  EXPECT_THAT(ErrorOf({"cpu", "auto", "int8", "int4"}), HasSubstr("arithmetic \"int8\" is not one of"));
  EXPECT_THAT(ErrorOf({"cpu", "bfloat16", "auto", "float32"}), HasSubstr("weights float32 contradicts dtype bfloat16"));
  EXPECT_THAT(ErrorOf({"cpu", "int4", "auto", "auto"}), HasSubstr("dtype \"int4\" is not one of"));
}

TEST(QuantizedWeights, AreToldInTheModelsShape) {
  struct Case {
    PlacementOptions asked;
    const char *dtype, *weights, *arithmetic;
  };
  for (const Case& c : {Case{{"cpu", "auto", "float32", "auto"}, "float32", "float32", "float32"},
                        Case{{"cpu", "auto", "float32", "bfloat16"}, "bfloat16", "bfloat16", "float32"},
                        Case{{"cpu", "auto", "auto", "int8"}, "float32", "int8", "int16"},
                        Case{{"cpu", "auto", "auto", "int4"}, "float32", "int4", "int8"},
                        Case{{"cpu", "bfloat16", "float32", "int4"}, "bfloat16", "int4", "float32"}}) {
    MoeModelOptions options;
    options.folder = TinyFolder("olmoe_tiny");
    options.dtype = c.asked.dtype;
    options.arithmetic = c.asked.arithmetic;
    options.weights = c.asked.weights;
    const auto model = MoeModel::Load(options);
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_EQ((*model)->shape().dtype, c.dtype);
    EXPECT_EQ((*model)->shape().weights, c.weights);
    EXPECT_EQ((*model)->shape().arithmetic, c.arithmetic);
  }
}

struct Case {
  std::string model, weights;
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.model << " " << c.weights; }

std::vector<Case> Cases(const std::vector<std::string>& models) {
  std::vector<Case> cases;
  for (const std::string& model : models) {
    for (const char* weights : {"int8", "int4"}) cases.push_back({model, weights});
  }
  return cases;
}

const std::vector<std::string> kAllModels = {
    "olmoe_tiny",    "mixtral_tiny",          "mixtral_dense_tiny", "qwen2_moe_tiny",  "qwen3_moe_tiny",
    "deepseek_tiny", "deepseek_v2_lite_tiny", "deepseek_v2_tiny",   "granite_moe_tiny"};

class QuantizedModel : public testing::TestWithParam<Case> {
 protected:
  std::unique_ptr<MoeModel> Load(const std::string& arithmetic) const {
    return LoadQuantized(GetParam().model, GetParam().weights, arithmetic);
  }
  // Log-probabilities of all positions, by the widened weights in double.
  static std::vector<std::vector<double>> Rows(const at::Tensor& logprobs) {
    std::vector<std::vector<double>> rows;
    for (int64_t t = 0; t < logprobs.size(0); ++t) {
      const double* row = logprobs.const_data_ptr<double>() + t * logprobs.size(1);
      rows.emplace_back(row, row + logprobs.size(1));
    }
    return rows;
  }
};

INSTANTIATE_TEST_SUITE_P(Families, QuantizedModel, testing::ValuesIn(Cases(kAllModels)));

// Log-probabilities after each token, which come one by one.
std::vector<std::vector<double>> LogprobsOf(MoeModel& model, const std::vector<int32_t>& tokens) {
  std::vector<std::vector<double>> rows;
  for (size_t t = 0; t < tokens.size(); ++t) {
    const auto out = RunSegments(model, {PromptSegment({{0, 64}}, {tokens[t]}, static_cast<int>(t))});
    EXPECT_TRUE(out.ok()) << out.status();
    const std::vector<float>& logits = out->at(0).readout.logits;
    double sum = 0;
    for (const float logit : logits) sum += std::exp(double{logit});
    rows.emplace_back();
    for (const float logit : logits) rows.back().push_back(logit - std::log(sum));
  }
  return rows;
}

double LargestDifference(const std::vector<double>& a, const std::vector<double>& b) {
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
  return largest;
}

double SpreadOf(const std::vector<double>& values) { return Spread(std::vector<float>(values.begin(), values.end())); }

// An entry of a group of 32 is off by half a step: its largest entry, sqrt(32) times the root of the mean square at
// most, over 32767 and 2. Roundings of the products on the way are independent of each other; a factor of two for what
// norms make of it where a residual stream is small, and of four for the largest of all logits.
double RoundingAfter(int products) { return 8 * std::sqrt(32.0) / 65534 * std::sqrt(products); }

// As golden tests allow float32, and with activations rounded to 16 bits what rounding leaves besides.
TEST_P(QuantizedModel, LogitsAreThoseOfTheWidenedWeights) {
  const auto exact = Load("float32"), rounded = Load("auto");
  const ModelConfig& config = exact->config();
  const aten::MoeWeights tensors = WidenedTensors(GetParam().model, config, GetParam().weights);
  double rounding = 0;
  int judged = 0;
  for (uint32_t seed = 1; seed <= 12 && judged < 2; ++seed) {
    const ReferenceModel reference(config, ViewsOf(tensors));
    std::mt19937 rng(seed);
    const std::vector<int32_t> tokens = RandomTokens(rng, 16, config.vocabulary_size);
    const auto expected = Rows(reference.LogProbabilities(tokens, std::nullopt).contiguous());
    const auto got = LogprobsOf(*exact, tokens), with_rounding = LogprobsOf(*rounded, tokens);
    if (reference.smallest_margin() < 2e-5) continue;  // What float32 may take for a tie.
    for (size_t t = 0; t < tokens.size(); ++t) {
      ASSERT_LT(LargestDifference(got[t], expected[t]), 4e-4 * SpreadOf(expected[t]))
          << "seed " << seed << " row " << t;
    }
    if (GetParam().weights == "int4") {  // Activations of 8 bits: see below.
      ++judged;
      continue;
    }
    if (reference.smallest_margin() < RoundingAfter(4 * config.layers + 1)) continue;  // What rounding may.
    ++judged;
    for (size_t t = 0; t < tokens.size(); ++t) {
      const double error = LargestDifference(with_rounding[t], expected[t]) / SpreadOf(expected[t]);
      ASSERT_LT(error, RoundingAfter(4 * config.layers + 1)) << "seed " << seed << " row " << t;
      rounding = std::max(rounding, error);
    }
  }
  EXPECT_GT(judged, 0) << "every seed met a tie";
  RecordProperty("rounding", testing::PrintToString(rounding));
  RecordProperty("judged", judged);
}

// What rounding activations does to log-probabilities is less than half of what the weights' own rounding does, in root
// mean squares; an expert that another takes the place of included.
TEST_P(QuantizedModel, RoundedActivationsCostLessThanHalfOfWhatWeightsOfFourBitsDo) {
  if (GetParam().weights != "int4") GTEST_SKIP() << "weights of 8 bits meet activations of 16";
  const auto stored = LoadQuantized(GetParam().model, "float32", "float32");
  const auto exact = Load("float32"), rounded = Load("auto");
  double of_weights = 0, of_activations = 0;
  for (uint32_t seed = 1; seed <= 4; ++seed) {
    std::mt19937 rng(seed);
    const std::vector<int32_t> tokens = RandomTokens(rng, 16, exact->config().vocabulary_size);
    const auto whole = LogprobsOf(*stored, tokens), got = LogprobsOf(*exact, tokens);
    const auto with_rounding = LogprobsOf(*rounded, tokens);
    for (size_t t = 0; t < tokens.size(); ++t) {
      for (size_t i = 0; i < got[t].size(); ++i) {
        of_weights += (got[t][i] - whole[t][i]) * (got[t][i] - whole[t][i]);
        of_activations += (with_rounding[t][i] - got[t][i]) * (with_rounding[t][i] - got[t][i]);
      }
    }
  }
  EXPECT_GT(of_activations, 0);
  EXPECT_LT(std::sqrt(of_activations), 0.5 * std::sqrt(of_weights));
  RecordProperty("share", testing::PrintToString(std::sqrt(of_activations / of_weights)));
}

// The quantized model is near the stored one, by what its format leaves: 8 bits steps of 1 / 123, 4 bits of 1 / 6.5 of
// a group's largest weight, which is sqrt(32) times the root of the mean square at most. Two models that have nothing
// to do with each other would differ by sqrt(2). Routing is forced to the stored model's.
TEST_P(QuantizedModel, IsNearTheStoredModelUnderItsRouting) {
  const auto stored = LoadTiny(GetParam().model), quantized = Load("auto");
  const int layers = stored->shape().moe_layers;
  std::mt19937 rng(7);
  double error = 0, size = 0;
  for (int t = 0; t < 24; ++t) {
    const auto token = static_cast<int32_t>(rng() % stored->shape().vocabulary_size);
    OwnedSegment segment = PromptSegment({{0, 64}}, {token}, t);
    segment.want_capture = true;
    const auto expected = RunSegments(*stored, {segment});
    ASSERT_TRUE(expected.ok());
    RoutingOverride routing{RoutingOverride::Kind::kWeights, std::vector<int>(layers), expected->at(0).capture.pathway};
    std::iota(routing.layers.begin(), routing.layers.end(), 0);
    segment.routing = std::make_shared<const RoutingOverride>(std::move(routing));
    const auto got = RunSegments(*quantized, {segment});
    ASSERT_TRUE(got.ok()) << got.status();
    const std::vector<float>&a = got->at(0).readout.logits, &b = expected->at(0).readout.logits;
    const double mean = std::accumulate(b.begin(), b.end(), 0.0) / static_cast<double>(b.size());
    for (size_t i = 0; i < a.size(); ++i) {
      error += std::pow(double{a[i]} - b[i], 2);
      size += std::pow(b[i] - mean, 2);
    }
  }
  const double step = GetParam().weights == "int8" ? 1 / 123.0 : 1 / 6.5;
  const double of_a_product = std::sqrt(32.0) * step / std::sqrt(12.0);
  EXPECT_LT(std::sqrt(error / size), std::min(1.0, 2 * of_a_product * std::sqrt(4 * stored->config().layers + 1)));
  EXPECT_GT(error, 0) << "nothing was quantized";
  RecordProperty("error", testing::PrintToString(std::sqrt(error / size)));
}

TEST_P(QuantizedModel, ARowIsBitwiseTheSameInAnyBatchAndAnyChunks) {
  for (const char* arithmetic : {"auto", "float32"}) {
    SCOPED_TRACE(arithmetic);
    const auto model = Load(arithmetic);
    std::mt19937 rng(3);
    std::vector<OwnedSegment> segments;
    for (int i = 0; i < 9; ++i) {
      segments.push_back(PromptSegment({{8 * i, 8}}, RandomTokens(rng, 1 + i % 7, model->shape().vocabulary_size)));
    }
    const auto together = RunSegments(*model, segments);
    ASSERT_TRUE(together.ok()) << together.status();
    for (size_t i = 0; i < segments.size(); ++i) {
      const auto alone = RunSegments(*model, {segments[i]});
      ASSERT_TRUE(alone.ok()) << alone.status();
      EXPECT_EQ(together->at(i).readout.logits, alone->at(0).readout.logits) << "segment " << i;
      std::vector<float> last;
      for (size_t t = 0; t < segments[i].tokens.size(); ++t) {
        const auto one = RunSegments(*model, {PromptSegment({{100, 8}}, {segments[i].tokens[t]}, static_cast<int>(t))});
        ASSERT_TRUE(one.ok()) << one.status();
        last = one->at(0).readout.logits;
      }
      EXPECT_EQ(last, alone->at(0).readout.logits) << "segment " << i;
    }
  }
}

std::vector<int32_t> Greedy(MoeModel& model, const std::vector<int32_t>& prompt, int count) {
  std::vector<int32_t> tokens;
  OwnedSegment segment = PromptSegment({{0, 128}}, prompt);
  while (static_cast<int>(tokens.size()) < count) {
    const auto out = RunSegments(model, {segment});
    EXPECT_TRUE(out.ok()) << out.status();
    const std::vector<float>& logits = out->at(0).readout.logits;
    tokens.push_back(static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
    segment = PromptSegment({{0, 128}}, {tokens.back()}, static_cast<int>(prompt.size() + tokens.size()) - 1);
  }
  return tokens;
}

// Against the model that is made of the widened weights, in float32, by the same backend.
TEST_P(QuantizedModel, AnswersGreedilyAsTheModelOfItsWidenedWeights) {
  const auto model = Load("float32");
  const ModelConfig& config = model->config();
  const aten::MoeWeights tensors = WidenedTensors(GetParam().model, config, GetParam().weights);
  const auto widened =
      MoeModel::OnBackend(config, *MakeBackend(config, ViewsOf(tensors), WeightPlacement()), int64_t{1} << 20);
  ASSERT_TRUE(widened->AllocateKvCache(SlotsOf(256)).ok());
  std::mt19937 rng(5);
  for (int i = 0; i < 2; ++i) {
    const std::vector<int32_t> prompt = RandomTokens(rng, 5, config.vocabulary_size);
    EXPECT_EQ(Greedy(*model, prompt, 32), Greedy(*widened, prompt, 32)) << "prompt " << i;
  }
}

// What Score reads: log-probabilities of given tokens.
TEST_P(QuantizedModel, ScoresAreTheLogSoftmaxOfItsLogits) {
  const auto model = Load("auto");
  std::mt19937 rng(6);
  OwnedSegment segment = PromptSegment({{0, 16}}, RandomTokens(rng, 6, model->shape().vocabulary_size));
  segment.targets = RandomTokens(rng, 6, model->shape().vocabulary_size);
  const auto out = RunSegments(*model, {segment});
  ASSERT_TRUE(out.ok()) << out.status();
  const auto rows = LogprobsOf(*model, segment.tokens);
  for (size_t t = 0; t < rows.size(); ++t) {
    EXPECT_NEAR(out->at(0).target_logprobs[t], rows[t][segment.targets[t]], 1e-4) << "token " << t;
  }
}

// An objective reads the widened weights, whatever rounds the steps' activations: loss and gradient are those of
// autograd through the whole model of them.
TEST_P(QuantizedModel, GradientsAreThoseOfAutogradOverTheWidenedWeights) {
  const auto model = Load("auto");
  const ModelConfig& config = model->config();
  const ReferenceModel reference(config, ViewsOf(WidenedTensors(GetParam().model, config, GetParam().weights)));
  const std::vector<Scenario> scenarios = {
      {GetParam().model, ApplicationRule::kRouterShift, SurrogateLoss::kChoices, {1, 2}},
      {GetParam().model, ApplicationRule::kEveryNewToken, SurrogateLoss::kAnswer, {0, 1, 2}},
      {GetParam().model, ApplicationRule::kLastPromptToken, SurrogateLoss::kChoices, {1, 2}, true, 3, false}};
  for (const Scenario& scenario : scenarios) {
    SCOPED_TRACE(testing::PrintToString(scenario));
    std::mt19937 rng(1);
    const ObjectiveSpec spec = MakeSpec(rng, *model, scenario);
    const auto objective = model->NewObjective(spec);
    ASSERT_TRUE(objective.ok()) << objective.status();
    const RoutingOverride routing = MakeRouting(rng, *model, scenario);
    Pathway gradient;
    const auto loss = (*objective)->Evaluate(routing, &gradient);
    ASSERT_TRUE(loss.ok()) << loss.status();
    const at::Tensor values = ToTensor(routing.values, at::kDouble).requires_grad_(true);
    const at::Tensor expected = ReferenceLoss(reference, spec.cases, scenario, values);
    expected.backward();
    EXPECT_NEAR(*loss, expected.item<double>(), 1e-5 * std::abs(expected.item<double>()));
    const at::Tensor oracle = values.grad();
    const at::Tensor ours = at::from_blob(gradient.weights.data(), oracle.sizes(), at::kFloat).to(at::kDouble);
    const double size = oracle.norm().item<double>();
    EXPECT_GT(size, 1e-6);
    EXPECT_LE((ours - oracle).norm().item<double>(), 1e-4 * size);
  }
}

}  // namespace
}  // namespace c3po
