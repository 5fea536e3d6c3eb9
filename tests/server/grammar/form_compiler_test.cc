#include "server/grammar/form_compiler.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <atomic>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/synchronization/notification.h"
#include "index/base/steady_time.h"
#include "tests/server/grammar/form_cases.h"

namespace c3po {
namespace {

// ThreadSanitizer writes a file when a program starts, which the process may not, and makes a fork of vfork, whose
// child cannot say what failed.
#ifdef C3PO_THREAD_SANITIZED
#define NEEDS_THE_PROCESS() GTEST_SKIP() << "the process does not run under ThreadSanitizer"
#else
#define NEEDS_THE_PROCESS() (void)0
#endif

using Result = absl::StatusOr<std::shared_ptr<const CompiledForm>>;

Result Compile(FormCompiler& compiler, const AnswerForm& form, FormCompiler::Check check = nullptr) {
  Result result;
  absl::Notification done;
  compiler.Compile(form, std::move(check), [&](Result compiled) {
    result = std::move(compiled);
    done.Notify();
  });
  done.WaitForNotification();
  return result;
}

TEST(FormCompiler, CompilesInAProcessOfItsOwn) {
  NEEDS_THE_PROCESS();
  FormCompiler compiler(SmallVocabulary(), FormCompiler::Options());
  const Result form = Compile(compiler, RegexForm("ab|c"));
  ASSERT_TRUE(form.ok()) << form.status();
  const auto matcher = (*form)->NewMatcher(true);
  EXPECT_TRUE(IsIn(*matcher->NextTokens(), 1 + 'a'));
  EXPECT_FALSE(IsIn(*matcher->NextTokens(), 1 + 'b'));
}

TEST(FormCompiler, KnowsAFormAgain) {
  NEEDS_THE_PROCESS();
  FormCompiler compiler(SmallVocabulary(), FormCompiler::Options());
  const Result first = Compile(compiler, RegexForm("ab|c")), second = Compile(compiler, RegexForm("ab|c"));
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(first->get(), second->get());
  // The same text is another form as a grammar.
  EXPECT_FALSE(Compile(compiler, GrammarForm("ab|c")).ok());
}

TEST(FormCompiler, SaysWhatIsWrong) {
  NEEDS_THE_PROCESS();
  FormCompiler compiler(SmallVocabulary(), FormCompiler::Options());
  const Result checked = Compile(compiler, SchemaForm("{"));
  EXPECT_EQ(checked.status().message(), "structured_output.json_schema: it is not JSON");
  const Result compiled = Compile(compiler, SchemaForm(R"({"type": "number", "multipleOf": 3})"));
  EXPECT_EQ(compiled.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(absl::StartsWith(compiled.status().message(), "structured_output.json_schema: ")) << compiled.status();
  // And goes on.
  EXPECT_TRUE(Compile(compiler, RegexForm("a")).ok());
}

// What multiplies without end: none may take the caller more than the limit, and the next form is compiled.
TEST(FormCompiler, AHostileFormCostsItsTimeAndNoMore) {
  NEEDS_THE_PROCESS();
  FormCompiler::Options options;
  options.compile_max = absl::Seconds(2);
  std::vector<std::string> killed;
  options.on_killed = [&](absl::string_view why) { killed.emplace_back(why); };
  std::string words, rules = "root ::= a0\n", groups = "a", nested,
                     references = R"({"type": "object", "properties": {)";
  for (int i = 0; i < 40; ++i)
    rules += absl::StrCat("a", i, " ::= a", i + 1, " a", i + 1, " | a", i + 1, " \"b\" a", i + 1, "\n");
  rules += "a40 ::= \"a\" | \"\"\n";
  for (int i = 0; i < 12; ++i)
    groups = absl::StrCat("(", groups, "|b", groups.size() < 4000 ? groups : "c", "){1,9999}");
  for (int i = 0; i < 20000; ++i) nested += "(";
  for (int i = 0; i < 200; ++i) references += absl::StrCat(i == 0 ? "" : ",", "\"p", i, R"(": {"$ref": "#"})");
  references += "}}";
  const std::vector<AnswerForm> hostile = {
      RegexForm("((((((a{1,1000}){1,1000}){1,1000}){1,1000}){1,1000}){1,1000})"),
      RegexForm(groups),
      RegexForm(nested),
      RegexForm("(a|aa|aaa|aaaa|b|ab|abc)*(a?){500}a{500}(.*a.{200}){3}"),
      GrammarForm(rules),
      GrammarForm("root ::= root"),
      GrammarForm("root ::= a\na ::= b\nb ::= a"),
      SchemaForm(R"({"type": "string", "maxLength": 2000000000})"),
      SchemaForm(R"({"type": "string", "minLength": 2000000000})"),
      SchemaForm(R"({"type": "array", "minItems": 1000000000, "items": {"type": "array", "minItems": 1000000000}})"),
      SchemaForm(R"({"$ref": "#"})"),
      SchemaForm(R"({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"})"),
      SchemaForm(references),
      SchemaForm(R"({"type": "integer", "minimum": -9000000000000000000, "maximum": 9000000000000000000})"),
      SchemaForm(R"({"type": "object", "minProperties": 100000000})")};
  FormCompiler compiler(SmallVocabulary(), options);
  ASSERT_TRUE(Compile(compiler, RegexForm("a")).ok());
  for (size_t i = 0; i < hostile.size(); ++i) {
    SCOPED_TRACE(i);
    const absl::Time start = SteadyNow();
    const Result result = Compile(compiler, hostile[i]);
    EXPECT_LT(absl::ToDoubleSeconds(SteadyNow() - start), 30) << result.status();
    EXPECT_TRUE(result.ok() || result.status().code() == absl::StatusCode::kInvalidArgument) << result.status();
    EXPECT_TRUE(Compile(compiler, RegexForm(absl::StrCat("b{", i + 1, "}"))).ok());
    // Known the next time.
    const absl::Time again = SteadyNow();
    EXPECT_EQ(Compile(compiler, hostile[i]).ok(), result.ok());
    EXPECT_LT(absl::ToDoubleSeconds(SteadyNow() - again), 1);
  }
}

TEST(FormCompiler, LimitsTheMemoryAndTheReply) {
  NEEDS_THE_PROCESS();
  FormCompiler::Options options;
  options.reply_bytes_max = 2000;
  FormCompiler compiler(SmallVocabulary(), options);
  const Result large = Compile(
      compiler, SchemaForm(R"({"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "number"}}})"));
  EXPECT_EQ(large.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(absl::StrContains(large.status().message(), "once it is compiled")) << large.status();
  EXPECT_TRUE(Compile(compiler, RegexForm("a")).ok());
}

TEST(FormCompiler, AsksBeforeItCompiles) {
  FormCompiler compiler(SmallVocabulary(), FormCompiler::Options());
  const Result result = Compile(compiler, RegexForm("a"), [] { return absl::CancelledError("gone"); });
  EXPECT_EQ(result.status().code(), absl::StatusCode::kCancelled);
}

TEST(FormCompiler, WithoutAProcessItSaysSo) {
  NEEDS_THE_PROCESS();
  FormCompiler::Options options;
  options.program = "/nonexistent/program";
  FormCompiler compiler(SmallVocabulary(), options);
  const Result result = Compile(compiler, RegexForm("a"));
  EXPECT_EQ(result.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(absl::StrContains(result.status().message(), "/nonexistent/program")) << result.status();
}

TEST(FormCompiler, AFullQueueRefuses) {
  FormCompiler::Options options;
  options.waiting_max = 2;
  FormCompiler compiler(SmallVocabulary(), options);
  absl::Notification go;
  std::atomic<int> refused{0}, served{0};
  for (int i = 0; i < 8; ++i) {
    compiler.Compile(
        RegexForm("a"),
        [&] {
          go.WaitForNotification();
          return absl::OkStatus();
        },
        [&](const Result& result) { ++(absl::IsResourceExhausted(result.status()) ? refused : served); });
  }
  EXPECT_GE(refused.load(), 5);
  go.Notify();
  compiler.Stop();
  EXPECT_EQ(refused.load() + served.load(), 8);
  const Result late = Compile(compiler, RegexForm("a"));
  EXPECT_EQ(late.status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace c3po
