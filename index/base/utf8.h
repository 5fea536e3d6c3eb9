#ifndef C3PO_INDEX_BASE_UTF8_H_
#define C3PO_INDEX_BASE_UTF8_H_

#include <cstddef>

#include "absl/strings/string_view.h"

namespace c3po {

// Whether `bytes` is well-formed UTF-8 (RFC 3629): shortest forms only, no surrogates, nothing above U+10FFFF. The
// empty string is.
bool IsValidUtf8(absl::string_view bytes);

// The longest beginning of `text` that is at most `bytes_max` bytes and ends between two characters. `text` is UTF-8.
absl::string_view Utf8Prefix(absl::string_view text, size_t bytes_max);

}  // namespace c3po

#endif  // C3PO_INDEX_BASE_UTF8_H_
