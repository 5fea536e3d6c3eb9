#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "index/base/sha256.h"
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

TEST_P(TokenizerGolden, EncodesEveryStringToTheSameIds) {
  const std::vector<std::string> strings = GoldenStrings();
  ASSERT_GE(strings.size(), 2000u);
  const size_t stride = expected_[0]["stride"];
  ASSERT_EQ(expected_.size() - 1, (strings.size() + stride - 1) / stride);
  int differences = 0;
  for (size_t i = 0; i < strings.size() && differences < 10; i += stride) {
    const auto ids = tokenizer_->Encode(strings[i], /*add_special_tokens=*/true);
    ASSERT_TRUE(ids.ok()) << ids.status();
    const std::vector<int32_t> expected_ids = expected_[1 + i / stride][0];
    EXPECT_EQ(*ids, expected_ids) << "string " << i << ": " << nlohmann::json(strings[i]).dump(-1, ' ', true);
    differences += *ids != expected_ids;
  }
}

TEST_P(TokenizerGolden, DecodesTheIdsToTheSameText) {
  const std::vector<std::string> strings = GoldenStrings();
  const size_t stride = expected_[0]["stride"];
  int differences = 0;
  for (size_t i = 0; i < strings.size() && differences < 10; i += stride) {
    const nlohmann::json& line = expected_[1 + i / stride];
    const std::vector<int32_t> ids = line[0];
    const std::string with_special = line[1].is_null() ? strings[i] : line[1].get<std::string>();
    const std::string without_special = line[2].is_null() ? with_special : line[2].get<std::string>();
    EXPECT_EQ(tokenizer_->Decode(ids, /*skip_special_tokens=*/false), with_special) << "string " << i;
    EXPECT_EQ(tokenizer_->Decode(ids, /*skip_special_tokens=*/true), without_special) << "string " << i;
    differences += tokenizer_->Decode(ids, false) != with_special || tokenizer_->Decode(ids, true) != without_special;
  }
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

INSTANTIATE_TEST_SUITE_P(Cases, TokenizerGolden,
                         testing::Values("olmo", "byte_level", "metaspace", "word_piece", "split_pattern",
                                         "prefix_space", "prepend", "metaspace_split", "cased"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace c3po
