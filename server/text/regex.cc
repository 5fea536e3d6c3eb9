#define PCRE2_CODE_UNIT_WIDTH 8
#include "server/text/regex.h"

#include <pcre2.h>

#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/text/utf8.h"

namespace c3po {
namespace {

// Members of a character class: the property White_Space, and Oniguruma's word characters.
constexpr absl::string_view kSpaceClass =
    "\\x{9}-\\x{D}\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}";
constexpr absl::string_view kWordClass =
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}\\x{24B6}-\\x{24E9}"
    "\\x{1F130}-\\x{1F149}\\x{1F150}-\\x{1F169}\\x{1F170}-\\x{1F189}";

absl::Status Unsupported(absl::string_view construct) {
  return absl::InvalidArgumentError(absl::StrCat("regular expression construct not supported: ", construct));
}

// Rewrites an Oniguruma pattern, one construct at a time, into PCRE2's dialect.
class Translator {
 public:
  explicit Translator(absl::string_view pattern) : in_(pattern) {}

  absl::StatusOr<std::string> Run() {
    while (at_ < in_.size()) {
      absl::Status status = in_[at_] == '\\' ? Escape() : in_class_ ? InsideClass() : OutsideClass();
      if (!status.ok()) return status;
    }
    return std::move(out_);
  }

 private:
  char Peek(size_t ahead) const { return at_ + ahead < in_.size() ? in_[at_ + ahead] : '\0'; }

  void Copy(size_t count) {
    absl::StrAppend(&out_, in_.substr(at_, count));
    at_ += count;
  }

  void Shorthand(absl::string_view members, bool negated) {
    if (in_class_) {
      absl::StrAppend(&out_, members);
    } else {
      absl::StrAppend(&out_, negated ? "[^" : "[", members, "]");
    }
    at_ += 2;
  }

  absl::Status Escape() {
    switch (const char c = Peek(1)) {
      case 's':
        Shorthand(kSpaceClass, false);
        return absl::OkStatus();
      case 'w':
        Shorthand(kWordClass, false);
        return absl::OkStatus();
      case 'S':
        if (in_class_) {  // Equal but for U+180E, which no class of a tokenizer means.
          Copy(2);
        } else {
          Shorthand(kSpaceClass, true);
        }
        return absl::OkStatus();
      case 'W':
        if (in_class_) return Unsupported("\\W in a character class");
        Shorthand(kWordClass, true);
        return absl::OkStatus();
      case 'b':
      case 'B':
      case 'G':
      case 'H':
      case 'h':
      case 'K':
      case 'R':
      case 'X':
        return Unsupported(absl::StrCat("\\", absl::string_view(&c, 1)));
      default: {
        const bool braced = (c == 'p' || c == 'P' || c == 'x') && Peek(2) == '{';
        const size_t close = braced ? in_.find('}', at_) : absl::string_view::npos;
        Copy(close == absl::string_view::npos ? 2 : close + 1 - at_);
        return absl::OkStatus();
      }
    }
  }

  absl::Status InsideClass() {
    if (in_[at_] == '[' && Peek(1) == ':') {  // A POSIX class, which both read alike.
      const size_t close = in_.find(":]", at_);
      if (close == absl::string_view::npos) return Unsupported("an unfinished [: class");
      Copy(close + 2 - at_);
      return absl::OkStatus();
    }
    if (in_[at_] == '[') return Unsupported("a character class inside another");
    if (in_[at_] == '&' && Peek(1) == '&') return Unsupported("&& in a character class");
    if (in_[at_] == ']') in_class_ = false;
    Copy(1);
    return absl::OkStatus();
  }

  absl::Status OutsideClass() {
    if (in_[at_] == '[') {
      in_class_ = true;
      Copy(Peek(1) == '^' ? 2 : 1);
      if (Peek(0) == ']') Copy(1);  // A literal bracket when it comes first.
      return absl::OkStatus();
    }
    if (in_[at_] == '(' && Peek(1) == '*') return Unsupported("(*");
    if (in_[at_] == '}' && Peek(1) == '+') return Unsupported("{n,m}+");
    if (in_[at_] == '(' && Peek(1) == '?') {
      for (size_t i = 2; absl::string_view("imxsa-").find(Peek(i)) != absl::string_view::npos && Peek(i) != '\0'; ++i) {
        if (Peek(i) != 'i' && Peek(i) != 'x' && Peek(i) != '-') {
          return Unsupported(absl::StrCat("(?", in_.substr(at_ + i, 1), ")"));
        }
      }
    }
    Copy(1);
    return absl::OkStatus();
  }

  absl::string_view in_;
  size_t at_ = 0;
  bool in_class_ = false;
  std::string out_;
};

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
  pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);  // Where it is not available the interpreter does the same.
  return code;
}

}  // namespace

struct Regex::Code {
  CodePtr code;
};

Regex::Regex(std::shared_ptr<const Code> code) : code_(std::move(code)) {}

absl::StatusOr<Regex> Regex::Compile(absl::string_view pattern) {
  C3PO_ASSIGN_OR_RETURN(const std::string translated, Translator(pattern).Run());
  // In Ruby's syntax ^ and $ match at every line.
  C3PO_ASSIGN_OR_RETURN(CodePtr code,
                        CompileCode(translated, PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C));
  return Regex(std::make_shared<const Code>(Code{std::move(code)}));
}

absl::StatusOr<Regex> Regex::Literal(absl::string_view text) {
  if (text.empty()) return absl::InvalidArgumentError("an empty string is no pattern");
  C3PO_ASSIGN_OR_RETURN(CodePtr code, CompileCode(text, PCRE2_UTF | PCRE2_LITERAL));
  return Regex(std::make_shared<const Code>(Code{std::move(code)}));
}

absl::StatusOr<std::vector<TextRange>> Regex::FindAll(absl::string_view text) const {
  std::vector<TextRange> matches;
  if (text.empty()) return matches;
  const MatchDataPtr data(pcre2_match_data_create_from_pattern(code_->code.get(), nullptr), &pcre2_match_data_free);
  if (data == nullptr) return absl::ResourceExhaustedError("no memory for a regular expression's match");
  const PCRE2_SPTR subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  for (size_t from = 0; from <= text.size();) {
    // The text is known to be valid; checking all of it at each match would be quadratic.
    int rc = pcre2_match(code_->code.get(), subject, text.size(), from, PCRE2_NO_UTF_CHECK, data.get(), nullptr);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
      rc = pcre2_match(code_->code.get(), subject, text.size(), from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data.get(),
                       nullptr);
    }
    if (rc == PCRE2_ERROR_NOMATCH) break;
    if (rc < 0) return absl::ResourceExhaustedError(absl::StrCat("regular expression: ", ErrorText(rc)));
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

}  // namespace c3po
