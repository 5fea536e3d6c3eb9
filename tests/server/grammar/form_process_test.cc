#include "server/grammar/form_process.h"

#include <gtest/gtest.h>

#include <string>

#include "server/grammar/form_vocabulary.h"
#include "tests/server/grammar/form_cases.h"

namespace c3po {
namespace {

TEST(FormProcess, FormsAndVocabulariesComeBackFromTheirBytes) {
  for (const AnswerForm& form : {RegexForm("a+"), OneOfForm({"a", std::string("b\0c", 3)}), SchemaForm("{}"),
                                 AnswerForm{AnswerForm::Kind::kJsonObject, "", {}}}) {
    const auto again = FormFromBytes(BytesOf(form));
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(*again, form);
  }
  const FormVocabulary vocabulary = SmallVocabulary();
  const auto again = VocabularyFromBytes(BytesOf(vocabulary));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->tokens, vocabulary.tokens);
  EXPECT_EQ(again->end_tokens, vocabulary.end_tokens);
}

TEST(FormProcess, BytesThatWereCutAreRefused) {
  const std::string form = BytesOf(OneOfForm({"ab", "c"})), vocabulary = BytesOf(FormVocabulary{{"a", "", "bc"}, {1}});
  for (size_t i = 0; i < form.size(); ++i) EXPECT_FALSE(FormFromBytes(form.substr(0, i)).ok()) << i;
  for (size_t i = 0; i < vocabulary.size(); ++i) EXPECT_FALSE(VocabularyFromBytes(vocabulary.substr(0, i)).ok()) << i;
  EXPECT_FALSE(FormFromBytes(form + "x").ok());
  EXPECT_FALSE(VocabularyFromBytes(vocabulary + "x").ok());
  EXPECT_FALSE(ParseFormReply("").ok());
  EXPECT_FALSE(ParseFormReply("x").ok());
  EXPECT_EQ(ParseFormReply("rwhy")->text, "why");
}

}  // namespace
}  // namespace c3po
