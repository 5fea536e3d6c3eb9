#ifndef C3PO_INDEX_BASE_NEAREST_NAME_H_
#define C3PO_INDEX_BASE_NEAREST_NAME_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace c3po {

// Which of `names` may have been meant by `written`: the one with the least edit distance (one character inserted,
// deleted or replaced, or two neighbors exchanged; upper and lower case alike), the first of equals. Empty where even
// that one is farther than a third of the longer word, so that nothing far-fetched is proposed. Pure and thread-safe;
// takes time in the product of both lengths.
std::string NearestName(absl::string_view written, const std::vector<std::string>& names);

}  // namespace c3po

#endif  // C3PO_INDEX_BASE_NEAREST_NAME_H_
