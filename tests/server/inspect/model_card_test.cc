#include "server/inspect/model_card.h"

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/model/moe_model.h"
#include "tests/server/weights/safetensors_text.h"

namespace c3po {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using Json = nlohmann::json;

std::string Golden(const std::string& model) { return absl::StrCat(C3PO_TESTDATA_DIR, "/model/", model); }

class EveryFamily : public testing::TestWithParam<std::string> {};

TEST_P(EveryFamily, SaysOfTheModelWhatItIsOnceLoaded) {
  const ModelCard card = InspectModel(Golden(GetParam()));
  EXPECT_THAT(card.problems, IsEmpty());
  MoeModelOptions options;
  options.folder = Golden(GetParam());
  options.kv_cache_dtype = "float32";
  const auto model = MoeModel::Load(options);
  ASSERT_TRUE(model.ok()) << model.status();
  const ModelShape& shape = (*model)->shape();
  const Json json = Json::parse(CardJson(card));
  EXPECT_EQ(json["loads"], true);
  EXPECT_EQ(json["family"], shape.architecture);
  EXPECT_EQ(json["parameters"]["total"], shape.parameters);
  EXPECT_EQ(json["memory_bytes"]["bfloat16"]["weights"], 2 * shape.parameters);
  EXPECT_EQ(json["memory_bytes"]["float32"]["kv_per_1000_positions"], (*model)->backend().KvCacheBytes({1000, 1}));
  EXPECT_EQ(json["memory_bytes"]["bfloat16"]["kv_per_1000_positions"], (*model)->backend().KvCacheBytes({1000, 1}) / 2);
  // What is said of quantized weights is without what fills up groups and panels of these narrow experts.
  for (const std::string weights : {"int8", "int4"}) {
    options.dtype = "bfloat16";
    options.weights = weights;
    const auto quantized = MoeModel::Load(options);
    ASSERT_TRUE(quantized.ok()) << quantized.status();
    EXPECT_LT(json["memory_bytes"][weights]["weights"], (*quantized)->weight_bytes());
    EXPECT_LT(json["memory_bytes"][weights]["weights"], json["memory_bytes"]["bfloat16"]["weights"]);
  }
  EXPECT_LT(json["memory_bytes"]["int4"]["weights"], json["memory_bytes"]["int8"]["weights"]);
  EXPECT_EQ(json["moe_layers"], shape.moe_layers);
  EXPECT_EQ(json["experts"], shape.experts);
  EXPECT_LT(card.parameters.active, card.parameters.total);
}

INSTANTIATE_TEST_SUITE_P(Families, EveryFamily,
                         testing::Values("olmoe_tiny", "mixtral_tiny", "qwen2_moe_tiny", "qwen3_moe_tiny",
                                         "deepseek_tiny", "deepseek_v2_tiny", "granite_moe_tiny"));

class ChangedFolder : public testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::copy(Golden("olmoe_tiny"), folder_.path(), std::filesystem::copy_options::recursive);
  }
  Json Config() const { return Json::parse(std::ifstream(folder_.path() + "/config.json")); }

  TestFolder folder_;
};

TEST_F(ChangedFolder, NamesAnUnsupportedOptionAndADamagedTokenizerTogether) {
  Json config = Config();
  config["quantization_config"] = {{"quant_method", "fp8"}};
  folder_.Write("config.json", config.dump());
  folder_.Write("tokenizer.json", "{}");
  const ModelCard card = InspectModel(folder_.path());
  EXPECT_THAT(card.problems, ElementsAre(HasSubstr("quantization_config"), HasSubstr("tokenizer.json")));
  EXPECT_THAT(CardText(card), HasSubstr("loads           no"));
  EXPECT_EQ(Json::parse(CardJson(card))["loads"], false);
}

TEST_F(ChangedFolder, StillCountsWhereTheWeightsAreMissing) {
  std::filesystem::remove(folder_.path() + "/model.safetensors");
  const ModelCard card = InspectModel(folder_.path());
  EXPECT_THAT(card.problems, ElementsAre(HasSubstr("model.safetensors")));
  EXPECT_EQ(card.parameters.total, InspectModel(Golden("olmoe_tiny")).parameters.total);
}

