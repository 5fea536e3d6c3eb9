// The tokens that a form allows against a plain matcher: for each token of the vocabulary, is any text of the form left
// after it. Of expressions that is told by partial derivatives (Antimirov, TCS 155(2), 1996), of lists by looking.
#include "server/grammar/form_engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <regex>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/server/grammar/expression_oracle.h"
#include "tests/server/grammar/form_cases.h"

namespace c3po {
namespace {

class FormEngineTest : public testing::Test {
 protected:
  FormEngineTest() : vocabulary_(SmallVocabulary()), engine_(*FormEngine::Create(vocabulary_)) {}

  // Walks over random answers; at each step every token is asked of `goes_on`, and the end of `is_whole`.
  void ExpectMasksOf(const AnswerForm& form, const std::function<bool(const std::string&)>& goes_on,
                     const std::function<bool(const std::string&)>& is_whole, std::mt19937& random) {
    const auto compiled = engine_->Compile(form);
    ASSERT_TRUE(compiled.ok()) << compiled.status();
    for (int walk = 0; walk < 3; ++walk) {
      const std::unique_ptr<TokenMatcher> matcher = (*compiled)->NewMatcher(/*may_end=*/true);
      std::string text;
      for (int step = 0; step < 10; ++step) {
        const auto next = matcher->NextTokens();
        ASSERT_TRUE(next.ok()) << next.status() << " after '" << text << "'";
        ASSERT_EQ(next->size(), (vocabulary_.tokens.size() + 31) / 32);
        for (size_t id = 0; id < vocabulary_.tokens.size(); ++id) {
          const std::string& token = vocabulary_.tokens[id];
          const bool expected = static_cast<int32_t>(id) == vocabulary_.end_tokens.front()
                                    ? is_whole(text)
                                    : !token.empty() && goes_on(text + token);
          ASSERT_EQ(IsIn(*next, static_cast<int32_t>(id)), expected)
              << "token " << id << " '" << token << "' after '" << text << "'";
        }
        const std::vector<int32_t> ids = IdsOf(*next, vocabulary_.tokens.size());
        const int32_t id = ids[random() % ids.size()];
        if (id == vocabulary_.end_tokens.front()) break;
        ASSERT_TRUE(matcher->Accept(id).ok());
        text += vocabulary_.tokens[static_cast<size_t>(id)];
        const bool more = [&] {
          for (int byte = 0; byte < 256; ++byte) {
            if (goes_on(text + static_cast<char>(byte))) return true;
          }
          return false;
        }();
        const auto at_end = matcher->IsAtEnd();
        ASSERT_TRUE(at_end.ok()) << at_end.status();
        ASSERT_EQ(*at_end, !more) << "after '" << text << "'";
        if (*at_end) break;
      }
    }
  }

  std::string Refusal(const AnswerForm& form) {
    const auto compiled = engine_->Compile(form);
    EXPECT_EQ(compiled.status().code(), absl::StatusCode::kInvalidArgument) << compiled.status();
    return std::string(compiled.status().message());
  }

