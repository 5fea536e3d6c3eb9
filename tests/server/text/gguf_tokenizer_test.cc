// A tokenizer out of a GGUF file's metadata gives the ids of the tokenizer.json that llama.cpp's converter read
// (tests/golden/gguf/make_gguf_tokenizers.py).

#include "server/text/gguf_tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/text/chat_templates.h"
#include "server/text/tokenizer.h"
#include "tests/server/text/golden_case.h"
#include "tests/server/weights/safetensors_text.h"

namespace c3po {
namespace {

using testing::HasSubstr;

std::string GgufPath(const std::string& name) {
  return absl::StrCat(C3PO_TESTDATA_DIR, "/gguf/", name, ".vocabulary.gguf");
}
std::string Contents(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(stream), {});
}

struct Case {
  const char* name;
  const char* tokenizer_json;
  // Added tokens with flags that a GGUF file does not hold: lstrip, single_word. Texts with these are left out.
  std::vector<const char*> lost = {};
};
void PrintTo(const Case& c, std::ostream* stream) { *stream << c.name; }

class GgufTokenizerGolden : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const auto from_gguf = Tokenizer::LoadFolder(GgufPath(GetParam().name));
    ASSERT_TRUE(from_gguf.ok()) << from_gguf.status();
    const auto from_json = Tokenizer::Load(absl::StrCat(C3PO_TESTDATA_DIR, "/", GetParam().tokenizer_json));
    ASSERT_TRUE(from_json.ok()) << from_json.status();
    gguf_ = *from_gguf;
    json_ = *from_json;
  }

  std::shared_ptr<const Tokenizer> gguf_, json_;
};

TEST_P(GgufTokenizerGolden, EncodesAndDecodesAsItsTokenizerJson) {
  const std::vector<std::string> strings = GoldenStrings();
  ASSERT_GE(strings.size(), 5000u);
  int differences = 0;
  size_t compared = 0;
  for (const std::string& text : strings) {
    const auto has = [&text](const char* lost) { return text.find(lost) != text.npos; };
    if (std::any_of(GetParam().lost.begin(), GetParam().lost.end(), has)) continue;
    ++compared;
    for (const bool add_special_tokens : {false, true}) {
      const auto ids = gguf_->Encode(text, add_special_tokens), expected = json_->Encode(text, add_special_tokens);
      ASSERT_TRUE(ids.ok() && expected.ok()) << ids.status() << expected.status();
      EXPECT_EQ(*ids, *expected) << text;
      EXPECT_EQ(gguf_->Decode(*ids, false), json_->Decode(*expected, false)) << text;
      differences += *ids != *expected ? 1 : 0;
    }
    ASSERT_LT(differences, 10);
  }
  EXPECT_GE(compared, strings.size() * 9 / 10);
}

TEST_P(GgufTokenizerGolden, HasItsPieces) {
  ASSERT_EQ(gguf_->vocabulary_size(), json_->vocabulary_size());
  for (int32_t id = 0; id < gguf_->vocabulary_size(); ++id) {
    EXPECT_EQ(gguf_->Piece(id), json_->Piece(id)) << id;
    EXPECT_EQ(gguf_->TokenBytes(id), json_->TokenBytes(id)) << id;
    EXPECT_EQ(gguf_->IsSpecial(id), json_->IsSpecial(id)) << id;
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, GgufTokenizerGolden,
                         testing::Values(Case{"byte_level", "tokenizer/byte_level.json", {"<|tool|>", "zig zag"}},
                                         Case{"qwen", "tokenizer/qwen.json"},
                                         Case{"deepseek", "tokenizer/deepseek.json"},
                                         Case{"sentence_piece", "gguf/sentence_piece.tokenizer.json"}));

TEST(GgufTokenizer, GivesTheChatTemplateAndItsTokens) {
  const auto templates = ChatTemplates::Read(ChatTemplates::ConfigPath(GgufPath("byte_level")));
  ASSERT_TRUE(templates.ok()) << templates.status();
  EXPECT_EQ(templates->standard, Contents(absl::StrCat(C3PO_TESTDATA_DIR, "/chat/templates/chatml.jinja")));
  EXPECT_EQ(templates->tool_use, "");
  EXPECT_EQ(templates->bos_token, "<|im_start|>");
  EXPECT_EQ(templates->eos_token, "<|im_end|>");
  EXPECT_EQ(templates->origin, GgufPath("byte_level"));
}

TEST(GgufTokenizer, WithoutAChatTemplateSaysSo) {
  const auto templates = ChatTemplates::Read(ChatTemplates::ConfigPath(GgufPath("deepseek")));
  EXPECT_EQ(templates.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(templates.status().message()), HasSubstr("deepseek.vocabulary.gguf: has no chat_template"));
}

// The error of a golden file in which one text, wherever it stands, is another of the same length.
absl::Status ErrorWith(const std::string& name, const std::string& from, const std::string& to) {
  std::string bytes = Contents(GgufPath(name));
  EXPECT_EQ(from.size(), to.size());
  size_t at = bytes.find(from);
  EXPECT_NE(at, bytes.npos);
  for (; at != bytes.npos; at = bytes.find(from, at + 1)) bytes.replace(at, to.size(), to);
  TestFolder folder;
  const absl::Status status = Tokenizer::LoadFolder(folder.Write("t.gguf", bytes)).status();
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr("t.gguf"));
  return status;
}

TEST(GgufTokenizer, RefusesWhatItDoesNotKnowByName) {
  absl::Status status = ErrorWith("qwen", "qwen2", "qwen9");
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), HasSubstr("key \"tokenizer.ggml.pre\" \"qwen9\" is not supported"));
  status = ErrorWith("qwen", "gpt2", "bert");
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), HasSubstr("key \"tokenizer.ggml.model\" \"bert\" is not supported"));
  status = ErrorWith("qwen", "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_bos_other");
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), HasSubstr("key \"tokenizer.ggml.add_bos_other\" is not supported"));
}

TEST(GgufTokenizer, NamesWhatIsMissingOrInconsistent) {
  EXPECT_THAT(std::string(ErrorWith("sentence_piece", "tokenizer.ggml.scores", "tokenizer.ggml.merges").message()),
              HasSubstr("key \"tokenizer.ggml.scores\" must be a list of 900 float32 numbers"));
  EXPECT_THAT(std::string(ErrorWith("sentence_piece", "bos_token_id", "mid_token_id").message()),
              HasSubstr("tokenizer.ggml.mid_token_id"));
}

// Scores that are no numbers would order nothing.
TEST(GgufTokenizer, RefusesScoresThatAreNotFinite) {
  std::string bytes = Contents(GgufPath("sentence_piece"));
  const size_t key = bytes.find("tokenizer.ggml.scores");
  ASSERT_NE(key, bytes.npos);
  const size_t first = key + std::string("tokenizer.ggml.scores").size() + 4 + 4 + 8;
  bytes.replace(first + 4 * 300, 4, std::string("\0\0\xC0\x7F", 4));
  TestFolder folder;
  const absl::Status status = Tokenizer::LoadFolder(folder.Write("t.gguf", bytes)).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("t.gguf: key \"tokenizer.ggml.scores\" must be finite"));
}

}  // namespace
}  // namespace c3po
