// Products in bfloat16: who may ask for them, and what rounding leaves of a model's numbers. Every processor runs the
// rounded paths: by its own unit, and by plain loops.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <set>

#include "server/compute/cpu/cpu_weights.h"
#include "server/compute/device.h"
#include "server/model/moe_model.h"
#include "tests/server/model/rounded_arithmetic.h"
#include "tests/server/model/tiny_model.h"

namespace c3po {
namespace {

using cpu::Bfloat16Unit;
using ::testing::HasSubstr;

MoeModelOptions Options(const std::string& name, const std::string& dtype, const std::string& arithmetic) {
  MoeModelOptions options;
  options.folder = TinyFolder(name);
  options.dtype = dtype;
  options.arithmetic = arithmetic;
  options.kv_cache_dtype = "float32";  // Products alone round.
  return options;
}

std::unique_ptr<MoeModel> LoadWith(const std::string& name, const std::string& arithmetic) {
  auto model = MoeModel::Load(Options(name, "bfloat16", arithmetic));
  EXPECT_TRUE(model.ok()) << model.status();
  EXPECT_TRUE((*model)->AllocateKvCache(SlotsOf(64)).ok());
  return *std::move(model);
}

std::string ErrorOf(const std::string& dtype, const std::string& arithmetic) {
  return std::string(MoeModel::Load(Options("olmoe_tiny", dtype, arithmetic)).status().message());
}

std::string ArithmeticOf(const std::string& dtype, const std::string& arithmetic) {
  const auto model = MoeModel::Load(Options("olmoe_tiny", dtype, arithmetic));
  EXPECT_TRUE(model.ok()) << model.status();
  return (*model)->shape().arithmetic;
}

TEST(Arithmetic, OfBfloat16NeedsItsWeightsAndAProcessorForIt) {
  EXPECT_THAT(ErrorOf("bfloat16", "int8"), HasSubstr("arithmetic \"int8\" is not one of auto, float32, bfloat16"));
  EXPECT_THAT(ErrorOf("float32", "bfloat16"), HasSubstr("needs weights of dtype bfloat16"));
  {
    const ScopedBfloat16Unit none(Bfloat16Unit::kNone);
    const auto model = MoeModel::Load(Options("olmoe_tiny", "bfloat16", "bfloat16"));
    EXPECT_EQ(model.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(model.status().message()), HasSubstr("neither AVX-512 BF16 nor AMX"));
    EXPECT_EQ(ArithmeticOf("bfloat16", "auto"), "float32");
  }
  for (const Bfloat16Unit unit : Bfloat16UnitsHere()) {
    SCOPED_TRACE(cpu::Bfloat16UnitName(unit));
    const ScopedBfloat16Unit scoped(unit);
    EXPECT_EQ(ArithmeticOf("bfloat16", "bfloat16"), "bfloat16");
    EXPECT_EQ(ArithmeticOf("bfloat16", "auto"), "bfloat16");
    EXPECT_EQ(ArithmeticOf("float32", "auto"), "float32");
    EXPECT_EQ(ArithmeticOf("bfloat16", "float32"), "float32");
  }
}

// Whatever the processor has.
WeightPlacement InPairs() { return {"cpu", ElementType::kBfloat16, cpu::WeightLayout::kPairs}; }

std::vector<float> LogitsAfter(MoeModel& model, const std::vector<int32_t>& tokens) {
  const auto out = RunSegments(model, {PromptSegment({{0, 32}}, tokens)});
  EXPECT_TRUE(out.ok()) << out.status();
  return out->at(0).readout.logits;
}

// Without a unit weights in pairs are added up in the order of panels.
TEST(Arithmetic, WithoutAUnitWeightsInPairsGiveTheLogitsOfWeightsInPanels) {
  const ScopedBfloat16Unit none(Bfloat16Unit::kNone);
  for (const std::string name : {"olmoe_tiny", "mixtral_tiny"}) {
    SCOPED_TRACE(name);
    const auto panels = LoadWith(name, "float32");
    const ModelConfig& config = panels->config();
    const cpu::CpuWeights packed =
        cpu::PackWeights(config, TinyWeights(name, config), ElementType::kBfloat16, cpu::WeightLayout::kPairs);
    ASSERT_EQ(packed.layers[0].qkv.layout, cpu::WeightLayout::kPairs);
    const auto pairs = PackTiny(name, config, InPairs());
    const std::vector<int32_t> tokens = {1, 7, 3, 2, 11, 5, 6, 4};
    EXPECT_EQ(LogitsAfter(*pairs, tokens), LogitsAfter(*panels, tokens));
  }
}

// What bfloat16 leaves of a number: half of its spacing at 1.
constexpr double kRounding = 1.0 / 256;

// The relative error of numbers behind so many products, whose roundings are independent of each other, and a factor of
// two for what norms make of it where a residual stream is small.
double ErrorAfter(int products) { return 2 * kRounding * std::sqrt(products); }

// Squares of differences and of what is expected, less its mean, over rows.
struct Difference {
  double error = 0, size = 0;

