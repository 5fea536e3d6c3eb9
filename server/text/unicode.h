#ifndef C3PO_SERVER_TEXT_UNICODE_H_
#define C3PO_SERVER_TEXT_UNICODE_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace c3po {

// Character properties and normalization forms, from libutf8proc's tables (Unicode 13 on Debian 12). Pure functions.

bool IsWhiteSpace(char32_t c);   // Property White_Space.
bool IsNumeric(char32_t c);      // Categories Nd, Nl, No.
bool IsPunctuation(char32_t c);  // Categories P*, and every ASCII punctuation mark (BERT counts "$" and "+" as such).
bool IsOther(char32_t c);        // Categories Cc, Cf, Co.
bool IsNonspacingMark(char32_t c);  // Category Mn.
bool IsWordCharacter(char32_t c);   // \w of Unicode's regex recommendation (UTS 18, annex C).

// Appends the full lower case of `c`, one or more characters.
void AppendLowercase(char32_t c, std::string* text);

enum class NormalizationForm { kNfc, kNfd, kNfkc, kNfkd };

// Unicode normalization (UAX 15), O(n log n) in the text's length. `text` is valid UTF-8.
// Internal: libutf8proc refuses a character, which no valid text has been seen to cause.
absl::StatusOr<std::string> NormalizeUnicode(absl::string_view text, NormalizationForm form);

}  // namespace c3po

#endif  // C3PO_SERVER_TEXT_UNICODE_H_