TEST_F(ChangedFolder, TellsByWhichWayChatIsRendered) {
  const std::string files = absl::StrCat(C3PO_TESTDATA_DIR, "/chat/templates/");
  const std::string mine = folder_.path() + "/chat_template.jinja";
  const auto copy = [&](const char* name) {
    std::filesystem::copy_file(files + name, mine, std::filesystem::copy_options::overwrite_existing);
  };
  copy("qwen_2_5.jinja");
  EXPECT_THAT(CardText(InspectModel(folder_.path())), HasSubstr("chat            ChatML, a known format\n"));
  copy("harmony.jinja");
  const ModelCard card = InspectModel(folder_.path());
  EXPECT_THAT(CardText(card), HasSubstr("chat            rendered by Jinja\n"));
  EXPECT_EQ(Json::parse(CardJson(card))["chat"], "jinja");
  EXPECT_THAT(card.notes, IsEmpty());
  folder_.Write("chat_template.jinja", "{% if %}");
  EXPECT_THAT(InspectModel(folder_.path()).notes, ElementsAre(HasSubstr("is no Jinja: line 1")));
  std::filesystem::remove(mine);
  const ModelCard none = InspectModel(folder_.path());
  EXPECT_EQ(none.chat, "");
  EXPECT_THAT(none.notes, ElementsAre(HasSubstr("no chat, raw prompts only")));
}

TEST_F(ChangedFolder, TellsAMissingConfigOnce) {
  std::filesystem::remove(folder_.path() + "/config.json");
  EXPECT_THAT(InspectModel(folder_.path()).problems, ElementsAre(HasSubstr("config.json")));
}

TEST_F(ChangedFolder, ShowsTheSizesOfAHostileConfigWithoutTakingMemoryForThem) {
  Json config = Config();
  config["num_hidden_layers"] = config["hidden_size"] = 1 << 20;
  folder_.Write("config.json", config.dump());
  const ModelCard card = InspectModel(folder_.path());
  EXPECT_THAT(card.problems, ElementsAre(HasSubstr("tensor ")));
  EXPECT_EQ(Json::parse(CardJson(card))["memory_bytes"]["float32"]["weights"], INT64_MAX);
  EXPECT_GT(Json::parse(CardJson(card))["memory_bytes"]["int4"]["weights"], INT64_MAX / 8);
}

TEST_F(ChangedFolder, TakesEndTokensFromBothConfigsAndSaysWhatItLeaves) {
  folder_.Write(
      "generation_config.json",
      R"({"eos_token_id": [256, 258], "temperature": 0.6, "do_sample": true, "transformers_version": "4.57.6"})");
  folder_.Write("tokenizer_config.json", R"({"eos_token": {"content": "A"}})");
  const ModelCard card = InspectModel(folder_.path());
  EXPECT_THAT(card.problems, IsEmpty());
  EXPECT_THAT(CardText(card), HasSubstr("end tokens      256, 258\n"));
  EXPECT_THAT(CardText(card), HasSubstr("not do_sample, temperature"));
  EXPECT_THAT(CardText(card), HasSubstr("eos_token \"A\", id 65, does not end an answer"));
  EXPECT_EQ(Json::parse(CardJson(card))["eos_token_ids"], Json({256, 258}));
  MoeModelOptions options;
  options.folder = folder_.path();
  const auto model = MoeModel::Load(options);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_THAT((*model)->shape().eos_token_ids, ElementsAre(256, 258));

  folder_.Write("generation_config.json", R"({"eos_token_id": 260})");
  EXPECT_THAT(InspectModel(folder_.path()).problems,
              ElementsAre(HasSubstr("generation_config.json: eos_token_id must be token ids of the vocabulary")));
  EXPECT_EQ(MoeModel::Load(options).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(InspectMain, ExitsWithWhetherTheFolderWouldLoad) {
  const auto run = [](std::vector<std::string> arguments) {
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    return InspectMain(static_cast<int>(argv.size()), argv.data());
  };
  EXPECT_EQ(run({"inspect", Golden("olmoe_tiny")}), 0);
  EXPECT_EQ(run({"inspect", "--json", Golden("olmoe_tiny")}), 0);
  EXPECT_EQ(run({"inspect", Golden("none")}), 1);
  EXPECT_EQ(run({"inspect"}), 2);
  EXPECT_EQ(run({"inspect", "--unknown", Golden("olmoe_tiny")}), 2);
}

}  // namespace
}  // namespace c3po