  void Add(absl::Span<const float> got, absl::Span<const float> expected) {
    ASSERT_EQ(got.size(), expected.size());
    const auto count = static_cast<double>(got.size());
    const double mean = std::accumulate(expected.begin(), expected.end(), 0.0) / count;
    for (size_t i = 0; i < got.size(); ++i) {
      error += std::pow(double{got[i]} - expected[i], 2);
      size += std::pow(expected[i] - mean, 2);
    }
  }
  double relative() const { return std::sqrt(error / size); }
};

// A router's logits but for a constant: the logarithms of its probabilities less their mean.
std::vector<float> LogitsOf(absl::Span<const float> probabilities) {
  std::vector<float> logits;
  for (const float p : probabilities) logits.push_back(std::log(p));
  const double mean = std::accumulate(logits.begin(), logits.end(), 0.0) / static_cast<double>(logits.size());
  for (float& logit : logits) logit -= static_cast<float>(mean);
  return logits;
}

// The experts that a layer runs at these probabilities.
std::set<size_t> ExpertsAt(absl::Span<const float> probabilities, const ModelConfig& config) {
  const size_t size = config.experts / config.expert_groups;
  const auto leads = [&](size_t expert) {  // Fewer groups than lead have a larger maximum than its group has.
    const auto maximum = [&](size_t group) {
      return *std::max_element(probabilities.begin() + group * size, probabilities.begin() + (group + 1) * size);
    };
    int larger = 0;
    for (int g = 0; g < config.expert_groups; ++g) larger += maximum(g) > maximum(expert / size);
    return larger < config.groups_per_token;
  };
  std::vector<size_t> order;
  for (size_t e = 0; e < probabilities.size(); ++e) {
    if (leads(e)) order.push_back(e);
  }
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return probabilities[a] > probabilities[b]; });
  return {order.begin(), order.begin() + config.experts_per_token};
}

struct Case {
  std::string model;
  Bfloat16Unit unit;
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.model << " " << cpu::Bfloat16UnitName(c.unit); }

// The same tokens, one after the other, through a model in float32 arithmetic and in bfloat16.
class RoundedModel : public testing::TestWithParam<Case> {
 protected:
  RoundedModel()
      : unit_(GetParam().unit),
        exact_(LoadWith(GetParam().model, "float32")),
        rounded_(LoadWith(GetParam().model, "bfloat16")) {}

  // Token `position` of both, which may be told what weights to give the experts of the lowest `forced` MoE layers.
  static SegmentOutput Run(MoeModel& model, int position, int32_t token, const Pathway& weights, int forced) {
    OwnedSegment segment = PromptSegment({{0, 64}}, {token}, position);
    segment.want_capture = true;
    if (forced > 0) {
      RoutingOverride routing{RoutingOverride::Kind::kWeights, {}, Pathway(forced, weights.experts)};
      for (int l = 0; l < forced; ++l) {
        routing.layers.push_back(l);
        std::copy_n(weights.Row(l).begin(), weights.experts, routing.values.Row(l).begin());
      }
      segment.routing = std::make_shared<const RoutingOverride>(std::move(routing));
    }
    auto out = RunSegments(model, {segment});
    EXPECT_TRUE(out.ok()) << out.status();
    return std::move(out->at(0));
  }

  // Products on the way to the router of a decoder layer, and to the logits: queries and keys, output, expert in, out.
  int ProductsBelow(int moe_layer) const { return 4 * rounded_->config().moe_layers[moe_layer] + 2; }
  int ProductsOfAll() const { return 4 * rounded_->config().layers + 1; }

  const ScopedBfloat16Unit unit_;
  const std::unique_ptr<MoeModel> exact_, rounded_;
};

constexpr int kTokens = 48;

// Both run what float32 chooses. A row may differ by four times what rows do on average.
TEST_P(RoundedModel, UnderTheSameRoutingLogitsDifferByWhatRoundingLeaves) {
  std::mt19937 rng(1);
  Difference all;
  for (int t = 0; t < kTokens; ++t) {
    const auto token = static_cast<int32_t>(rng() % exact_->shape().vocabulary_size);
    const SegmentOutput expected = Run(*exact_, t, token, {}, 0);
    const SegmentOutput got = Run(*rounded_, t, token, expected.capture.pathway, exact_->shape().moe_layers);
    Difference row;
    row.Add(got.readout.logits, expected.readout.logits);
    EXPECT_LT(row.relative(), 4 * ErrorAfter(ProductsOfAll())) << "token " << t;
    all.Add(got.readout.logits, expected.readout.logits);
  }
  EXPECT_LT(all.relative(), ErrorAfter(ProductsOfAll()));
  EXPECT_GT(all.relative(), 0) << "nothing was rounded";
  RecordProperty("logits_error", testing::PrintToString(all.relative()));
}

