// Products in bfloat16: who may ask for them, and weights in pairs beside weights in panels.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "server/model/cpu/bfloat16_products.h"
#include "server/model/moe_model.h"
#include "server/weights/checkpoint.h"
#include "tests/server/model/tiny_model.h"

namespace c3po {
namespace {

using ::testing::HasSubstr;

MoeModelOptions Options(const std::string& name, const std::string& dtype, const std::string& arithmetic) {
  MoeModelOptions options;
  options.folder = TinyFolder(name);
  options.dtype = dtype;
  options.arithmetic = arithmetic;
  return options;
}

std::string ErrorOf(const std::string& dtype, const std::string& arithmetic) {
  return std::string(MoeModel::Load(Options("olmoe_tiny", dtype, arithmetic)).status().message());
}

std::vector<float> LogitsAfter(MoeModel& model, const std::vector<int32_t>& tokens) {
  EXPECT_TRUE(model.AllocateKvCache(64).ok());
  const auto out = model.Forward({PromptSegment({{0, 32}}, tokens)});
  EXPECT_TRUE(out.ok()) << out.status();
  return out->at(0).logits;
}

TEST(Arithmetic, OfBfloat16NeedsItsWeightsAndAProcessorForIt) {
  EXPECT_THAT(ErrorOf("bfloat16", "int8"), HasSubstr("arithmetic \"int8\" is not one of auto, float32, bfloat16"));
  EXPECT_THAT(ErrorOf("float32", "bfloat16"), HasSubstr("needs weights of dtype bfloat16"));
  const auto model = MoeModel::Load(Options("olmoe_tiny", "bfloat16", "bfloat16"));
  if (cpu::FastestBfloat16Unit() == cpu::Bfloat16Unit::kNone) {
    EXPECT_EQ(model.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(model.status().message()), HasSubstr("neither AVX-512 BF16 nor AMX"));
  } else {
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_EQ((*model)->shape().arithmetic, "bfloat16");
  }
  const auto chosen = MoeModel::Load(Options("olmoe_tiny", "bfloat16", "auto"));
  ASSERT_TRUE(chosen.ok()) << chosen.status();
  EXPECT_EQ((*chosen)->shape().arithmetic, model.ok() ? "bfloat16" : "float32");
  const auto wide = MoeModel::Load(Options("olmoe_tiny", "float32", "auto"));
  ASSERT_TRUE(wide.ok()) << wide.status();
  EXPECT_EQ((*wide)->shape().arithmetic, "float32");
  const auto plain = MoeModel::Load(Options("olmoe_tiny", "bfloat16", "float32"));
  ASSERT_TRUE(plain.ok()) << plain.status();
  EXPECT_EQ((*plain)->shape().arithmetic, "float32");
}

// Where the processor has no unit for pairs they are added up in the order of panels.
TEST(Arithmetic, WeightsInPairsGiveTheLogitsOfWeightsInPanels) {
  for (const std::string name : {"olmoe_tiny", "mixtral_tiny"}) {
    SCOPED_TRACE(name);
    const MoeModelOptions options = Options(name, "bfloat16", "float32");
    const auto panels = *MoeModel::Load(options);
    const auto checkpoint = *Checkpoint::Open(options.folder);
    auto weights = LoadMoeWeights(*checkpoint, panels->config(), at::kBFloat16, at::kCPU, nullptr);
    ASSERT_TRUE(weights.ok()) << weights.status();
    const auto pairs = MoeModel::FromWeights(panels->config(), *std::move(weights), 1 << 20, cpu::WeightLayout::kPairs);
    ASSERT_EQ(pairs->weights().layers[0].qkv.dim(), 4);
    const std::vector<int32_t> tokens = {1, 7, 3, 2, 11, 5, 6, 4};
    const std::vector<float> expected = LogitsAfter(*panels, tokens), got = LogitsAfter(*pairs, tokens);
    ASSERT_EQ(got.size(), expected.size());
    const auto [least, most] = std::minmax_element(expected.begin(), expected.end());
    const bool rounds = cpu::FastestBfloat16Unit() != cpu::Bfloat16Unit::kNone;
    for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected[i], rounds ? 0.02 * (*most - *least) : 0);
  }
}

}  // namespace
}  // namespace c3po
