#include "server/rpc/doors/model_facts.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

namespace c3po {
namespace {

absl::StatusOr<ModelFacts> Facts(const std::string& config) {
  const std::string folder = testing::TempDir();
  std::ofstream(folder + "/config.json") << config;
  return ModelFacts::Read(folder);
}

TEST(ModelFacts, AreThoseOfConfigJson) {
  const auto facts = ModelFacts::Read(std::string(C3PO_SOURCE_DIR) + "/tests/golden/model/mixtral_tiny");
  ASSERT_TRUE(facts.ok()) << facts.status();
  EXPECT_EQ(facts->model_type, "mixtral");
  EXPECT_EQ(facts->pad_token_id, 257);
  EXPECT_EQ(facts->bos_token_id, 0);  // null there
}

TEST(ModelFacts, AreEmptyWhereTheFileSaysNothingOrNonsense) {
  for (const char* config : {"{}", R"({"model_type":7,"pad_token_id":-1,"bos_token_id":99999999999})"}) {
    const auto facts = Facts(config);
    ASSERT_TRUE(facts.ok()) << facts.status();
    EXPECT_EQ(facts->model_type, "");
    EXPECT_EQ(facts->pad_token_id, 0);
    EXPECT_EQ(facts->bos_token_id, 0);
  }
  EXPECT_TRUE(absl::IsInvalidArgument(Facts("[1]").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(Facts("{").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(Facts(std::string(100000, '[')).status()));
}

TEST(SamplingDefaultsJson, IsWhatARequestGetsThatSaysNothing) {
  const nlohmann::json json = nlohmann::json::parse(SamplingDefaultsJson(SamplingParams()));
  EXPECT_EQ(json,
            nlohmann::json::parse(R"({"temperature":0.0,"top_p":1.0,"top_k":0,"min_p":0.0,"repetition_penalty":1.0})"));
}

}  // namespace
}  // namespace c3po
