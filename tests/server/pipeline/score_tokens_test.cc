#include "server/pipeline/score_tokens.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/server/text/golden_case.h"

namespace c3po {
namespace {

using ::testing::HasSubstr;

class ScoreTokensTest : public testing::Test {
 protected:
  ScoreTokensTest()
      : text_(*Tokenizer::Load(GoldenPath("byte_level.json")), absl::FailedPreconditionError("no chat"), 1 << 24,
              (*Tokenizer::Load(GoldenPath("byte_level.json")))->vocabulary_size()) {}

  static ScoreCall CallOf(size_t prompt_bytes, int continuations) {
    ScoreCall call;
    std::string prompt;
    for (int i = 0; prompt.size() < prompt_bytes; ++i) absl::StrAppend(&prompt, "What is ", i, " modulo seven? ");
    call.input = prompt;
    for (int i = 0; i < continuations; ++i) call.continuations.push_back(absl::StrCat(" the answer is ", i));
    return call;
  }

  // A prompt of one long word in which the model may join any two pieces.
  static ScoreCall UncutCallOf(size_t prompt_bytes, int continuations) {
    ScoreCall call = CallOf(0, continuations);
    std::string prompt;
    while (prompt.size() < prompt_bytes) prompt += "ther";
    call.input = prompt;
    for (std::string& continuation : call.continuations) continuation = "ther" + continuation;
    return call;
  }

  const PromptText text_;
};

TEST_F(ScoreTokensTest, SlicesGiveWhatEachContinuationGivesByItself) {
  const ScoreCall call = CallOf(70 << 10, 20);
  const auto prompt = text_.Encode(call.input, 1);
  ASSERT_TRUE(prompt.ok()) << prompt.status();
  ScoreTokens tokens(&text_, call, 0);
  int slices = 0, total = 0;
  for (bool whole = false; !whole; ++slices) {
    const auto next = tokens.Next();
    ASSERT_TRUE(next.ok()) << next.status();
    whole = *next;
  }
  EXPECT_EQ(slices, 1);
  EXPECT_EQ(tokens.prompt().tokens, prompt->tokens);
  ASSERT_EQ(tokens.continuations().size(), 20U);
  for (size_t i = 0; i < 20; ++i) {
    EXPECT_EQ(tokens.continuations()[i], *text_.EncodeContinuation(*prompt, call.continuations[i])) << i;
    total += static_cast<int>(tokens.continuations()[i].size());
  }
  EXPECT_EQ(tokens.completion_tokens(), total);
}

TEST_F(ScoreTokensTest, ACancelIsNoticedBetweenContinuations) {
  ScoreCall call = UncutCallOf(300 << 10, 3);  // The prompt is a slice, and so is each continuation with it.
  const auto cancelled = std::make_shared<std::atomic<bool>>(false);
  call.context.cancelled = cancelled;
  ScoreTokens tokens(&text_, std::move(call), 0);
  for (const size_t done : {0U, 1U}) {
    const auto next = tokens.Next();
    ASSERT_TRUE(next.ok()) << next.status();
    EXPECT_FALSE(*next);
    EXPECT_EQ(tokens.continuations().size(), done);
  }
  cancelled->store(true);
  EXPECT_TRUE(absl::IsCancelled(tokens.Next().status()));
  EXPECT_EQ(tokens.continuations().size(), 1U);
}

// Encoded anew with each continuation, the prompt alone would be 123 MB.
TEST_F(ScoreTokensTest, ManyContinuationsCostAboutOnePrompt) {
  const ScoreCall call = CallOf(481 << 10, 256);
  const auto prompt_bytes = static_cast<int64_t>(std::get<std::string>(call.input).size());
  const int64_t before = text_.tokenizer()->bytes_encoded();
  ScoreTokens tokens(&text_, call, 0);
  for (bool whole = false; !whole;) {
    const auto next = tokens.Next();
    ASSERT_TRUE(next.ok()) << next.status();
    whole = *next;
  }
  EXPECT_EQ(tokens.continuations().size(), 256U);
  const int64_t encoded = text_.tokenizer()->bytes_encoded() - before;
  EXPECT_LT(encoded, 2 * prompt_bytes + 256 * 100);  // The prompt, its seam, and 256 times a word and a continuation.
  const auto slow = text_.Encode(call.input, 1);
  for (const size_t i : {size_t{0}, size_t{255}})
    EXPECT_EQ(tokens.continuations()[i], *text_.EncodeContinuation(*slow, call.continuations[i]));
}

// The prompt is one word, to which each continuation may add.
TEST_F(ScoreTokensTest, APromptWithoutACutIsEncodedWithEachContinuation) {
  const ScoreCall call = UncutCallOf(70 << 10, 20);
  const auto prompt = text_.Encode(call.input, 1);
  ScoreTokens tokens(&text_, call, 0);
  int slices = 0;
  for (bool whole = false; !whole; ++slices) whole = *tokens.Next();
  EXPECT_GE(slices, 5);  // 21 x 70 KiB, 256 KiB and a bit each.
  for (size_t i = 0; i < 20; ++i)
    EXPECT_EQ(tokens.continuations()[i], *text_.EncodeContinuation(*prompt, call.continuations[i])) << i;
}

TEST_F(ScoreTokensTest, ADeadlineIsNoticedToo) {
  ScoreCall call = CallOf(100, 3);
  call.context.deadline = SteadyNow();
  ScoreTokens tokens(&text_, std::move(call), 0);
  EXPECT_TRUE(absl::IsDeadlineExceeded(tokens.Next().status()));
}

TEST_F(ScoreTokensTest, MoreTextThanMayBeTokenizedIsRefusedBeforeTheFirstContinuation) {
  ScoreTokens tokens(&text_, UncutCallOf(481 << 10, 256), 0);
  const absl::Status refused = tokens.Next().status();
  EXPECT_TRUE(absl::IsInvalidArgument(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("continuations: 256 of them"));
  EXPECT_TRUE(tokens.continuations().empty());
}

TEST_F(ScoreTokensTest, FieldsAreNamed) {
  ScoreCall choices = CallOf(100, 2);
  choices.choose = true;
  choices.continuations[1] = "\xff";
  ScoreTokens not_text(&text_, choices, 0);
  EXPECT_THAT(std::string(not_text.Next().status().message()), HasSubstr("choices[1]: "));
  ScoreTokens too_long(&text_, CallOf(100, 2), 1);
  EXPECT_THAT(std::string(too_long.Next().status().message()), HasSubstr("continuations[0]: "));
}

}  // namespace
}  // namespace c3po
