#define PCRE2_CODE_UNIT_WIDTH 8
#include "server/text/regex.h"

#include <pcre2.h>

#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/text/regex_translation.h"
#include "server/text/utf8.h"

namespace c3po {
namespace {

std::string ErrorText(int code) {
  PCRE2_UCHAR buffer[256];
  pcre2_get_error_message(code, buffer, sizeof(buffer));
  return reinterpret_cast<const char*>(buffer);
}

using CodePtr = std::unique_ptr<pcre2_code, decltype(&pcre2_code_free)>;
using MatchDataPtr = std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)>;

absl::StatusOr<CodePtr> CompileCode(absl::string_view pattern, uint32_t options) {
  int error = 0;
  PCRE2_SIZE offset = 0;
  CodePtr code(
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), options, &error, &offset, nullptr),
      &pcre2_code_free);
  if (code == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("malformed regular expression: ", ErrorText(error)));
  }
  pcre2_jit_compile(
      code.get(),
      PCRE2_JIT_COMPLETE | PCRE2_JIT_PARTIAL_HARD);  // Where it is not available the interpreter does the same.
  return code;
}

}  // namespace

struct Regex::Code {
  CodePtr code;
  bool restarts;
};

namespace {

bool MatchesEmptyText(const pcre2_code* code) {
  uint32_t matches_empty = 1;
  pcre2_pattern_info(code, PCRE2_INFO_MATCHEMPTY, &matches_empty);
  return matches_empty != 0;
}

// One attempt after the other from `from` on, as pcre2_match. The text is known to be valid; checking all of it at each
// match would be quadratic.
int Match(const pcre2_code* code, absl::string_view text, size_t from, uint32_t options, pcre2_match_data* data) {
  const PCRE2_SPTR subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  options |= PCRE2_NO_UTF_CHECK;
  const int rc = pcre2_match(code, subject, text.size(), from, options, data, nullptr);
  if (rc != PCRE2_ERROR_JIT_STACKLIMIT) return rc;
  return pcre2_match(code, subject, text.size(), from, options | PCRE2_NO_JIT, data, nullptr);
}

absl::Status MatchError(int rc) {
  return absl::ResourceExhaustedError(absl::StrCat("regular expression: ", ErrorText(rc)));
}

}  // namespace

Regex::Regex(std::shared_ptr<const Code> code) : code_(std::move(code)) {}

absl::StatusOr<Regex> Regex::Compile(absl::string_view pattern) {
  C3PO_ASSIGN_OR_RETURN(TranslatedPattern translated, TranslatePattern(pattern));
  // In Ruby's syntax ^ and $ match at every line.
  C3PO_ASSIGN_OR_RETURN(
      CodePtr code, CompileCode(translated.pattern, PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C));
  const bool restarts = !translated.looks_behind && !MatchesEmptyText(code.get());
  return Regex(std::make_shared<const Code>(Code{std::move(code), restarts}));
}

absl::StatusOr<Regex> Regex::Literal(absl::string_view text) {
  C3PO_ASSIGN_OR_RETURN(CodePtr code, CompileCode(text, PCRE2_UTF | PCRE2_LITERAL));
  return Regex(std::make_shared<const Code>(Code{std::move(code), !text.empty()}));
}

bool Regex::restarts() const { return code_->restarts; }

absl::StatusOr<std::vector<TextRange>> Regex::FindAll(absl::string_view text) const {
  std::vector<TextRange> matches;
  if (text.empty()) return matches;
  const MatchDataPtr data(pcre2_match_data_create_from_pattern(code_->code.get(), nullptr), &pcre2_match_data_free);
  if (data == nullptr) return absl::ResourceExhaustedError("no memory for a regular expression's match");
  for (size_t from = 0; from <= text.size();) {
    const int rc = Match(code_->code.get(), text, from, 0, data.get());
    if (rc == PCRE2_ERROR_NOMATCH) break;
    if (rc < 0) return MatchError(rc);
    const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(data.get());
    const TextRange match = {ends[0], ends[1]};
    if (match.end < match.begin) break;  // Only \K in a lookahead does that.
    if (match.begin == match.end && !matches.empty() && matches.back().end == match.end) {
      if (from >= text.size()) break;
      NextCodePoint(text, &from);
      continue;
    }
    matches.push_back(match);
    from = match.end;
  }
  return matches;
}

absl::StatusOr<Regex::SureMatches> Regex::FindSure(absl::string_view text) const {
  SureMatches found = {{}, text.size()};
  if (!restarts()) found.sure = 0;
  const MatchDataPtr data(pcre2_match_data_create_from_pattern(code_->code.get(), nullptr), &pcre2_match_data_free);
  if (data == nullptr) return absl::ResourceExhaustedError("no memory for a regular expression's match");
  for (size_t from = 0; from < found.sure;) {
    const int rc = Match(code_->code.get(), text, from, PCRE2_PARTIAL_HARD, data.get());
    if (rc == PCRE2_ERROR_NOMATCH) break;
    if (rc < 0 && rc != PCRE2_ERROR_PARTIAL) return MatchError(rc);
    const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(data.get());
    if (rc == PCRE2_ERROR_PARTIAL) {
      found.sure = ends[0];
      break;
    }
    found.matches.push_back({ends[0], ends[1]});
    from = ends[1];
  }
  return found;
}

}  // namespace c3po
