#include "server/model/config/tensor_plan.h"

#include <limits>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace c3po {
namespace {

using testing::HasSubstr;

struct Folder {
  std::unique_ptr<Checkpoint> checkpoint;
  ModelConfig config;
};

Folder Open(const std::string& model) {
  auto checkpoint = Checkpoint::Open(absl::StrCat(C3PO_TESTDATA_DIR, "/model/", model));
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  auto config = ModelConfig::Parse((*checkpoint)->config_json(), "config.json");
  EXPECT_TRUE(config.ok()) << config.status();
  return {*std::move(checkpoint), *std::move(config)};
}

class TensorPlan : public testing::TestWithParam<std::string> {};

TEST_P(TensorPlan, IsWhatTheFolderHolds) {
  const Folder folder = Open(GetParam());
  EXPECT_TRUE(CheckTensors(*folder.checkpoint, folder.config).ok()) << CheckTensors(*folder.checkpoint, folder.config);
}

TEST_P(TensorPlan, CountsEveryElementOnce) {
  const Folder folder = Open(GetParam());
  int64_t elements = 0;
  for (const std::string& name : folder.checkpoint->names()) elements += folder.checkpoint->Find(name)->elements();
  const ParameterCounts counts = CountParameters(folder.config);
  EXPECT_EQ(counts.total, elements);
  EXPECT_EQ(counts.embedding + counts.head + counts.attention + counts.routed_experts + counts.shared_experts +
                counts.dense_layers + counts.routers_and_norms,
            elements);
}

INSTANTIATE_TEST_SUITE_P(Families, TensorPlan,
                         testing::Values("olmoe_tiny", "mixtral_tiny", "mixtral_dense_tiny", "qwen2_moe_tiny",
                                         "qwen3_moe_tiny", "deepseek_tiny", "deepseek_v2_tiny", "deepseek_v2_lite_tiny",
                                         "granite_moe_tiny"));

// https://arxiv.org/abs/2409.02060, table 1: 6.9 billion parameters, 1.3 billion active.
TEST(CountParameters, GivesThePublishedFiguresOfOlmoe) {
  ModelConfig config;
  config.family = ModelConfig::Family::kOlmoe;
  config.hidden_size = 2048;
  config.layers = 16;
  config.heads = config.kv_heads = 16;
  config.head_dim = 128;
  config.intermediate_size = 1024;
  config.experts = 64;
  config.experts_per_token = 8;
  config.vocabulary_size = 50304;
  config.qk_norm = ModelConfig::QkNorm::kWhole;
  config.FillDerived();
  const ParameterCounts counts = CountParameters(config);
  EXPECT_EQ(counts.total, 6'919'161'856);
  EXPECT_EQ(counts.active, counts.total - int64_t{16} * 56 * 3 * 2048 * 1024);
}

TEST(CountParameters, SaturatesAndLooksAtOneLayerOfAKind) {
  ModelConfig config = Open("olmoe_tiny").config;
  config.layers = config.experts = config.hidden_size = config.intermediate_size = 1 << 20;
  config.moe_layers.clear();
  config.FillDerived();
  EXPECT_EQ(CountParameters(config).total, std::numeric_limits<int64_t>::max());
}

// What a tree of JSON is copied and printed with is recursion.
TEST(ModelConfig, RefusesAConfigurationThatNestsDeeply) {
  const std::string deep = std::string(1 << 20, '[') + std::string(1 << 20, ']');
  const auto config = ModelConfig::Parse(absl::StrCat(R"({"alibi":)", deep, "}"), "config.json");
  EXPECT_THAT(std::string(config.status().message()), HasSubstr("config.json: nests deeper than 64 levels"));
}

TEST(ModelConfig, RefusesSharedExpertsWhoseNeuronsOverflow) {
  std::string text(Open("deepseek_tiny").checkpoint->config_json());
  const std::string field = "\"n_shared_experts\": ";
  const size_t at = text.find(field);
  ASSERT_NE(at, std::string::npos);
  text.insert(at + field.size(), "100000");
  EXPECT_THAT(std::string(ModelConfig::Parse(text, "config.json").status().message()), HasSubstr("n_shared_experts"));
}

// The configuration asks for 2^40 tensors; the folder has a few dozen.
TEST(CheckTensors, StopsAtTheFirstTensorThatIsMissing) {
  Folder folder = Open("olmoe_tiny");
  folder.config.experts = 1 << 20;
  EXPECT_THAT(std::string(CheckTensors(*folder.checkpoint, folder.config).message()),
              HasSubstr("mlp.gate.weight: shape"));
  folder = Open("olmoe_tiny");
  folder.config.layers = 1 << 20;
  folder.config.moe_layers.clear();
  folder.config.FillDerived();
  const absl::Status status = CheckTensors(*folder.checkpoint, folder.config);
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("input_layernorm.weight\" is missing"));
}

TEST(CheckTensors, NamesATensorOfAnotherShapeAndOneThatIsNotOfTheArchitecture) {
  Folder folder = Open("qwen2_moe_tiny");
  folder.config.vocabulary_size += 1;
  EXPECT_THAT(std::string(CheckTensors(*folder.checkpoint, folder.config).message()),
              HasSubstr("tensor model.embed_tokens.weight: shape ["));
  folder = Open("qwen2_moe_tiny");
  folder.config.shared_intermediate_size = 0;
  folder.config.shared_gate = false;
  EXPECT_THAT(std::string(CheckTensors(*folder.checkpoint, folder.config).message()),
              HasSubstr("mlp.shared_expert.down_proj.weight: not part of this architecture"));
}

}  // namespace
}  // namespace c3po
