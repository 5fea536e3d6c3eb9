// Some 3,100 configurations, each a base of one family changed in one key, or in two that contradict each other,
// against what transformers 4.57 and 5.24 compute (tests/golden/config/make_config_goldens.py). A changed configuration
// is either refused with a message that names what was changed, or gives the golden's logits. Where the versions
// differ, 5.24 is followed; where it refuses, 4.57. What both refuse may be read where the change has no effect, and
// where it is a limit of their implementations (kBeyondTransformers).

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "absl/strings/str_cat.h"
#include "tests/server/model/synthetic_model.h"

namespace c3po {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kTolerance = 5e-4;  // Of the largest logit.

// Sizes that only their reshapes do not take, and stretched positions of the family that has no class there.
const std::set<std::string> kBeyondTransformers = {"vocab_size",       "num_attention_heads", "kv_lora_rank",
                                                   "qk_nope_head_dim", "rope_scaling",        "rope_parameters"};

class ConfigChange : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    std::ifstream file(std::string(C3PO_TESTDATA_DIR) + "/config/" + GetParam() + ".jsonl");
    for (std::string line; std::getline(file, line);) lines_.push_back(Json::parse(line));
    ASSERT_GT(lines_.size(), 300u);
    base_ = lines_.front()["base"];
    base_logits_ = lines_.front()["logits"].get<std::vector<float>>();
  }

  // The logits under a configuration that was parsed. A set of tensors is written once.
  std::vector<float> LogitsUnder(const ModelConfig& config, const std::string& text) {
    const StoredTensors tensors = SyntheticTensors(config);
    std::string key;
    for (const auto& [name, tensor] : tensors) absl::StrAppend(&key, name, ShapeString(tensor.shape), ";");
    const auto [at, is_new] = folders_.try_emplace(key, absl::StrCat(folder_.path(), "/", folders_.size()));
    if (is_new) {
      std::filesystem::create_directories(at->second);
      std::ofstream(at->second + "/model.safetensors", std::ios::binary) << SafetensorsOf(tensors);
    }
    std::ofstream(at->second + "/config.json") << text;
    return GoldenLogitsOf(at->second);
  }

  // Null: no version computes anything.
  std::optional<std::vector<float>> ExpectedOf(const Json& line) const {
    for (const char* column : {"both", "numpy", "v5", "v4"}) {
      if (!line.contains(column) || line[column] == "refused") continue;
      if (line[column] == "same") return base_logits_;
      return line[column].get<std::vector<float>>();
    }
    return std::nullopt;
  }

  std::vector<Json> lines_;
  Json base_;
  std::vector<float> base_logits_;
  TestFolder folder_;
  std::map<std::string, std::string> folders_;
};

// What a change touches: its keys, and those inside its values.
std::vector<std::string> NamesIn(const Json& line) {
  std::vector<std::string> names;
  if (line.contains("set")) {
    for (const auto& [key, value] : line["set"].items()) {
      names.push_back(key);
      if (!value.is_object()) continue;
      for (const auto& [inner, unused] : value.items()) names.push_back(inner);
    }
  }
  if (line.contains("drop")) {
    for (const Json& key : line["drop"]) names.push_back(key.get<std::string>());
  }
  return names;
}

double Distance(const std::vector<float>& got, const std::vector<float>& expected) {
  if (got.size() != expected.size()) return INFINITY;
  double most = 0, difference = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    most = std::max(most, std::abs(double{expected[i]}));
    if (!std::isfinite(got[i])) return INFINITY;
    difference = std::max(difference, std::abs(double{got[i]} - double{expected[i]}));
  }
  return difference / most;
}

TEST_P(ConfigChange, IsRefusedByNameOrGivesTheNumbersOfTransformers) {
  const auto base = ModelConfig::Parse(base_.dump(), "config.json");
  ASSERT_TRUE(base.ok()) << base.status();
  ASSERT_LT(Distance(LogitsUnder(*base, base_.dump()), base_logits_), kTolerance);
  int loaded = 0, changed = 0;
  for (size_t i = 1; i < lines_.size(); ++i) {
    const Json& line = lines_[i];
    Json json = base_;
    if (line.contains("set")) json.update(line["set"]);
    if (line.contains("drop")) {
      for (const Json& key : line["drop"]) json.erase(key.get<std::string>());
    }
    const auto config = ModelConfig::Parse(json.dump(), "config.json");
    if (!config.ok()) {
      const std::vector<std::string> names = NamesIn(line);
      const std::string message(config.status().message());
      EXPECT_TRUE(std::any_of(names.begin(), names.end(),
                              [&](const std::string& name) { return message.find(name) != std::string::npos; }))
          << message << "\n"
          << line;
      continue;
    }
    ++loaded;
    if (config->context_window < kGoldenTokens) continue;  // Positions that transformers computes and a server refuses.
    const auto golden = ExpectedOf(line);
    if (!golden && kBeyondTransformers.count(NamesIn(line).front()) == 1) continue;
    const std::vector<float> expected = golden.value_or(base_logits_);
    changed += expected != base_logits_;
    EXPECT_LT(Distance(LogitsUnder(*config, json.dump()), expected), kTolerance) << line;
  }
  EXPECT_GT(loaded, 50);  // A reader that refuses everything gives no wrong numbers either.
  EXPECT_GT(changed, 20);
}

INSTANTIATE_TEST_SUITE_P(Families, ConfigChange,
                         testing::Values("olmoe", "mixtral", "qwen2_moe", "qwen3_moe", "deepseek", "deepseek_v2",
                                         "deepseek_v2_groups", "granite_moe"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace c3po
