#ifndef C3PO_SERVER_TEXT_UTF8_H_
#define C3PO_SERVER_TEXT_UTF8_H_

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"
#include "index/base/utf8.h"

namespace c3po {

// UTF-8 as defined by Unicode (chapter 3, table 3-7): shortest forms only, no surrogates, up to U+10FFFF. Pure
// functions.

// What stands at one position of a byte string.
struct Utf8Step {
  enum class Kind {
    kCharacter,  // A whole character of `length` bytes.
    kInvalid,    // `length` bytes that start no character (a maximal subpart, Unicode 3.9): decoders show one U+FFFD.
    kTruncated,  // The string ends inside a character: its last `length` bytes may become one.
  };
  Kind kind;
  size_t length;  // At least 1.
};

// `position` < bytes.size().
Utf8Step ScanUtf8(absl::string_view bytes, size_t position);

bool IsAscii(absl::string_view bytes);

// Reads the character at *position of valid UTF-8 and moves *position past it. *position < text.size().
char32_t NextCodePoint(absl::string_view text, size_t* position);

// `code_point` is a Unicode scalar value.
void AppendCodePoint(char32_t code_point, std::string* text);

inline constexpr absl::string_view kReplacementCharacter = "\xEF\xBF\xBD";

}  // namespace c3po

#endif  // C3PO_SERVER_TEXT_UTF8_H_
