#include "server/pipeline/prompt_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/server/text/golden_case.h"

namespace c3po {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using Ids = std::vector<int32_t>;

PromptText Of(std::shared_ptr<const Tokenizer> tokenizer, int padding = 0) {
  const int vocabulary_size = tokenizer->vocabulary_size() + padding;
  return PromptText(std::move(tokenizer), absl::FailedPreconditionError("no chat"), 4096, vocabulary_size);
}

PromptText OfGolden(const std::string& name, int padding = 0) {
  return Of(*Tokenizer::Load(GoldenPath(name)), padding);
}

// Prompts as text, as token ids with and without special tokens, and as ids that lost their beginning.
TEST(PromptText, ContinuationsAreCutAsTheGoldensSay) {
  std::vector<json> lines = ReadJsonLines(GoldenPath("seams.jsonl"));
  ASSERT_EQ(lines.size(), 8u);
  lines.erase(lines.begin());
  for (const json& line : lines) {
    const auto tokenizer = LoadCase(line);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    const PromptText text = Of(*tokenizer);
    ASSERT_GE(line["scores"].size(), 120u);
    for (const json& row : line["scores"]) {
      const PromptInput input =
          row[0].is_string() ? PromptInput(row[0].get<std::string>()) : PromptInput(row[0].get<Ids>());
      auto prompt = text.Encode(input, 1);
      ASSERT_TRUE(prompt.ok()) << prompt.status();
      if (!prompt->spelling.has_value()) prompt->spelling = text.FindSpelling(prompt->tokens);
      const std::string continuation = row[1];
      const auto ids = text.EncodeContinuation(*prompt, continuation);
      ASSERT_TRUE(ids.ok()) << ids.status();
      EXPECT_EQ(*ids, row[2].get<Ids>()) << line["case"] << " " << row;
      PromptText::Prompt with_seam = *prompt;
      text.FindSeam(with_seam);
      EXPECT_EQ(with_seam.seam.has_value(), with_seam.spelling.has_value());
      EXPECT_EQ(*text.EncodeContinuation(with_seam, continuation), *ids) << line["case"] << " " << row;
      // The definition, whatever the goldens say.
      Ids whole = prompt->tokens;
      whole.insert(whole.end(), ids->begin(), ids->end());
      EXPECT_EQ((*tokenizer)->Decode(whole, true), (*tokenizer)->Decode(prompt->tokens, true) + continuation) << row;
    }
  }
}

TEST(PromptText, AContinuationOfSpecialTokensAloneStartsTheText) {
  const PromptText text = OfGolden("metaspace.json");
  const Ids alone = *text.tokenizer()->Encode("Paris", false);
  for (const Ids& context : {Ids{1}, Ids{2}}) {
    auto prompt = *text.OfTokens(context);
    prompt.spelling = text.FindSpelling(context);
    EXPECT_EQ(*text.EncodeContinuation(prompt, "Paris"), alone);
  }
}

TEST(PromptText, AnIdThatOnlyTheModelHasIsAPromptsTokenAndReadsAsNothing) {
  const PromptText text = OfGolden("byte_level.json", /*padding=*/24);
  const int tokenizers = text.tokenizer()->vocabulary_size();
  const int32_t letter = text.tokenizer()->Encode("a", false)->front();
  const auto prompt = text.Encode(Ids{letter, tokenizers, tokenizers + 23}, 1);
  ASSERT_TRUE(prompt.ok()) << prompt.status();
  EXPECT_EQ(prompt->tokens.size(), 3u);
  EXPECT_EQ(prompt->text, "a");
  EXPECT_EQ(text.EncodeContinuation(*prompt, " b")->size(), text.tokenizer()->Encode(" b", false)->size());
  EXPECT_EQ(text.ids_end(), tokenizers + 24);
  EXPECT_EQ(
      text.Encode(Ids{letter, tokenizers + 24}, 1).status().message(),
      absl::StrCat("token_ids.ids[1]: ", tokenizers + 24, " is outside the model's vocabulary of ", tokenizers + 24));
  EXPECT_THAT(std::string(text.Encode(Ids{-1}, 1).status().message()), HasSubstr("token_ids.ids[0]: -1"));
}

// The slow way for each choice by itself, on prompts with and without a seam.
TEST(PromptText, AReferencesChoicesHaveTheTokensOfEachByItself) {
  for (const char* name : {"byte_level.json", "metaspace.json", "qwen.json", "deepseek.json", "word_piece.json"}) {
    const PromptText text = OfGolden(name);
    for (const char* question : {"Which of these is a tree?\nAnswer:", "1 + 1 = ", "th", "e\xCC\x81"}) {
      ReferenceRecord record;
      record.sample.prompt = question;
      record.sample.choices = {" oak", "2", "\nx", "\xCC\x81x", " 's tree."};
      record.sample.answer = "2";
      const auto neighbor = text.NeighborTokens(record, /*with_choices=*/true);
      ASSERT_TRUE(neighbor.ok()) << neighbor.status();
      const auto prompt = text.Encode(PromptInput(std::string(question)), 1);
      EXPECT_EQ(neighbor->prompt, prompt->tokens);
      EXPECT_EQ(neighbor->gold, 1);
      ASSERT_FALSE(prompt->seam.has_value());
      for (size_t i = 0; i < record.sample.choices.size(); ++i)
        EXPECT_EQ(neighbor->continuations[i], *text.EncodeContinuation(*prompt, record.sample.choices[i])) << name << i;
    }
  }
}

// A tokenizer that was given tokens its model never learned.
TEST(PromptText, ATextWithATokenBeyondTheModelIsRefusedByItsField) {
  const PromptText text = OfGolden("byte_level.json", /*padding=*/-1);
  const std::string last(text.tokenizer()->Piece(text.tokenizer()->vocabulary_size() - 1));
  EXPECT_THAT(std::string(text.Encode("a " + last, 1).status().message()), HasSubstr("prompt: its token ["));
  EXPECT_EQ(text.ids_end(), text.tokenizer()->vocabulary_size());
}

}  // namespace
}  // namespace c3po