// Each layer's router is asked below its own choice, under what float32 chose before. Then it chooses otherwise only
// where two experts are closer to each other than rounding: rarely.
TEST_P(RoundedModel, RoutersDifferByWhatRoundingLeavesAndSeldomChooseOtherwise) {
  std::mt19937 rng(1);
  const int layers = exact_->shape().moe_layers;
  std::vector<Difference> routers(layers);
  int otherwise = 0;
  for (int t = 0; t < kTokens; ++t) {
    const auto token = static_cast<int32_t>(rng() % exact_->shape().vocabulary_size);
    const Pathway expected = Run(*exact_, t, token, {}, 0).capture.pathway;
    for (int l = 0; l <= layers; ++l) {  // The last one leaves keys and values for the tokens to come.
      const Pathway got = Run(*rounded_, t, token, expected, l).capture.pathway;
      if (l == layers) break;
      routers[l].Add(LogitsOf(got.Row(l)), LogitsOf(expected.Row(l)));
      otherwise += ExpertsAt(got.Row(l), exact_->config()) != ExpertsAt(expected.Row(l), exact_->config());
    }
  }
  for (int l = 0; l < layers; ++l) EXPECT_LT(routers[l].relative(), ErrorAfter(ProductsBelow(l))) << "layer " << l;
  EXPECT_LT(otherwise, kTokens * layers / 20);
  RecordProperty("chose_otherwise", otherwise);
}

// Each routes by itself. As long as both have chosen the same experts, their logits agree; where they have not, two
// models speak that have nothing to do with each other, as a tiny random one's experts have not.
TEST_P(RoundedModel, RoutedByItselfLogitsAgreeUntilAnotherExpertIsChosen) {
  std::mt19937 rng(2);
  constexpr int kSequences = 10, kLength = 6;
  int judged = 0;
  for (int s = 0; s < kSequences; ++s) {
    for (int t = 0; t < kLength; ++t) {
      const auto token = static_cast<int32_t>(rng() % exact_->shape().vocabulary_size);
      const SegmentOutput expected = Run(*exact_, t, token, {}, 0), got = Run(*rounded_, t, token, {}, 0);
      bool same = true;
      for (int l = 0; l < exact_->shape().moe_layers; ++l) {
        same = same && ExpertsAt(got.capture.pathway.Row(l), exact_->config()) ==
                           ExpertsAt(expected.capture.pathway.Row(l), exact_->config());
      }
      if (!same) break;
      ++judged;
      Difference row;
      row.Add(got.readout.logits, expected.readout.logits);
      EXPECT_LT(row.relative(), 4 * ErrorAfter(ProductsOfAll())) << "sequence " << s << " token " << t;
    }
  }
  EXPECT_GT(judged, kSequences * kLength / 2);
  RecordProperty("judged", judged);
}

TEST_P(RoundedModel, ARowIsBitwiseTheSameInAnyBatch) {
  std::mt19937 rng(3);
  std::vector<OwnedSegment> segments;
  for (int i = 0; i < 9; ++i) {
    std::vector<int32_t> tokens(1 + i % 4);
    for (int32_t& token : tokens) token = static_cast<int32_t>(rng() % rounded_->shape().vocabulary_size);
    segments.push_back(PromptSegment({{4 * i, 4}}, tokens));
  }
  const auto together = RunSegments(*rounded_, segments);
  ASSERT_TRUE(together.ok()) << together.status();
  for (size_t i = 0; i < segments.size(); ++i) {
    const auto alone = RunSegments(*rounded_, {segments[i]});
    ASSERT_TRUE(alone.ok()) << alone.status();
    EXPECT_EQ(together->at(i).readout.logits, alone->at(0).readout.logits) << "segment " << i;
  }
}

std::vector<Case> AllCases() {
  std::vector<Case> cases;
  for (const char* model : {"olmoe_tiny", "mixtral_tiny", "mixtral_dense_tiny", "qwen2_moe_tiny", "qwen3_moe_tiny",
                            "deepseek_tiny", "deepseek_v2_lite_tiny", "deepseek_v2_tiny", "granite_moe_tiny"}) {
    for (const Bfloat16Unit unit : Bfloat16UnitsHere()) cases.push_back({model, unit});
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Families, RoundedModel, testing::ValuesIn(AllCases()));

}  // namespace
}  // namespace c3po
