// Every character, against what the library does with it (tests/golden/tokenizer/make_unicode_goldens.py).

#include "server/text/unicode.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "index/base/sha256.h"
#include "server/text/json_field.h"
#include "server/text/normalizer.h"
#include "server/text/pre_tokenizer.h"
#include "server/text/regex.h"
#include "server/text/utf8.h"
#include "tests/server/text/golden_case.h"

namespace c3po {
namespace {

using nlohmann::json;

constexpr char32_t kEnd = 0x110000;
constexpr size_t kBlock = 4096;

bool IsSurrogate(char32_t c) { return c >= 0xD800 && c <= 0xDFFF; }

std::string Utf8(char32_t c) {
  std::string text;
  AppendCodePoint(c, &text);
  return text;
}

const std::vector<json>& Lines() {
  static const auto* const kLines = new std::vector<json>(ReadJsonLines(GoldenPath("unicode.jsonl")));
  return *kLines;
}

JsonField FieldOf(const json& value) {
  const std::string path = WriteTemporary("unicode.json", value.dump());
  const auto field = JsonField::ReadFile(path);
  unlink(path.c_str());
  EXPECT_TRUE(field.ok()) << field.status();
  return *field;
}

// By character: gap and length of each run in turn.
std::vector<bool> Members(const json& runs) {
  std::vector<bool> members(kEnd);
  size_t at = 0;
  for (size_t i = 0; i < runs.size(); i += 2) {
    at += runs[i].get<size_t>();
    for (size_t count = runs[i + 1]; count > 0; --count) members[at++] = true;
  }
  return members;
}

void ExpectSame(const std::vector<bool>& ours, const std::vector<bool>& expected, const std::string& name) {
  int differences = 0;
  for (char32_t c = 0; c < kEnd && differences < 5; ++c) {
    if (ours[c] == expected[c] || IsSurrogate(c)) continue;
    ++differences;
    ADD_FAILURE() << absl::StrCat(name, ": U+", absl::Hex(static_cast<uint32_t>(c)), ours[c] ? " is" : " is not",
                                  " a member");
  }
}

TEST(Unicode, EveryPropertyOfARegularExpressionIsOnigurumas) {
  std::string all;
  for (char32_t c = 0; c < kEnd; ++c) {
    if (!IsSurrogate(c)) AppendCodePoint(c, &all);
  }
  int patterns = 0;
  for (const json& line : Lines()) {
    if (!line.contains("pattern")) continue;
    ++patterns;
    const std::string pattern = line["pattern"];
    const auto regex = Regex::Compile(pattern);
    ASSERT_TRUE(regex.ok()) << pattern << ": " << regex.status();
    const auto matches = regex->FindAll(all);
    ASSERT_TRUE(matches.ok()) << pattern << ": " << matches.status();
    std::vector<bool> members(kEnd);
    for (const TextRange& match : *matches) {
      for (size_t position = match.begin; position < match.end;) members[NextCodePoint(all, &position)] = true;
    }
    ExpectSame(members, Members(line["runs"]), pattern);
  }
  EXPECT_GE(patterns, 70);
}

TEST(Unicode, EveryCharacterIsCutAsTheLibraryCutsIt) {
  int stages = 0;
  for (const json& line : Lines()) {
    std::vector<bool> members(kEnd);
    if (line.contains("stage")) {
      const auto step = PreTokenizer::FromJson(FieldOf(line["stage"]));
      ASSERT_TRUE(step.ok()) << step.status();
      for (char32_t c = 0; c < kEnd; ++c) {
        if (IsSurrogate(c)) continue;
        const auto words = step->Split({absl::StrCat("x", Utf8(c), "x"), true});
        ASSERT_TRUE(words.ok()) << words.status();
        members[c] = words->size() == 3 && (*words)[1].text == Utf8(c);
      }
    } else if (line.contains("single_word")) {
      for (char32_t c = 0; c < kEnd; ++c) members[c] = IsSingleWordNeighbor(c);
    } else {
      continue;
    }
    ++stages;
    ExpectSame(members, Members(line["runs"]), line.contains("stage") ? line["stage"].dump() : "single_word");
  }
  EXPECT_EQ(stages, 6);
}

TEST(Unicode, EveryCharacterIsRewrittenAsTheLibraryRewritesIt) {
  int steps = 0;
  for (const json& line : Lines()) {
    if (!line.contains("normalizer")) continue;
    ++steps;
    const auto step = Normalizer::FromJson(FieldOf(line["normalizer"]));
    ASSERT_TRUE(step.ok()) << step.status();
    json blocks = json::array();
    for (char32_t first = 0; first < kEnd; first += kBlock) {
      std::string changed;
      for (char32_t c = first; c < first + kBlock; ++c) {
        if (IsSurrogate(c)) continue;
        std::string text = Utf8(c);
        ASSERT_TRUE(step->Normalize(&text).ok());
        if (text != Utf8(c)) absl::StrAppend(&changed, Utf8(c), ">", text, "\n");
      }
      if (!changed.empty()) blocks.push_back({first / kBlock, Sha256::HexOf(changed).substr(0, 12)});
    }
    EXPECT_EQ(blocks, line["blocks"]) << line["normalizer"];
  }
  EXPECT_EQ(steps, 8);
}

TEST(Unicode, MarksAreOrderedAndComposedAsInTheLibrary) {
  const json& line = Lines().back();
  ASSERT_GT(line["strings"].size(), 500u);
  const NormalizationForm forms[] = {NormalizationForm::kNfc, NormalizationForm::kNfd, NormalizationForm::kNfkc,
                                     NormalizationForm::kNfkd};
  for (size_t i = 0; i < 4; ++i) {
    std::string all;
    for (const std::string text : line["strings"]) all += NormalizeUnicode(text, forms[i]);
    EXPECT_EQ(Sha256::HexOf(all).substr(0, 12), line["digests"][i]) << "form " << i;
  }
}

// From the report of the difference: a letter of Unicode 15 is one to the library.
TEST(Unicode, LettersOfUnicode15And16BelongToWords) {
  const auto words = Regex::Compile(R"( ?\p{L}+|.)");
  ASSERT_TRUE(words.ok());
  EXPECT_EQ(words
                ->FindAll("\xF0\xB1\x8D\x9F"
                          "e")
                ->size(),
            1u);  // U+3135F, Unicode 15.
  EXPECT_EQ(words
                ->FindAll("\xF0\x90\xB5\x90"
                          "e")
                ->size(),
            1u);                       // U+10D50, Unicode 16.
  EXPECT_FALSE(IsPunctuation(0x61D));  // Of Unicode 14, and none to the crate behind BERT's pre-tokenizer.
}

}  // namespace
}  // namespace c3po
