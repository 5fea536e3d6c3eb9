#ifndef C3PO_SERVER_TEXT_REGEX_TRANSLATION_H_
#define C3PO_SERVER_TEXT_REGEX_TRANSLATION_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace c3po {

// A pattern of a tokenizer.json in PCRE2's dialect.
struct TranslatedPattern {
  std::string pattern;
  bool looks_behind = false;  // What stands before a place may decide what matches there: lookbehind, ^, \A.
};

// Rewrites a pattern that is written for Oniguruma (regex.h says what is rewritten and what is refused). Pure.
absl::StatusOr<TranslatedPattern> TranslatePattern(absl::string_view pattern);

}  // namespace c3po

#endif  // C3PO_SERVER_TEXT_REGEX_TRANSLATION_H_
