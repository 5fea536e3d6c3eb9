#define PCRE2_CODE_UNIT_WIDTH 8
#include "client/eval/answer_extractor.h"

#include <pcre2.h>

#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace c3po {
namespace {

constexpr uint32_t kMatchLimit =
    1'000'000;  // Steps of one match; a tenth of PCRE's own, still far above any honest one.

bool IsDigit(char c) { return absl::ascii_isdigit(static_cast<unsigned char>(c)); }

// "42.00" and "42." are 42; other texts stay.
void DropZeroDecimals(std::string* text) {
  const size_t point = text->find('.');
  if (point == std::string::npos || point == 0 || !IsDigit((*text)[point - 1])) return;
  if (text->find_first_not_of('0', point + 1) == std::string::npos) text->resize(point);
}

}  // namespace

struct AnswerExtractor::Pattern {
  ~Pattern() {
    pcre2_match_context_free(context);
    pcre2_code_free(code);
  }
  pcre2_code* code = nullptr;
  pcre2_match_context* context = nullptr;
};

AnswerExtractor::AnswerExtractor(std::unique_ptr<Pattern> pattern) : pattern_(std::move(pattern)) {}
AnswerExtractor::~AnswerExtractor() = default;

absl::StatusOr<std::unique_ptr<AnswerExtractor>> AnswerExtractor::Create(absl::string_view pattern) {
  if (pattern.empty()) return std::unique_ptr<AnswerExtractor>(new AnswerExtractor(nullptr));
  auto compiled = std::make_unique<Pattern>();
  int error = 0;
  PCRE2_SIZE offset = 0;
  compiled->code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), PCRE2_UTF, &error, &offset, nullptr);
  if (compiled->code == nullptr) {
    PCRE2_UCHAR message[128] = {};
    pcre2_get_error_message(error, message, sizeof(message));
    return absl::InvalidArgumentError(
        absl::StrCat("extraction \"", pattern, "\", character ", offset, ": ", reinterpret_cast<const char*>(message)));
  }
  compiled->context = pcre2_match_context_create(nullptr);
  pcre2_set_match_limit(compiled->context, kMatchLimit);
  return std::unique_ptr<AnswerExtractor>(new AnswerExtractor(std::move(compiled)));
}

std::string AnswerExtractor::Extract(absl::string_view text) const {
  if (pattern_ == nullptr) return std::string(text);
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  pcre2_match_data* match = pcre2_match_data_create_from_pattern(pattern_->code, nullptr);
  std::string last;
  PCRE2_SIZE at = 0;
  while (at <= text.size()) {
    const int groups = pcre2_match(pattern_->code, subject, text.size(), at, 0, match, pattern_->context);
    if (groups <= 0) break;  // No match, not UTF-8, or too many steps.
    const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(match);
    const int group = groups > 1 && ends[2] != PCRE2_UNSET ? 1 : 0;
    last = std::string(text.substr(ends[2 * group], ends[2 * group + 1] - ends[2 * group]));
    at = ends[1] > at ? ends[1] : at + 1;
    // Never into the middle of a character.
    while (at < text.size() && (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80) ++at;
  }
  pcre2_match_data_free(match);
  return last;
}

std::string NormalizeAnswer(absl::string_view text) {
  std::string collapsed =
      absl::AsciiStrToLower(absl::StrJoin(absl::StrSplit(text, absl::ByAnyChar(" \t\r\n"), absl::SkipEmpty()), " "));
  while (!collapsed.empty() && absl::string_view(".,;:!? ").find(collapsed.back()) != absl::string_view::npos) {
    collapsed.pop_back();
  }
  std::string normalized;
  for (size_t i = 0; i < collapsed.size(); ++i) {
    const bool before_digit = i + 1 < collapsed.size() && IsDigit(collapsed[i + 1]);
    const bool comma = collapsed[i] == ',' && i > 0 && IsDigit(collapsed[i - 1]) && before_digit;
    const bool dollar = collapsed[i] == '$' && (i == 0 || (i == 1 && collapsed[0] == '-')) && before_digit;
    if (!comma && !dollar) normalized += collapsed[i];
  }
  DropZeroDecimals(&normalized);
  return normalized;
}

}  // namespace c3po
