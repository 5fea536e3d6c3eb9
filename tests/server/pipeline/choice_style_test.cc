#include "server/pipeline/choice_style.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace c3po {
namespace {

using ::testing::HasSubstr;

class ChoiceStyleTest : public ::testing::Test {
 protected:
  ChoiceStyleTest() {
    auto tokenizer = Tokenizer::Load(std::string(C3PO_SOURCE_DIR) + "/tests/golden/model/mixtral_tiny/tokenizer.json");
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
  }
  ChoiceStyle Of(const std::vector<std::string>& texts) const {
    std::vector<int32_t> first;
    for (const std::string& text : texts) first.push_back(tokenizer_->Encode(text, false)->front());
    return StyleOf(*tokenizer_, first);
  }
  std::shared_ptr<const Tokenizer> tokenizer_;
};

TEST_F(ChoiceStyleTest, IsHowTheFirstTokensBegin) {
  EXPECT_EQ(Of({" good", " bad"}), ChoiceStyle::kSpaced);
  EXPECT_EQ(Of({"\ngood", " bad"}), ChoiceStyle::kSpaced);
  EXPECT_EQ(Of({"good", "bad"}), ChoiceStyle::kBare);
  EXPECT_EQ(Of({" good", "bad"}), ChoiceStyle::kMixed);
  EXPECT_EQ(StyleOf(*tokenizer_, {}), ChoiceStyle::kMixed);
}

TEST_F(ChoiceStyleTest, WhatMostDoIsTheOthersMeasure) {
  ChoiceStyles styles;
  EXPECT_FALSE(styles.AreOtherThan(ChoiceStyle::kBare));
  styles.Count(ChoiceStyle::kSpaced);
  styles.Count(ChoiceStyle::kMixed);
  EXPECT_TRUE(styles.AreOtherThan(ChoiceStyle::kBare));
  EXPECT_FALSE(styles.AreOtherThan(ChoiceStyle::kSpaced));
  EXPECT_FALSE(styles.AreOtherThan(ChoiceStyle::kMixed));
  styles.Count(ChoiceStyle::kBare);
  EXPECT_FALSE(styles.AreOtherThan(ChoiceStyle::kBare));
  EXPECT_FALSE(styles.AreOtherThan(ChoiceStyle::kSpaced));
  styles.Count(ChoiceStyle::kBare);
  EXPECT_TRUE(styles.AreOtherThan(ChoiceStyle::kSpaced));
}

TEST_F(ChoiceStyleTest, TheWarningSaysWhoDoesWhat) {
  EXPECT_THAT(StyleWarning("choices", ChoiceStyle::kBare),
              HasSubstr("choices begin without white space, and those of the collection's references with it"));
  EXPECT_THAT(StyleWarning("choices", ChoiceStyle::kSpaced),
              HasSubstr("choices begin with white space, and those of the collection's references without"));
}

}  // namespace
}  // namespace c3po
