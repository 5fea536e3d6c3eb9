#ifndef C3PO_INDEX_BASE_PYTHON_JSON_H_
#define C3PO_INDEX_BASE_PYTHON_JSON_H_

#include <string>

#include "absl/strings/string_view.h"

namespace c3po {

// Python's json.dump writes numbers that JSON does not have: NaN, Infinity, -Infinity. Returns `json` with each of them
// in quotes. What reads a number then refuses the field by its name, and a field that nobody reads does no harm. What
// lies inside a string stays. Of a text that is not JSON the result is not JSON either. Linear in time; pure.
std::string QuoteNonFinite(absl::string_view json);

}  // namespace c3po

#endif  // C3PO_INDEX_BASE_PYTHON_JSON_H_
