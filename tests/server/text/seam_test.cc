// What stands at the ends of a text and between a prompt and what follows it, as the libraries give it
// (tests/golden/tokenizer/make_seam_goldens.py and make_surrounding_goldens.py).

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <optional>

#include "absl/strings/str_cat.h"
#include "server/text/incremental_detokenizer.h"
#include "server/text/json_field.h"
#include "server/text/post_processor.h"
#include "tests/server/text/golden_case.h"

namespace c3po {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

std::vector<json> SeamCases() {
  std::vector<json> lines = ReadJsonLines(GoldenPath("seams.jsonl"));
  EXPECT_EQ(lines.size(), 8u);
  lines.erase(lines.begin());
  return lines;
}

TEST(SeamGolden, TextsAreThoseOfContextAndIdsLessTheContexts) {
  for (const json& line : SeamCases()) {
    const auto tokenizer = LoadCase(line);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    ASSERT_GE(line["texts"].size(), 60u);
    for (const json& row : line["texts"]) {
      const std::vector<int32_t> context = row[0], ids = row[1];
      const std::string expected = row[2];
      Tokenizer::Stream stream = (*tokenizer)->StartDecodingAfter(context, /*skip_special_tokens=*/true);
      std::string text;
      for (const int32_t id : ids) text += stream.Append(id);
      EXPECT_EQ(text + stream.Finish(), expected) << line["case"] << " " << row;

      auto detokenizer = IncrementalDetokenizer::Create(*tokenizer, {}, /*skip_special_tokens=*/true, context);
      ASSERT_TRUE(detokenizer.ok());
      IncrementalDetokenizer second = detokenizer->Clone();
      for (IncrementalDetokenizer* each : {&*detokenizer, &second}) {
        std::string appended = each->Append(ids);
        appended += each->Flush();
        EXPECT_EQ(appended, expected);
      }
    }
  }
}

TEST(SeamGolden, ContinuationsGetNothingPutBeforeThem) {
  for (const json& line : SeamCases()) {
    const auto tokenizer = LoadCase(line);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    int mid_word = 0;
    for (const json& row : line["scores"]) {
      const std::string continuation = row[1];
      const auto ids = (*tokenizer)->EncodeContinuing(continuation);
      ASSERT_TRUE(ids.ok()) << ids.status();
      // Apart from the prompt the same ids, unless the prompt's end decided how the continuation is cut.
      mid_word += *ids == row[2].get<std::vector<int32_t>>();
    }
    EXPECT_GT(mid_word, 110) << line["case"];
  }
}

TEST(IncrementalDetokenizer, TheFirstTokenKeepsItsSpaceAndAStopStringMayBeginWithIt) {
  const auto tokenizer = Tokenizer::Load(GoldenPath("metaspace.json"));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const std::vector<int32_t> prompt = *(*tokenizer)->Encode("The capital", true);
  const std::vector<int32_t> answer = *(*tokenizer)->EncodeContinuing(" of the sea");
  ASSERT_EQ((*tokenizer)->Piece(answer.front()), "\xE2\x96\x81of");
  const auto append = [&](const std::vector<int32_t>& context, std::vector<std::string> stop) {
    auto detokenizer = IncrementalDetokenizer::Create(*tokenizer, std::move(stop), true, context);
    std::string text = detokenizer->Append(answer);
    text += detokenizer->Flush();
    return std::make_pair(text, detokenizer->stopped());
  };
  EXPECT_EQ(append(prompt, {}), std::make_pair(std::string(" of the sea"), false));
  EXPECT_EQ(append(prompt, {" of"}), std::make_pair(std::string(), true));
  EXPECT_EQ(append(prompt, {"l of"}),
            std::make_pair(std::string(" of the sea"), false));  // The prompt is not searched.
  EXPECT_EQ(append({1}, {}).first, "of the sea");                // Nothing but <s> before it: it starts the text.
}

TEST(SeamGolden, ACharacterThatTheContextLeavesUnfinishedComesWhole) {
  const auto byte_level = Tokenizer::Load(GoldenPath("byte_level.json"));
  const std::vector<int32_t> water = *(*byte_level)->Encode("a\xE6\xB0\xB4z", false);
  ASSERT_EQ(water.size(), 5u);
  Tokenizer::Stream stream = (*byte_level)->StartDecodingAfter({water[0], water[1], water[2]}, true);
  EXPECT_EQ(stream.Append(water[3]), "\xE6\xB0\xB4");
  EXPECT_EQ(stream.Append(water[4]), "z");
  EXPECT_EQ(stream.Finish(), "");
  // Byte pieces that are whole are shown as the context's, though only what follows ends their run.
  const auto fallback = Tokenizer::Load(GoldenPath("metaspace.json"));
  const std::vector<int32_t> run = *(*fallback)->Encode("\xE6\xB0\xB4", true);
  ASSERT_EQ(run.size(), 5u);
  Tokenizer::Stream after = (*fallback)->StartDecodingAfter(run, true);
  EXPECT_EQ(after.Append(*(*fallback)->TokenToId("\xE2\x96\x81of")), " of");
  EXPECT_EQ(after.Finish(), "");
}

TEST(TokenText, KeepsTheSpaceOfAPieceAndMarksPartsOfCharacters) {
  const auto metaspace = Tokenizer::Load(GoldenPath("metaspace.json"));
  EXPECT_EQ((*metaspace)->TokenText(*(*metaspace)->TokenToId("\xE2\x96\x81of")), " of");
  EXPECT_EQ((*metaspace)->TokenText(*(*metaspace)->TokenToId("<0xE6>")), "\xEF\xBF\xBD");
  EXPECT_EQ((*metaspace)->TokenText(1 << 20), "");
}

TEST(TemplateGolden, ATemplateAfterOneOfTwoItemsIsItsPair) {
  const std::vector<json> rows = ReadJsonLines(GoldenPath("templates.jsonl"));
  ASSERT_GE(rows.size(), 12u);
  int refused = 0;
  for (const json& row : rows) {
    const std::string path = WriteTemporary("template.json", row[0].dump());
    const auto field = JsonField::ReadFile(path);
    unlink(path.c_str());
    const auto post_processor = PostProcessor::FromJson(*field);
    if (row[1].is_null()) {
      EXPECT_THAT(std::string(post_processor.status().message()), HasSubstr("follows a template of 3 items"));
      ++refused;
      continue;
    }
    ASSERT_TRUE(post_processor.ok()) << post_processor.status();
    EXPECT_EQ(post_processor->AddSpecialTokens({0, 1}), row[1].get<std::vector<int32_t>>()) << row[0];
  }
  EXPECT_GT(refused, 0);
}

TEST(SurroundingGolden, FlagsAreHeededByTheClassesWhoseCodeDoes) {
  std::vector<json> rows = ReadJsonLines(GoldenPath("surrounding.jsonl"));
  ASSERT_GT(rows.size(), 200u);
  const std::string base = rows[0]["base"];
  rows.erase(rows.begin());
  std::ifstream stream(GoldenPath(base));
  const json plain = json::parse(stream);
  json with_template = plain;
  with_template["post_processor"] = json::parse(
      R"({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "A"}}, {"Sequence": {"id": "A"}}],
          "pair": [], "special_tokens": {"A": {"id": "A", "ids": [0]}}})");
  with_template["post_processor"]["special_tokens"]["A"]["ids"][0] = plain["model"]["vocab"]["A"];
  const std::string folder = absl::StrCat(testing::TempDir(), "/c3po_surrounding_", getpid());
  std::filesystem::create_directory(folder);
  int compared = 0;
  for (const json& row : rows) {
    if (row[5].is_null()) continue;  // A class that transformers does not know.
    json config = {{"bos_token",
                    "<\xEF\xBD\x9C"
                    "begin\xE2\x96\x81of\xE2\x96\x81sentence\xEF\xBD\x9C>"},
                   {"eos_token",
                    "<\xEF\xBD\x9C"
                    "end\xE2\x96\x81of\xE2\x96\x81sentence\xEF\xBD\x9C>"}};
    const char* keys[] = {"tokenizer_class", "", "add_bos_token", "add_eos_token"};
    for (const int i : {0, 2, 3}) {
      if (!row[i].is_null()) config[keys[i]] = row[i];
    }
    std::ofstream(folder + "/tokenizer.json") << (row[4] ? with_template : plain).dump();
    std::ofstream(folder + "/tokenizer_config.json") << config.dump();
    std::ofstream(folder + "/config.json") << json{{"model_type", row[1]}}.dump();
    const auto tokenizer = Tokenizer::LoadFolder(folder);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status() << row;
    EXPECT_EQ(*(*tokenizer)->Encode("1", true), row[5].get<std::vector<int32_t>>()) << row;
    ++compared;
  }
  EXPECT_GT(compared, 200);
  // A folder that transformers 5 saved: the flags have gone, and what they did is in the post_processor.
  std::ofstream(folder + "/tokenizer.json") << with_template.dump();
  std::ofstream(folder + "/tokenizer_config.json")
      << R"({"backend": "tokenizers", "tokenizer_class": "LlamaTokenizer"})";
  const auto saved_by_5 = Tokenizer::LoadFolder(folder);
  ASSERT_TRUE(saved_by_5.ok()) << saved_by_5.status();
  EXPECT_EQ((*saved_by_5)->Encode("1", true)->size(), 2u);
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace c3po
