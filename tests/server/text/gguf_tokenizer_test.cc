// A tokenizer out of a GGUF file's metadata gives the ids of the tokenizer.json that llama.cpp's converter read
// (tests/golden/gguf/make_gguf_tokenizers.py).

#include "server/text/gguf_tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "server/text/chat_templates.h"
#include "server/text/gguf_pre_tokenizer.h"
#include "server/text/tokenizer.h"
#include "tests/server/text/golden_case.h"
#include "tests/server/weights/gguf_text.h"
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

// crc32 of zlib, of more bytes behind those of `crc`.
uint32_t Crc32(absl::string_view bytes, uint32_t crc) {
  crc = ~crc;
  for (const char c : bytes) {
    crc ^= static_cast<unsigned char>(c);
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
  }
  return ~crc;
}

// As digest_of in make_gguf_ids.py.
uint32_t DigestOf(const std::vector<std::vector<int32_t>>& all_ids, const std::set<size_t>& without) {
  uint32_t crc = 0;
  for (size_t i = 0; i < all_ids.size(); ++i) {
    if (without.count(i) != 0) continue;
    std::string bytes = GgufBytes(static_cast<int32_t>(all_ids[i].size()));
    for (const int32_t id : all_ids[i]) bytes += GgufBytes(id);
    crc = Crc32(bytes, crc);
  }
  return crc;
}

// A file of GgufPath with another text under tokenizer.ggml.pre.
std::string WithPre(const std::string& name, const std::string& pre) {
  std::string bytes = Contents(GgufPath(name));
  const std::string key = GgufText("tokenizer.ggml.pre") + GgufBytes(static_cast<uint32_t>(GgufType::kString));
  const size_t at = bytes.find(key) + key.size();
  uint64_t length = 0;
  std::memcpy(&length, bytes.data() + at, sizeof length);
  return bytes.replace(at, sizeof length + length, GgufText(pre));
}

// Answers of llama.cpp and of Hugging Face's tokenizers to all texts, by each name of `pre`.
TEST(GgufTokenizer, GivesTheIdsOfHuggingFaceAndOfLlamaCppUnderEveryName) {
  const std::vector<std::string> strings = GoldenStrings();
  const nlohmann::json golden =
      nlohmann::json::parse(Contents(absl::StrCat(C3PO_TESTDATA_DIR, "/gguf/answers/ids.json")));
  std::set<std::string> names;
  for (const auto& [name, answers] : golden.items()) {
    SCOPED_TRACE(name);
    TestFolder folder;
    const bool bytes = name != "sentence_piece";
    const auto tokenizer =
        Tokenizer::LoadFolder(bytes ? folder.Write("t.gguf", WithPre("byte_level", name)) : GgufPath(name));
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    if (bytes) names.insert(name);
    std::vector<std::vector<int32_t>> ids;
    for (const std::string& text : strings) {
      const auto encoded = (*tokenizer)->Encode(text, false);
      ASSERT_TRUE(encoded.ok()) << encoded.status();
      ids.push_back(*encoded);
    }
    const std::set<size_t> differ = answers["differ"];
    EXPECT_EQ(DigestOf(ids, {}), answers["hugging_face"]);
    EXPECT_EQ(DigestOf(ids, differ), answers["llama_cpp"]);
    EXPECT_LT(differ.size(), strings.size() / 4);
  }
  const std::vector<std::string> known = absl::StrSplit(KnownGgufStages(), ", ");
  EXPECT_EQ(names, std::set<std::string>(known.begin(), known.end()));
}

TEST(GgufTokenizer, BeginsTextsWhereItsNameSaysSo) {
  for (const auto& [pre, begins] : {std::pair{"tekken", true}, {"llama-bpe", true}, {"deepseek-coder", false}}) {
    TestFolder folder;
    const auto tokenizer = Tokenizer::LoadFolder(folder.Write("t.gguf", WithPre("byte_level", pre)));
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    const auto with = (*tokenizer)->Encode("a", true), without = (*tokenizer)->Encode("a", false);
    ASSERT_TRUE(with.ok() && without.ok());
    EXPECT_EQ(with->size() > without->size(), begins) << pre;
  }
}

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

// Any byte changed: the tokenizer is refused by a message that names the file, or is made of what is there.
TEST(GgufTokenizer, SurvivesTenThousandMutations) {
  std::mt19937 random(20261130);
  for (const char* name : {"byte_level", "sentence_piece"}) {
    const std::string text = Contents(GgufPath(name));
    TestFolder folder;
    const std::string path = folder.Write("t.gguf", text);
    std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
    const auto put = [&file](size_t at, char byte) {
      file.seekp(static_cast<std::streamoff>(at));
      file.put(byte).flush();
    };
    int taken = 0;
    for (int round = 0; round < 5000; ++round) {
      const size_t at = random() % text.size();
      put(at, static_cast<char>(text[at] + 1 + random() % 255));
      const auto tokenizer = ReadGgufTokenizer(path);
      put(at, text[at]);
      taken += tokenizer.ok() ? 1 : 0;
      if (tokenizer.ok()) continue;
      ASSERT_THAT(std::string(tokenizer.status().message()), HasSubstr("t.gguf")) << name << ", round " << round;
    }
    EXPECT_GT(taken, 100) << name;
    EXPECT_LT(taken, 4900) << name;
  }
}

}  // namespace
}  // namespace c3po
