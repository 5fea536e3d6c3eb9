// Forms of answers from bytes, by the way that a request's take: looked at, compiled in a process of their own, and
// walked through. The first byte chooses the kind; texts of a list are lines. This program is that process as well.

#include <sys/types.h>

#include <cstdlib>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>

#include "absl/strings/str_split.h"
#include "absl/synchronization/notification.h"
#include "server/grammar/form_check.h"
#include "server/grammar/form_compiler.h"
#include "server/grammar/form_process.h"
#include "tests/fuzz/fuzz_target.h"
#include "tests/server/grammar/form_cases.h"

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  if (*argc == 2 && std::string((*argv)[1]) == c3po::kFormProcessArgument) std::_Exit(c3po::RunFormProcess());
  return 0;
}

namespace c3po {
namespace {

FormCompiler& Compiler() {
  static FormCompiler* const compiler = [] {
    FormCompiler::Options options;
    options.compile_max = absl::Seconds(1);
    options.memory_bytes = int64_t{1} << 47;  // A sanitizer's shadow is address space too.
    return new FormCompiler(SmallVocabulary(), options);
  }();
  return *compiler;
}

std::optional<AnswerForm> FormOfInput(absl::string_view input) {
  if (input.empty()) return std::nullopt;
  AnswerForm form;
  const std::string rest(input.substr(1));
  switch (input[0]) {
    case 's':
      return SchemaForm(rest);
    case 'r':
      return RegexForm(rest);
    case 'g':
      return GrammarForm(rest);
    case 'o':
      return OneOfForm(absl::StrSplit(rest, '\n'));
    default:
      return std::nullopt;
  }
}

void Walk(const CompiledForm& form, const FormVocabulary& vocabulary) {
  std::mt19937 random(1);
  const std::unique_ptr<TokenMatcher> matcher = form.NewMatcher(/*may_end=*/true);
  for (int i = 0; i < 20; ++i) {
    const auto next = matcher->NextTokens();
    if (!next.ok()) {  // A dead end of the vocabulary, or too slow.
      C3PO_FUZZ_CHECK(absl::IsInvalidArgument(next.status()) || absl::IsResourceExhausted(next.status()));
      return;
    }
    const std::vector<int32_t> ids = IdsOf(*next, vocabulary.tokens.size());
    C3PO_FUZZ_CHECK(!ids.empty());
    const int32_t id = ids[random() % ids.size()];
    if (id == vocabulary.end_tokens.front()) return;
    C3PO_FUZZ_CHECK(!vocabulary.tokens[static_cast<size_t>(id)].empty());
    const absl::Status accepted = matcher->Accept(id);
    C3PO_FUZZ_CHECK(accepted.ok() || absl::IsResourceExhausted(accepted));
    if (!accepted.ok()) return;
    const auto at_end = matcher->IsAtEnd();
    if (!at_end.ok() || *at_end) return;
  }
}

void UseForm(absl::string_view input) {
  static const FormVocabulary* const vocabulary = new FormVocabulary(SmallVocabulary());
  const std::optional<AnswerForm> form = FormOfInput(input);
  if (!form || !CheckForm(*form).ok()) return;
  absl::Notification done;
  absl::StatusOr<std::shared_ptr<const CompiledForm>> compiled;
  Compiler().Compile(*form, nullptr, [&](absl::StatusOr<std::shared_ptr<const CompiledForm>> result) {
    compiled = std::move(result);
    done.Notify();
  });
  done.WaitForNotification();
  C3PO_FUZZ_CHECK(compiled.ok() || absl::IsInvalidArgument(compiled.status()));
  if (compiled.ok()) Walk(**compiled, *vocabulary);
}

}  // namespace
}  // namespace c3po

C3PO_FUZZ_TARGET(input) { c3po::UseForm(input); }
