// What a checkpoint may hold beside the tensors of its plan, and the forms in which versions of transformers store one
// model.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "server/inspect/model_card.h"
#include "tests/server/model/synthetic_model.h"

namespace c3po {
namespace {

using Json = nlohmann::json;
using testing::FloatNear;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Pointwise;

std::string ConfigFolder() { return std::string(C3PO_TESTDATA_DIR) + "/config/"; }

std::string TextOf(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

// The first line of a base's goldens.
Json BaseOf(const std::string& name) {
  std::ifstream file(ConfigFolder() + name + ".jsonl");
  std::string line;
  std::getline(file, line);
  return Json::parse(line);
}

std::vector<float> GoldenOf(const std::string& name) { return BaseOf(name)["logits"].get<std::vector<float>>(); }

StoredTensors TensorsOf(const Json& config) {
  const auto parsed = ModelConfig::Parse(config.dump(), "config.json");
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  return SyntheticTensors(*parsed);
}

class SavedBy5 : public testing::TestWithParam<std::string> {};

// With save_original_format=False: experts together, routers renamed.
TEST_P(SavedBy5, GivesTheNumbersOfTransformers) {
  const std::string folder = ConfigFolder() + "saved_5/" + GetParam();
  EXPECT_THAT(GoldenLogitsOf(folder), Pointwise(FloatNear(2e-3), GoldenOf(GetParam())));
  const ModelCard card = InspectModel(folder);
  EXPECT_EQ(card.problems.size(), 1u);  // These folders have no tokenizer.
  EXPECT_THAT(card.problems.front(), HasSubstr("tokenizer.json"));
}

// With save_original_format=True, its default: the keys of 5.24, the tensors of 4.57.
TEST_P(SavedBy5, GivesThemWithTheTensorsOf4) {
  const TestFolder folder;
  const std::string config = TextOf(ConfigFolder() + "saved_5/" + GetParam() + "/config.json");
  folder.Write("config.json", config);
  folder.Write("model.safetensors", SafetensorsOf(TensorsOf(Json::parse(config))));
  EXPECT_THAT(GoldenLogitsOf(folder.path()), Pointwise(FloatNear(2e-3), GoldenOf(GetParam())));
}

INSTANTIATE_TEST_SUITE_P(Families, SavedBy5,
                         testing::Values("olmoe", "mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2",
                                         "deepseek_v2_groups", "granite_moe"),
                         [](const auto& info) { return info.param; });

class StoredLayout : public testing::Test {
 protected:
  std::string Write(const Json& config, const StoredTensors& tensors) const {
    folder_.Write("config.json", config.dump());
    folder_.Write("model.safetensors", SafetensorsOf(tensors));
    return folder_.path();
  }
  // Loading and inspecting must say the same.
  void ExpectRefused(const Json& config, const StoredTensors& tensors, const std::string& what) const {
    MoeModelOptions options;
    options.folder = Write(config, tensors);
    const absl::Status status = MoeModel::Load(options).status();
    EXPECT_THAT(std::string(status.message()), HasSubstr(what));
    EXPECT_EQ(CheckFolder(options.folder), status);
    const ModelCard card = InspectModel(options.folder);
    ASSERT_FALSE(card.problems.empty());
    EXPECT_EQ(card.problems.front(), status.message());
  }

  TestFolder folder_;
};

TEST_F(StoredLayout, RefusesExpertsThatAreStoredTwice) {
  for (const std::string name : {"mixtral", "qwen3_moe", "deepseek_v2"}) {
    const Json config = BaseOf(name)["base"];
    StoredTensors tensors = TensorsOf(config);
    const std::string together = "model.layers.1.mlp.experts.down_proj";
    tensors[together] = {{6, 32, 4}, std::vector<float>(6 * 32 * 4)};
    ExpectRefused(config, tensors, "tensor " + together + ": not part of this architecture");
  }
}

// As in transformers from 5.0 on.
TEST_F(StoredLayout, UsesAStoredHeadThatDiffersFromTheTiedEmbeddings) {
  Json config = BaseOf("mixtral")["base"];
  const std::vector<float> untied = GoldenLogitsOf(Write(config, TensorsOf(config)));
  config["tie_word_embeddings"] = true;
  StoredTensors tensors = TensorsOf(config);
  const int64_t tied_parameters = InspectModel(Write(config, tensors)).parameters.total;
  const std::vector<float> tied = GoldenLogitsOf(folder_.path());

  tensors["lm_head.weight"] = {{48, 32}, SyntheticTensor("lm_head.weight", 48 * 32)};
  EXPECT_THAT(untied, Pointwise(FloatNear(2e-3), GoldenOf("mixtral")));
  EXPECT_EQ(GoldenLogitsOf(Write(config, tensors)), untied);
  EXPECT_NE(tied, untied);
  const ModelCard card = InspectModel(folder_.path());
  EXPECT_EQ(card.parameters.total, tied_parameters + 48 * 32);
  EXPECT_THAT(card.notes, testing::Contains(HasSubstr("lm_head.weight differs from model.embed_tokens.weight")));
}

TEST_F(StoredLayout, HoldsAnEqualCopyOfTheTiedEmbeddingsOnce) {
  Json config = BaseOf("mixtral")["base"];
  config["tie_word_embeddings"] = true;
  StoredTensors tensors = TensorsOf(config);
  const std::vector<float> tied = GoldenLogitsOf(Write(config, tensors));
  tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"];
  MoeModelOptions options;
  options.folder = Write(config, tensors);
  EXPECT_EQ(GoldenLogitsOf(options.folder), tied);
  const auto model = MoeModel::Load(options);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ((*model)->weight_bytes(), 4 * (*model)->shape().parameters);
  const ModelCard card = InspectModel(options.folder);
  EXPECT_EQ(card.parameters.total, (*model)->shape().parameters);
  EXPECT_THAT(card.notes, testing::Not(testing::Contains(HasSubstr("lm_head.weight"))));
}

TEST_F(StoredLayout, RefusesAStoredHeadOfAnotherShapeBesideTiedEmbeddings) {
  Json config = BaseOf("mixtral")["base"];
  config["tie_word_embeddings"] = true;
  StoredTensors tensors = TensorsOf(config);
  tensors["lm_head.weight"] = {{47, 32}, std::vector<float>(47 * 32)};
  ExpectRefused(config, tensors, "tensor lm_head.weight: shape [47, 32], config.json asks for [48, 32]");
}

// Every tensor that some configuration of the family has and this one has not.
TEST_F(StoredLayout, RefusesOptionalTensorsThatTheConfigurationLeavesOut) {
  const struct {
    const char *base, *name;
    std::vector<int64_t> shape;
  } kOptional[] = {
      {"olmoe", "model.layers.0.self_attn.q_proj.bias", {32}},
      {"olmoe", "model.layers.0.self_attn.o_proj.bias", {32}},
      {"mixtral", "model.layers.0.self_attn.q_norm.weight", {8}},
      {"mixtral", "lm_head.bias", {48}},
      {"mixtral", "model.embed_tokens.bias", {48}},
      {"qwen2_moe", "model.layers.0.self_attn.o_proj.bias", {32}},
      {"qwen2_moe", "model.layers.1.mlp.gate.weight", {6, 32}},  // A dense layer.
      {"qwen3_moe", "model.layers.0.mlp.shared_expert_gate.weight", {1, 32}},
      {"qwen3_moe", "model.layers.2.input_layernorm.weight", {32}},  // One layer too many.
      {"qwen3_moe", "model.layers.0.mlp.experts.0.gate_proj.bias", {4}},
      {"deepseek", "model.layers.1.mlp.gate.e_score_correction_bias", {8}},
      {"deepseek_v2", "model.layers.1.mlp.gate.e_score_correction_bias", {8}},
      {"deepseek_v2", "model.layers.0.self_attn.q_a_proj.weight", {12, 32}},
      {"deepseek_v2", "model.layers.0.self_attn.kv_a_proj_with_mqa.bias", {16}},
      {"granite_moe", "model.layers.0.block_sparse_moe.router.layer.bias", {6}},
  };
  for (const auto& [base, name, shape] : kOptional) {
    SCOPED_TRACE(name);
    const Json config = BaseOf(base)["base"];
    StoredTensors tensors = TensorsOf(config);
    size_t elements = 1;
    for (const int64_t dimension : shape) elements *= static_cast<size_t>(dimension);
    tensors[name] = {shape, std::vector<float>(elements, 0.5f)};
    ExpectRefused(config, tensors, absl::StrCat("tensor ", name, ": not part of this architecture"));
  }
}

TEST_F(StoredLayout, TakesStoredFrequenciesOnlyWhereTheyAreThoseOfTheConfiguration) {
  const std::string name = "model.layers.1.self_attn.rotary_emb.inv_freq";
  for (const std::string base : {"mixtral", "granite_moe"}) {  // The second one's are stretched by up to 4.
    SCOPED_TRACE(base);
    const Json config = BaseOf(base)["base"];
    StoredTensors tensors = TensorsOf(config);
    std::vector<float> frequencies(4);
    for (int i = 0; i < 4; ++i) frequencies[i] = static_cast<float>(std::pow(100.0, -i / 4.0));
    tensors[name] = {{4}, frequencies};
    EXPECT_THAT(GoldenLogitsOf(Write(config, tensors)), Pointwise(FloatNear(2e-3), GoldenOf(base)));
    tensors[name].values[2] *= base == "mixtral" ? 0.9f : 0.2f;
    ExpectRefused(config, tensors, absl::StrCat("tensor ", name, ": entry 2 is"));
    tensors[name] = {{5}, std::vector<float>(5, 1.0f)};
    ExpectRefused(config, tensors, absl::StrCat("tensor ", name, ": shape [5]"));
  }
}

// Python's json.dump writes them.
TEST_F(StoredLayout, PassesOverNumbersThatJsonDoesNotHave) {
  const Json config = BaseOf("mixtral")["base"];
  std::string text = config.dump();
  Write(config, TensorsOf(config));
  folder_.Write("config.json", text.substr(0, text.size() - 1) + R"(, "loss": NaN, "best": [-Infinity, Infinity]})");
  EXPECT_THAT(GoldenLogitsOf(folder_.path()), Pointwise(FloatNear(2e-3), GoldenOf("mixtral")));
  for (const std::string number : {"NaN", "Infinity", "-Infinity"}) {
    const std::string wrong = text.substr(0, text.size() - 1) + R"(, "rope_theta": )" + number + "}";
    EXPECT_THAT(std::string(ModelConfig::Parse(wrong, "config.json").status().message()),
                HasSubstr("rope_theta must be a positive number"));
  }
}

}  // namespace
}  // namespace c3po
