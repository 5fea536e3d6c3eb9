#ifndef C3PO_TESTS_SERVER_GRAMMAR_FORM_CASES_H_
#define C3PO_TESTS_SERVER_GRAMMAR_FORM_CASES_H_

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "server/grammar/form_engine.h"
#include "server/grammar/form_vocabulary.h"
#include "server/types/answer_form.h"

namespace c3po {

inline AnswerForm FormOf(AnswerForm::Kind kind, std::string text) { return {kind, std::move(text), {}}; }
inline AnswerForm SchemaForm(std::string text) { return FormOf(AnswerForm::Kind::kJsonSchema, std::move(text)); }
inline AnswerForm RegexForm(std::string text) { return FormOf(AnswerForm::Kind::kRegex, std::move(text)); }
inline AnswerForm GrammarForm(std::string text) { return FormOf(AnswerForm::Kind::kGrammar, std::move(text)); }
inline AnswerForm OneOfForm(std::vector<std::string> texts) { return {AnswerForm::Kind::kOneOf, "", std::move(texts)}; }

// Every byte, words of two and three letters of a, b and c, pieces of JSON, one end token, and two ids without text:
// more than a word of bits, and not a multiple of one.
inline FormVocabulary SmallVocabulary() {
  FormVocabulary vocabulary;
  vocabulary.tokens.emplace_back();  // A special token.
  for (int byte = 0; byte < 256; ++byte) vocabulary.tokens.emplace_back(1, static_cast<char>(byte));
  const std::string letters = "abc";
  for (const char x : letters) {
    for (const char y : letters) {
      vocabulary.tokens.push_back({x, y});
      for (const char z : letters) vocabulary.tokens.push_back({x, y, z});
    }
  }
  for (const char* piece : {"{\"", "\":", "\": ", ", \"", "true", "null", "12", "é", "ab}", "\"}", "  ", "\n"}) {
    vocabulary.tokens.emplace_back(piece);
  }
  vocabulary.end_tokens = {static_cast<int32_t>(vocabulary.tokens.size())};
  vocabulary.tokens.emplace_back();
  vocabulary.tokens.emplace_back();
  return vocabulary;
}

inline bool IsIn(absl::Span<const uint32_t> bits, int32_t id) { return (bits[id / 32] >> (id % 32) & 1) != 0; }

inline std::vector<int32_t> IdsOf(absl::Span<const uint32_t> bits, size_t vocabulary) {
  std::vector<int32_t> ids;
  for (size_t id = 0; id < vocabulary; ++id) {
    if (IsIn(bits, static_cast<int32_t>(id))) ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

// Writes an answer by random tokens of those allowed, at most `tokens_max`. `ended`: it is whole.
inline std::string RandomAnswer(const CompiledForm& form, const FormVocabulary& vocabulary, std::mt19937& random,
                                int tokens_max, bool* ended) {
  const std::unique_ptr<TokenMatcher> matcher = form.NewMatcher(/*may_end=*/true);
  std::string text;
  *ended = false;
  for (int i = 0; i < tokens_max && !*ended; ++i) {
    const auto next = matcher->NextTokens();
    EXPECT_TRUE(next.ok()) << next.status() << " after " << text;
    if (!next.ok()) return text;
    const std::vector<int32_t> ids = IdsOf(*next, vocabulary.tokens.size());
    const int32_t id = ids[random() % ids.size()];
    if (id == vocabulary.end_tokens.front()) {
      *ended = true;
      return text;
    }
    EXPECT_TRUE(matcher->Accept(id).ok());
    text += vocabulary.tokens[static_cast<size_t>(id)];
    const auto at_end = matcher->IsAtEnd();
    EXPECT_TRUE(at_end.ok()) << at_end.status();
    *ended = at_end.ok() && *at_end;
  }
  return text;
}

}  // namespace c3po

#endif  // C3PO_TESTS_SERVER_GRAMMAR_FORM_CASES_H_
