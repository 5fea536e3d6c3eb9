#ifndef C3PO_INDEX_BASE_UTF8_H_
#define C3PO_INDEX_BASE_UTF8_H_

#include "absl/strings/string_view.h"

namespace c3po {

// Whether `bytes` is well-formed UTF-8 (RFC 3629): shortest forms only, no surrogates, nothing above U+10FFFF. The
// empty string is.
bool IsValidUtf8(absl::string_view bytes);

}  // namespace c3po

#endif  // C3PO_INDEX_BASE_UTF8_H_
