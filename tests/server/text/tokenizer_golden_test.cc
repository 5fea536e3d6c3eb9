#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "index/base/sha256.h"
#include "server/text/normalizer.h"
#include "server/text/pre_tokenizer.h"
#include "tests/server/text/golden_case.h"

namespace c3po {
namespace {

std::string Contents(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(stream), {});
}

// Each case is a tokenizer with the ids and texts that the Python library `tokenizers` gave for the golden strings.
class TokenizerGolden : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    ASSERT_TRUE(GetParam() != "olmo" || std::filesystem::exists(OlmoTokenizerPath()))
        << OlmoTokenizerPath() << " is missing: run deploy/install_deps.sh, which fetches it";
    expected_ = ReadJsonLines(GoldenPath(GetParam() + ".expected.jsonl"));
    ASSERT_FALSE(expected_.empty());
    const auto loaded = LoadCase(expected_[0]);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    tokenizer_ = *loaded;
  }

  std::vector<nlohmann::json> expected_;
  std::shared_ptr<const Tokenizer> tokenizer_;
};

TEST_P(TokenizerGolden, MadeFromTheFileAtHand) {
  const std::string base = GetParam() == "olmo" ? OlmoTokenizerPath() : GoldenPath(expected_[0]["base"]);
  EXPECT_EQ(Sha256::HexOf(Contents(base)), expected_[0]["base_sha256"]);
}

TEST_P(TokenizerGolden, EncodesEveryStringToTheSameIdsAndDecodesThemToTheSameText) {
  const std::vector<std::string> strings = GoldenStrings();
  ASSERT_GE(strings.size(), 5000u);
  ASSERT_EQ(expected_.size() - 1, strings.size());
  size_t in_full = 0;
  int differences = 0;
  for (size_t i = 0; i < strings.size() && differences < 10; ++i) {
    const nlohmann::json& line = expected_[1 + i];
    const auto ids = tokenizer_->Encode(strings[i], /*add_special_tokens=*/true);
    ASSERT_TRUE(ids.ok()) << ids.status();
    const std::string decoded = tokenizer_->Decode(*ids, /*skip_special_tokens=*/false);
    const std::string plain = tokenizer_->Decode(*ids, /*skip_special_tokens=*/true);
    const nlohmann::json text = strings[i];
    if (line.is_array()) {
      ++in_full;
      const std::vector<int32_t> expected_ids = line[0];
      const nlohmann::json& expected_decoded = line[1].is_null() ? text : line[1];
      EXPECT_EQ(*ids, expected_ids) << "string " << i << ": " << text.dump(-1, ' ', true);
      EXPECT_EQ(decoded, expected_decoded) << "string " << i;
      EXPECT_EQ(plain, line[2].is_null() ? expected_decoded : line[2]) << "string " << i;
    } else {
      const std::string whole = absl::StrCat(absl::StrJoin(*ids, ","), "\n", decoded, "\n", plain, "\n");
      EXPECT_EQ(Sha256::HexOf(whole).substr(0, 12), line) << "string " << i << ": " << text.dump(-1, ' ', true)
                                                          << " gives " << nlohmann::json(whole).dump(-1, ' ', true);
    }
    differences += testing::Test::HasFailure();
  }
  EXPECT_GT(in_full, 600u);
}

TEST_P(TokenizerGolden, DecodesRandomIdsToTheSameText) {
  const std::vector<nlohmann::json> lines = ReadJsonLines(GoldenPath(GetParam() + ".decode.jsonl"));
  ASSERT_GE(lines.size(), 20u);
  for (size_t i = 1; i < lines.size(); ++i) {
    const std::vector<int32_t> ids = lines[i][0];
    EXPECT_EQ(tokenizer_->Decode(ids, /*skip_special_tokens=*/i % 2 == 0), lines[i][1]) << "line " << i + 1;
  }
}

TEST_P(TokenizerGolden, PiecesAndIdsAreInverse) {
  ASSERT_GE(tokenizer_->vocabulary_size(), 600);
  for (int32_t id = 0; id < tokenizer_->vocabulary_size(); ++id) {
    EXPECT_EQ(tokenizer_->TokenToId(tokenizer_->Piece(id)), id) << tokenizer_->Piece(id);
    EXPECT_FALSE(tokenizer_->TokenBytes(id).empty() && tokenizer_->Piece(id) != "##") << id;
  }
}

// Pre-tokenizers and normalizers alone, with the words and texts that the library gave.
TEST(StageGolden, GivesTheSameWordsAndTexts) {
  const std::vector<std::string> strings = GoldenStrings();
  const std::vector<nlohmann::json> lines = ReadJsonLines(GoldenPath("stages.jsonl"));
  ASSERT_GE(lines.size(), 80u);
  for (const nlohmann::json& line : lines) {
    const bool cuts = line.contains("pre_tokenizer");
    const nlohmann::json& stage = line[cuts ? "pre_tokenizer" : "normalizer"];
    const std::string path = WriteTemporary("stage.json", stage.dump());
    const auto json = JsonField::ReadFile(path);
    unlink(path.c_str());
    ASSERT_TRUE(json.ok()) << json.status();
    const auto pre_tokenizer = PreTokenizer::FromJson(cuts ? std::make_optional(*json) : std::nullopt);
    const auto normalizer = Normalizer::FromJson(cuts ? std::nullopt : std::make_optional(*json));
    ASSERT_TRUE(pre_tokenizer.ok()) << pre_tokenizer.status();
    ASSERT_TRUE(normalizer.ok()) << normalizer.status();
    size_t at = line["first"];
    for (const nlohmann::json& expected : line["results"]) {
      const std::string& text = strings[at];
      nlohmann::json result = nlohmann::json::array();
      if (cuts) {
        const auto words = pre_tokenizer->Split({text, /*starts_input=*/true});
        ASSERT_TRUE(words.ok()) << words.status();
        for (const TextSegment& word : *words) result.push_back(word.text);
      } else {
        std::string rewritten = text;
        ASSERT_TRUE(normalizer->Normalize(&rewritten).ok());
        result = rewritten == text ? nlohmann::json() : nlohmann::json(rewritten);
      }
      EXPECT_EQ(result, expected) << stage.dump() << " on string " << at << ": "
                                  << nlohmann::json(text).dump(-1, ' ', true);
      at += line["stride"].get<size_t>();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, TokenizerGolden,
                         testing::Values("olmo", "byte_level", "metaspace", "word_piece", "deepseek", "qwen",
                                         "split_pattern", "prefix_space", "prepend", "metaspace_split", "cased",
                                         "deepseek_v3", "granite", "phi", "added_flags"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace c3po