  const FormVocabulary vocabulary_;
  const std::unique_ptr<FormEngine> engine_;
};

TEST_F(FormEngineTest, AllowsWhatSomeTextOfARandomExpressionGoesOnWith) {
  for (uint32_t seed = 1; seed <= 40; ++seed) {
    std::mt19937 random(seed);
    auto [expression, text] = RandomExpression(random, 3);
    // At least one byte, so that an answer is not the empty one alone.
    expression = Then(expression, Byte('d'));
    text = absl::StrCat("(", text, ")d");
    SCOPED_TRACE(absl::StrCat("seed ", seed, ": ", text));
    States states(expression);
    const auto is_whole = [&](const std::string& t) {
      const State& state = states.Of(t);
      return std::any_of(state.begin(), state.end(), [](const auto& one) { return TakesEmpty(one.second); });
    };
    ExpectMasksOf(
        RegexForm(text), [&](const std::string& t) { return !states.Of(t).empty(); }, is_whole, random);
    if (HasFatalFailure()) return;
  }
}

TEST_F(FormEngineTest, AllowsWhatBeginsOneOfTheTexts) {
  std::mt19937 random(7);
  for (const std::vector<std::string>& texts : {std::vector<std::string>{"abc", "ab", "abcabc", "b"},
                                                {"caf\xc3\xa9", "caf\xc3\xa8", "\xe2\x82\xac"},
                                                {"a\"b\\", "\n\ta", "{\"a\": true}"}}) {
    const auto begins = [&](const std::string& t) {
      return std::any_of(texts.begin(), texts.end(),
                         [&](const std::string& text) { return absl::StartsWith(text, t); });
    };
    ExpectMasksOf(
        OneOfForm(texts), begins,
        [&](const std::string& t) { return std::find(texts.begin(), texts.end(), t) != texts.end(); }, random);
  }
}

TEST_F(FormEngineTest, AllowsTheValuesOfASchemaOfConstants) {
  std::mt19937 random(8);
  const std::vector<std::string> values = {"\"ab\"", "\"abc\"", "12", "true", "null"};
  const auto begins = [&](const std::string& t) {
    return std::any_of(values.begin(), values.end(),
                       [&](const std::string& value) { return absl::StartsWith(value, t); });
  };
  ExpectMasksOf(
      SchemaForm(R"({"enum": ["ab", "abc", 12, true, null]})"), begins,
      [&](const std::string& t) { return std::find(values.begin(), values.end(), t) != values.end(); }, random);
}

TEST_F(FormEngineTest, AnswersOfASchemaAreOfIt) {
  const auto form = engine_->Compile(SchemaForm(R"({"type": "object", "properties": {
      "name": {"type": "string", "maxLength": 6}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
      "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3}, "ok": {"type": "boolean"}},
      "required": ["name", "age", "tags"]})"));
  ASSERT_TRUE(form.ok()) << form.status();
  int whole = 0;
  for (uint32_t seed = 1; seed <= 60; ++seed) {
    std::mt19937 random(seed);
    bool ended = false;
    const std::string text = RandomAnswer(**form, vocabulary_, random, 3000, &ended);
    // xgrammar takes the bytes of surrogates for characters, which begin with this one; a detokenizer shows U+FFFD.
    if (!ended || text.find('\xed') != std::string::npos) continue;
    ++whole;
    const auto json = nlohmann::json::parse(text, nullptr, false);
    ASSERT_TRUE(json.is_object()) << text;
    EXPECT_TRUE(json["name"].is_string()) << text;
    EXPECT_TRUE(json["age"].is_number_integer() && json["age"] >= 0 && json["age"] <= 150) << text;
    EXPECT_TRUE(json["tags"].is_array() && json["tags"].size() <= 3) << text;
    for (const auto& tag : json["tags"]) EXPECT_TRUE(tag == "a" || tag == "b") << text;
    EXPECT_TRUE(!json.contains("ok") || json["ok"].is_boolean()) << text;
    EXPECT_LE(json.size(), 4u) << text;
  }
  EXPECT_GT(whole, 30);
}

TEST_F(FormEngineTest, AJsonObjectIsOne) {
  const auto form = engine_->Compile({AnswerForm::Kind::kJsonObject, "", {}});
  ASSERT_TRUE(form.ok()) << form.status();
  const std::unique_ptr<TokenMatcher> first = (*form)->NewMatcher(true);
  const auto next = first->NextTokens();
  ASSERT_TRUE(next.ok());
  for (const int32_t id : IdsOf(*next, vocabulary_.tokens.size()))
    EXPECT_EQ(vocabulary_.tokens[static_cast<size_t>(id)][0], '{');
  int whole = 0;
  for (uint32_t seed = 1; seed <= 40; ++seed) {
    std::mt19937 random(seed);
    bool ended = false;
    const std::string text = RandomAnswer(**form, vocabulary_, random, 2000, &ended);
    // xgrammar takes the bytes of surrogates for characters, which begin with this one; a detokenizer shows U+FFFD.
    if (!ended || text.find('\xed') != std::string::npos) continue;
    ++whole;
    // Numbers may be larger than nlohmann takes.
    EXPECT_TRUE(nlohmann::json::accept(std::regex_replace(text, std::regex("[eE][+-]?[0-9]+"), ""))) << text;
    EXPECT_EQ(text.front(), '{');
  }
  EXPECT_GT(whole, 5);
}

TEST_F(FormEngineTest, AGrammarNamesNoSpecialToken) {
  const auto form = engine_->Compile(GrammarForm("root ::= \"ab\" word*\nword ::= [a-c] | \"12\""));
  ASSERT_TRUE(form.ok()) << form.status();
  const auto tokens = engine_->Compile(GrammarForm("root ::= \"a\" | Token(0)"));
  if (!tokens.ok()) return;  // It may be refused as well.
  const std::unique_ptr<TokenMatcher> first = (*tokens)->NewMatcher(true);
  const auto next = first->NextTokens();
  ASSERT_TRUE(next.ok());
  EXPECT_FALSE(IsIn(*next, 0));
}

TEST_F(FormEngineTest, WithoutAnEndTheAnswerGoesOnWhileItCan) {
  const auto form = engine_->Compile(RegexForm("a{1,3}"));
  ASSERT_TRUE(form.ok()) << form.status();
  const std::unique_ptr<TokenMatcher> matcher = (*form)->NewMatcher(/*may_end=*/false);
  const int32_t a = 1 + 'a';
  for (int i = 0; i < 3; ++i) {
    const auto next = matcher->NextTokens();
    ASSERT_TRUE(next.ok());
    EXPECT_TRUE(IsIn(*next, a));
    EXPECT_FALSE(IsIn(*next, vocabulary_.end_tokens.front()));
    EXPECT_FALSE(*matcher->IsAtEnd());
    ASSERT_TRUE(matcher->Accept(a).ok());
  }
  EXPECT_TRUE(*matcher->IsAtEnd());
}

TEST_F(FormEngineTest, ATokenThatIsNotAllowedIsAnError) {
  const auto form = engine_->Compile(RegexForm("ab"));
  ASSERT_TRUE(form.ok()) << form.status();
  const std::unique_ptr<TokenMatcher> matcher = (*form)->NewMatcher(true);
  EXPECT_EQ(matcher->Accept(1 + 'b').code(), absl::StatusCode::kInternal);
}

TEST_F(FormEngineTest, NoAnswerHasASurrogate) {
  for (const AnswerForm& form : {RegexForm("[^a]*"), SchemaForm(R"({"type":"string","maxLength":3})")}) {
    const auto compiled = engine_->Compile(form);
    ASSERT_TRUE(compiled.ok()) << compiled.status();
    const std::unique_ptr<TokenMatcher> matcher = (*compiled)->NewMatcher(true);
    if (form.kind == AnswerForm::Kind::kJsonSchema) {
      ASSERT_TRUE(matcher->Accept(1 + '"').ok());
    }
    ASSERT_TRUE(IsIn(*matcher->NextTokens(), 1 + 0xED));
    ASSERT_TRUE(matcher->Accept(1 + 0xED).ok());
    for (int byte = 0; byte < 256; ++byte)
      EXPECT_EQ(IsIn(*matcher->NextTokens(), 1 + byte), byte >= 0x80 && byte < 0xA0) << byte;
    ASSERT_TRUE(matcher->Accept(1 + 0x80).ok() && matcher->Accept(1 + 0xB0).ok());
    EXPECT_TRUE(IsIn(*matcher->NextTokens(), 1 + 'b'));
  }
}

TEST_F(FormEngineTest, MatchersOfOneFormDoNotKnowEachOther) {
  const auto form = engine_->Compile(RegexForm("a(b|c)"));
  ASSERT_TRUE(form.ok()) << form.status();
  const std::unique_ptr<TokenMatcher> first = (*form)->NewMatcher(true), second = (*form)->NewMatcher(true);
  ASSERT_TRUE(first->Accept(1 + 'a').ok());
  EXPECT_TRUE(IsIn(*first->NextTokens(), 1 + 'b'));
  EXPECT_FALSE(IsIn(*second->NextTokens(), 1 + 'b'));
  EXPECT_TRUE(IsIn(*second->NextTokens(), 1 + 'a'));
}

TEST_F(FormEngineTest, AFormThatTheVocabularyCannotWriteIsRefused) {
  FormVocabulary letters;
  letters.tokens = {"a", "b", ""};
  letters.end_tokens = {2};
  const auto engine = FormEngine::Create(letters);
  ASSERT_TRUE(engine.ok()) << engine.status();
  const auto begun = (*engine)->Compile(RegexForm("z"));
  EXPECT_EQ(begun.status().message(),
            "structured_output.regex: no token of the model's vocabulary begins a text of this form");
  const auto form = (*engine)->Compile(RegexForm("az"));
  ASSERT_TRUE(form.ok()) << form.status();
  const std::unique_ptr<TokenMatcher> matcher = (*form)->NewMatcher(true);
  ASSERT_TRUE(matcher->Accept(0).ok());
  EXPECT_EQ(matcher->NextTokens().status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(FormEngineTest, SaysWhatIsWrongAndWhere) {
  const auto in = [](const std::string& message, const char* field, const char* what) {
    EXPECT_TRUE(absl::StartsWith(message, absl::StrCat("structured_output.", field, ": "))) << message;
    EXPECT_TRUE(absl::StrContains(message, what)) << message;
    EXPECT_FALSE(absl::StrContains(message, ".cc:")) << message;
  };
  in(Refusal(RegexForm("(a")), "regex", "");
  in(Refusal(RegexForm("a(?=b)")), "regex", "");
  in(Refusal(RegexForm("\\bq\\b")), "regex", "");
  in(Refusal(GrammarForm("rule ::= \"a\"")), "grammar", "root");
  in(Refusal(GrammarForm("root ::= missing")), "grammar", "missing");
  in(Refusal(SchemaForm(R"({"type": "nonsense"})")), "json_schema", "nonsense");
  in(Refusal(SchemaForm(R"({"type": "string", "minLength": 3, "maxLength": 2})")), "json_schema", "maxLength");
  in(Refusal(SchemaForm("false")), "json_schema", "");
  in(Refusal(SchemaForm(R"({"$ref": "other.json"})")), "json_schema", "");
  in(Refusal(SchemaForm(R"({"type": "number", "multipleOf": 3})")), "json_schema", "multipleOf");
  in(Refusal(RegexForm("")), "regex", "empty");
}

TEST_F(FormEngineTest, BytesOfAFormAreTheForm) {
  std::mt19937 random(3);
  for (const AnswerForm& form :
       {RegexForm("(ab|c)*d"), OneOfForm({"abc", "caf\xc3\xa9"}),
        SchemaForm(R"({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})")}) {
    const auto compiled = engine_->Compile(form);
    const auto bytes = engine_->CompileToBytes(form);
    ASSERT_TRUE(compiled.ok() && bytes.ok()) << bytes.status();
    const auto again = engine_->FromBytes(*bytes, form.kind);
    ASSERT_TRUE(again.ok()) << again.status();
    const auto one = (*compiled)->NewMatcher(true), other = (*again)->NewMatcher(true);
    for (int step = 0; step < 30; ++step) {
      const auto a = one->NextTokens(), b = other->NextTokens();
      ASSERT_TRUE(a.ok() && b.ok());
      ASSERT_EQ(*a, *b);
      const std::vector<int32_t> ids = IdsOf(*a, vocabulary_.tokens.size());
      const int32_t id = ids[random() % ids.size()];
      if (id == vocabulary_.end_tokens.front()) break;
      ASSERT_TRUE(one->Accept(id).ok() && other->Accept(id).ok());
      ASSERT_EQ(*one->IsAtEnd(), *other->IsAtEnd());
      if (*one->IsAtEnd()) break;
    }
  }
  EXPECT_EQ(engine_->FromBytes("{}", AnswerForm::Kind::kRegex).status().code(), absl::StatusCode::kInternal);
}

// An ambiguous grammar, of which every token has more readings than the one before: the answer ends with an error
// before it holds others up for long.
TEST_F(FormEngineTest, TakesABoundedTimeForEachToken) {
  const auto form = engine_->Compile(GrammarForm("root ::= s\ns ::= s s s | s s | \"a\" | \"\""));
  if (!form.ok()) return;  // Refused is as good.
  const std::unique_ptr<TokenMatcher> matcher = (*form)->NewMatcher(true);
  absl::Status status;
  for (int i = 0; i < 3000 && status.ok(); ++i) {
    status = matcher->NextTokens().status();
    if (status.ok()) status = matcher->Accept(1 + 'a');
  }
  EXPECT_TRUE(status.ok() || absl::IsResourceExhausted(status)) << status;
}

}  // namespace
}  // namespace c3po
