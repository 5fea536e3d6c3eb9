#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "tests/server/text/golden_case.h"

namespace c3po {
namespace {

using ::testing::HasSubstr;

nlohmann::json BaseFile(const std::string& name) {
  std::ifstream stream(GoldenPath(name));
  return nlohmann::json::parse(stream);
}

absl::Status LoadStatus(const std::string& content) {
  const std::string path = WriteTemporary("load.json", content);
  const auto tokenizer = Tokenizer::Load(path);
  unlink(path.c_str());
  return tokenizer.status();
}

TEST(TokenizerLoad, MissingFileIsNotFoundAndNamed) {
  const absl::Status status = Tokenizer::Load("/nonexistent/tokenizer.json").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("/nonexistent/tokenizer.json"));
}

TEST(TokenizerLoad, AFolderIsRefused) {
  EXPECT_EQ(Tokenizer::Load(testing::TempDir()).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(TokenizerLoad, MalformedJsonNamesTheFile) {
  for (const char* content : {"", "{", "[1,2", "{\"model\": nul}", "\xff\xfe", "{\"a\":\"\xC3\"}"}) {
    const absl::Status status = LoadStatus(content);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << content;
    EXPECT_THAT(std::string(status.message()), HasSubstr("load.json: malformed JSON")) << content;
  }
}

// One change to a good file, and what the complaint must say.
struct Damage {
  std::string base;
  std::string json_pointer;
  std::string value;  // JSON; "" removes the field.
  std::string complaint;
};

TEST(TokenizerLoad, BadFieldsAreRefusedByName) {
  const Damage damages[] = {
      {"byte_level.json", "/model", "", "has no field \"model\""},
      {"byte_level.json", "/model", "3", "model: "},
      {"byte_level.json", "/version", "\"2.0\"", "version: \"2.0\" is not supported"},
      {"byte_level.json", "/model/type", "\"Unigram\"", "model: type \"Unigram\" is not supported"},
      {"byte_level.json", "/model/vocab", "", "model: has no field \"vocab\""},
      {"byte_level.json", "/model/vocab", "[]", "model.vocab: is of type array, expected object"},
      {"byte_level.json", "/model/vocab/!", "-1", "model.vocab.!: is -1, expected 0 to"},
      {"byte_level.json", "/model/vocab/!", "99999999999999999999", "model.vocab.!: is of type number"},
      {"byte_level.json", "/model/vocab/!", "18446744073709551615", "model.vocab.!: is 18446744073709551615"},
      {"byte_level.json", "/model/vocab/!", "\"x\"", "model.vocab.!: is of type string, expected integer"},
      {"byte_level.json", "/model/vocab/!", "7", "has id 7 as has"},
      {"byte_level.json", "/model/merges", "", "model: has no field \"merges\""},
      {"byte_level.json", "/model/merges/2", "\"qqq zzz\"", "model.merges[2]: piece \"qqq\" is not in model.vocab"},
      {"byte_level.json", "/model/merges/2", "\"abc\"", "model.merges[2]: \"abc\" is not two pieces"},
      {"byte_level.json", "/model/merges/2", "[\"a\"]", "model.merges[2]: has 1 pieces, expected 2"},
      {"byte_level.json", "/model/merges/2", "[\"a\", 3]", "model.merges[2][1]: is of type number, expected string"},
      {"byte_level.json", "/model/merges/2", "[\"!\", \"~\"]", "piece \"!~\" is not in model.vocab"},
      {"byte_level.json", "/model/dropout", "0.1", "model.dropout: merge dropout is not supported"},
      {"byte_level.json", "/model/end_of_word_suffix", "\"</w>\"", "end_of_word_suffix is not supported"},
      {"byte_level.json", "/model/temperature", "2", "model: option \"temperature\" is not supported"},
      {"byte_level.json", "/lattice", "{}", "option \"lattice\" is not supported"},
      {"byte_level.json", "/added_tokens/0/sticky", "false", "added_tokens[0]: option \"sticky\" is not supported"},
      {"byte_level.json", "/pre_tokenizer/pretokenizers/1/lower", "true", "pretokenizers[1]: option \"lower\" is not"},
      {"byte_level.json", "/normalizer", R"({"type": "NFC", "strict": 1})", "normalizer: option \"strict\" is not"},
      {"byte_level.json", "/decoder/cleanup", "true", "decoder: option \"cleanup\" is not supported"},
      {"byte_level.json", "/normalizer", R"({"type": "Strip", "strip_left": true})", "has no field \"strip_right\""},
      {"byte_level.json", "/pre_tokenizer", R"({"type": "Punctuation", "behavior": "Kept"})", "\"Kept\" is no split"},
      {"byte_level.json", "/model/unk_token", "\"<nope>\"", "model.unk_token: \"<nope>\" is not in model.vocab"},
      {"byte_level.json", "/model/byte_fallback", "1", "model.byte_fallback: is of type number, expected boolean"},
      {"byte_level.json", "/pre_tokenizer/type", "\"FixedLength\"", "pre_tokenizer: type \"FixedLength\" is not"},
      {"byte_level.json", "/pre_tokenizer/type", "", "pre_tokenizer: has no field \"type\""},
      {"byte_level.json", "/pre_tokenizer/pretokenizers/0/type", "\"UnicodeScripts\"",
       "pre_tokenizer.pretokenizers[0]: type \"UnicodeScripts\""},
      {"byte_level.json", "/pre_tokenizer/pretokenizers/0/individual_digits", "",
       "pre_tokenizer.pretokenizers[0]: has no field \"individual_digits\""},
      {"byte_level.json", "/pre_tokenizer/pretokenizers/0",
       R"({"type": "Split", "pattern": {"Regex": "(a"}, "behavior": "Isolated", "invert": false})",
       "pre_tokenizer.pretokenizers[0].pattern.Regex: malformed regular expression"},
      {"byte_level.json", "/pre_tokenizer/pretokenizers/0",
       R"({"type": "Split", "pattern": {"Regex": "\\h+"}, "behavior": "Isolated", "invert": false})",
       "construct not supported: \\h"},
      {"byte_level.json", "/pre_tokenizer/pretokenizers/0",
       R"({"type": "Split", "pattern": {"String": "a"}, "behavior": "isolated", "invert": false})",
       "behavior: \"isolated\" is no split behavior"},
      {"byte_level.json", "/normalizer", R"({"type": "Precompiled"})", "normalizer: type \"Precompiled\" is not"},
      {"byte_level.json", "/normalizer", R"({"type": "Replace", "pattern": {}, "content": ""})",
       "normalizer.pattern: has no field \"Regex\""},
      {"byte_level.json", "/decoder/type", "\"CTC\"", "decoder: type \"CTC\" is not supported"},
      {"byte_level.json", "/post_processor", R"({"type": "RobertaProcessing"})",
       "post_processor: type \"RobertaProcessing\""},
      {"byte_level.json", "/added_tokens/0/id", "5", "added_tokens[0]: id is 5, but model.vocab gives"},
      {"byte_level.json", "/added_tokens/3/id", "17", "added_tokens[3]: id 17 is that of"},
      {"byte_level.json", "/added_tokens/3/content", "\"\"", "added_tokens[3]: content is empty"},
      {"byte_level.json", "/added_tokens/1/content", "\"<|endoftext|>\"", "added_tokens[1]: id is 1, but"},
      {"byte_level.json", "/added_tokens/1/special", "", "added_tokens[1]: has no field \"special\""},
      {"metaspace.json", "/pre_tokenizer/replacement", "\"__\"", "pre_tokenizer.replacement: is \"__\""},
      {"metaspace.json", "/pre_tokenizer/prepend_scheme", "\"last\"", "prepend_scheme \"last\""},
      {"metaspace.json", "/decoder/decoders/0", R"({"type": "Fuse"})",
       "decoder.decoders[1]: type \"ByteFallback\" is not supported after Fuse"},
      {"metaspace.json", "/decoder/decoders/3/start", "-1", "decoder.decoders[3].start: is -1"},
      {"metaspace.json", "/post_processor/single/0/SpecialToken/id", "\"<t>\"",
       "post_processor.special_tokens: has no field \"<t>\""},
      {"metaspace.json", "/post_processor/special_tokens/<s>/ids", "[1000000]", "post_processor: id 1000000 has no"},
      {"metaspace.json", "/post_processor/single/1/Sequence/id", "\"B\"", "id \"B\" in a template for 1"},
      {"metaspace.json", "/post_processor/single", "[]", "post_processor.single: has sequence A 0 times"},
      {"word_piece.json", "/model/unk_token", "\"<nope>\"", "model.unk_token: \"<nope>\" is not in model.vocab"},
      {"word_piece.json", "/model/max_input_chars_per_word", "0", "max_input_chars_per_word: is 0, expected 1"},
      {"word_piece.json", "/normalizer/lowercase", "", "normalizer: has no field \"lowercase\""},
      {"word_piece.json", "/decoder/cleanup", "\"yes\"", "decoder.cleanup: is of type string, expected boolean"},
  };
  for (const Damage& damage : damages) {
    nlohmann::json file = BaseFile(damage.base);
    const nlohmann::json::json_pointer pointer(damage.json_pointer);
    if (damage.value.empty()) {
      file[pointer.parent_pointer()].erase(pointer.back());
    } else {
      file[pointer] = nlohmann::json::parse(damage.value);
    }
    const absl::Status status = LoadStatus(file.dump());
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << damage.json_pointer << " = " << damage.value;
    EXPECT_THAT(std::string(status.message()), HasSubstr("load.json: ")) << damage.json_pointer;
    EXPECT_THAT(std::string(status.message()), HasSubstr(damage.complaint)) << damage.json_pointer;
  }
}

TEST(TokenizerLoad, AFoldersConfigSaysWhichTokensGoAround) {
  const std::string folder = absl::StrCat(testing::TempDir(), "/c3po_folder_", getpid());
  std::filesystem::create_directory(folder);
  std::filesystem::copy_file(GoldenPath("deepseek.json"), folder + "/tokenizer.json");
  const auto encode = [&](const std::string& config) -> absl::StatusOr<std::vector<int32_t>> {
    std::ofstream(folder + "/tokenizer_config.json") << config;
    const auto tokenizer = Tokenizer::LoadFolder(folder);
    if (!tokenizer.ok()) return tokenizer.status();
    return (*tokenizer)->Encode("1", /*add_special_tokens=*/true);
  };
  const int32_t one = (*(*Tokenizer::LoadFolder(folder))->Encode("1", true))[0];
  const std::string tokens =
      R"("bos_token": {"content": "<\uff5cbegin\u2581of\u2581sentence\uff5c>"}, "eos_token": "A")";
  const std::string llama = R"("tokenizer_class": "LlamaTokenizerFast")";
  using Ids = std::vector<int32_t>;
  EXPECT_EQ(*encode("{}"), Ids{one});
  EXPECT_EQ(*encode("{" + tokens + "," + llama + "}"), (Ids{1000, one}));
  EXPECT_EQ(*encode("{" + tokens + "," + llama + R"(, "add_bos_token": false})"), Ids{one});
  EXPECT_EQ(encode("{" + tokens + "," + llama + R"(, "add_eos_token": true})")->size(), 3u);
  EXPECT_EQ(*encode("{" + tokens + R"(, "add_bos_token": true})"), Ids{one});  // No class, no model_type.
  EXPECT_EQ(*encode("{" + tokens + R"(, "tokenizer_class": "Qwen2Tokenizer"})"), Ids{one});
  EXPECT_THAT(std::string(encode("{" + llama + "}").status().message()),
              HasSubstr("add_bos_token is the default of the tokenizer_class, but there is no bos_token"));
  EXPECT_THAT(std::string(encode("{" + llama + R"(, "bos_token": "<none>"})").status().message()),
              HasSubstr("tokenizer_config.json: the token \"<none>\" to put around texts is not in"));
  std::filesystem::remove_all(folder);
}

TEST(TokenizerLoad, SequencesThatNestWithoutEndAreRefused) {
  const auto message = [](int depth) {
    std::string nested;
    for (int i = 0; i < depth; ++i) nested.append(R"({"type": "Sequence", "normalizers": [)");
    nested.append(R"({"type": "NFC"})");
    for (int i = 0; i < depth; ++i) nested.append("]}");
    nlohmann::json file = BaseFile("byte_level.json");
    file["normalizer"] = "HERE";
    return std::string(LoadStatus(absl::StrReplaceAll(file.dump(), {{"\"HERE\"", nested}})).message());
  };
  EXPECT_THAT(message(20), HasSubstr("sequences nest too deep"));
  EXPECT_THAT(message(20000), HasSubstr("nests deeper than 64 levels"));
}

TEST(TokenizerLoad, MergesAsStringsAndAsPairsAreTheSame) {
  nlohmann::json file = BaseFile("byte_level.json");
  ASSERT_TRUE(file["model"]["merges"][0].is_array());
  const auto pairs = Tokenizer::Load(GoldenPath("byte_level.json"));
  nlohmann::json texts = {"#version: 0.2"};
  for (const auto& merge : file["model"]["merges"]) {
    texts.push_back(absl::StrCat(merge[0].get<std::string>(), " ", merge[1].get<std::string>()));
  }
  file["model"]["merges"] = texts;
  file["model"].erase("type");  // As the oldest files are.
  const std::string path = WriteTemporary("strings.json", file.dump());
  const auto strings = Tokenizer::Load(path);
  unlink(path.c_str());
  ASSERT_TRUE(pairs.ok() && strings.ok()) << strings.status();
  for (const std::string& text : GoldenStrings()) {
    ASSERT_EQ(*(*pairs)->Encode(text, true), *(*strings)->Encode(text, true)) << text;
  }
}

// Whatever a damaged file says, loading ends with a status or with a tokenizer that works. The environment's
// C3PO_DAMAGE_TRIALS asks for so many changes of each file in place of the 800 of every run.
TEST(TokenizerLoad, RandomDamageNeverCrashes) {
  const char* asked = std::getenv("C3PO_DAMAGE_TRIALS");
  const int trials = asked != nullptr ? std::atoi(asked) : 800;
  constexpr uint32_t kSeed = 7;
  std::mt19937 rng(kSeed);
  int loaded = 0;
  int refused = 0;
  for (const char* base : {"byte_level.json", "metaspace.json", "word_piece.json", "deepseek.json", "qwen.json"}) {
    std::ifstream stream(GoldenPath(base), std::ios::binary);
    const std::string good(std::istreambuf_iterator<char>(stream), {});
    // Most bytes are vocabulary; the options are what matters, so half of the damage goes to the head and tail.
    const auto position = [&](size_t size) -> size_t {
      switch (rng() % 3) {
        case 0:
          return rng() % std::min<size_t>(size, 2500);
        case 1:
          return size - 1 - rng() % std::min<size_t>(size, 300);
        default:
          return rng() % size;
      }
    };
    for (int trial = 0; trial < trials; ++trial) {
      std::string bytes = good;
      for (uint32_t count = 1 + rng() % 2; count > 0; --count) {
        const size_t at = position(bytes.size());
        switch (rng() % 5) {
          case 0:
            bytes[at] = static_cast<char>(rng());
            break;
          case 1:
            bytes[at] = "0123456789-{}[]\",:\\eutn "[rng() % 24];
            break;
          case 2:
            bytes.erase(at, 1 + rng() % 8);
            break;
          case 3:
            bytes.insert(at, bytes.substr(position(bytes.size()), 1 + rng() % 20));
            break;
          default:
            if (rng() % 8 == 0) bytes.resize(at + 1);
            bytes[std::min(at, bytes.size() - 1)] ^= static_cast<char>(1 << rng() % 8);
        }
        if (bytes.empty()) bytes = "x";
      }
      const std::string path = WriteTemporary("damaged.json", bytes);
      const auto tokenizer = Tokenizer::Load(path);
      unlink(path.c_str());
      if (!tokenizer.ok()) {
        ++refused;
        EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument) << tokenizer.status();
        continue;
      }
      ++loaded;
      const auto ids = (*tokenizer)->Encode("The wheel 12 \xC3\xA9<|tool|> zig zag \xE6\xB0\xB4\n", true);
      if (ids.ok()) (*tokenizer)->Decode(*ids, false);
    }
  }
  EXPECT_GT(loaded, 50) << "seed " << kSeed;
  EXPECT_GT(refused, 300) << "seed " << kSeed;
}

}  // namespace
}  // namespace c3po
