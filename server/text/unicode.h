#ifndef C3PO_SERVER_TEXT_UNICODE_H_
#define C3PO_SERVER_TEXT_UNICODE_H_

#include <string>

#include "absl/strings/string_view.h"

namespace c3po {

// What the `tokenizers` library takes a character for. Each of its parts has tables of another Unicode version, told in
// unicode_tables.cc, which were made by asking version 0.23.3 (0.22.2 answers the same) about every character. Those of
// regular expressions are in regex.cc. Pure functions; the first call of each reads its table.

bool IsWhiteSpace(char32_t c);          // Property White_Space, the same since Unicode 6.3.
bool IsNumeric(char32_t c);             // Digits: categories Nd, Nl, No.
bool IsPunctuation(char32_t c);         // Categories P*, and every ASCII punctuation mark (BERT counts "$" as such).
bool IsCleanedAway(char32_t c);         // BERT's clean_text: categories Cc, Cf, Co without tab and line ends; U+FFFD.
bool IsNonspacingMark(char32_t c);      // BERT's strip_accents: category Mn.
bool IsWordCharacter(char32_t c);       // The pre-tokenizer Whitespace.
bool IsSingleWordNeighbor(char32_t c);  // Beside this character an added token with single_word is none.

// Appends the full lower case of `c`, one or more characters.
void AppendLowercase(char32_t c, std::string* text);

enum class NormalizationForm { kNfc, kNfd, kNfkc, kNfkd };

// Whether the normal form of any text that begins with `c` is, behind any other text, what it is alone: no character of
// `c`'s decomposition is reordered or composed with one before it, as the first has combining class 0 and ends no
// composite.
bool StartsNormalization(char32_t c, NormalizationForm form);

// Unicode normalization (UAX 15), O(n log n) in the text's length. `text` is valid UTF-8.
std::string NormalizeUnicode(absl::string_view text, NormalizationForm form);

}  // namespace c3po

#endif  // C3PO_SERVER_TEXT_UNICODE_H_
