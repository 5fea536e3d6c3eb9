#ifndef C3PO_INDEX_BASE_JSON_NESTING_H_
#define C3PO_INDEX_BASE_JSON_NESTING_H_

#include "absl/strings/string_view.h"

namespace c3po {

// Far above what any file of ours nests.
inline constexpr int kJsonLevelsMax = 64;

// Whether the arrays and objects of a JSON text nest deeper than `levels`. To be asked of a text that others wrote
// before it is made a tree: trees are copied, compared and printed by recursion, and a text of a megabyte can nest half
// a million levels, which no stack holds. Of a text that is not JSON the answer means nothing. Linear in time; pure.
bool NestsDeeperThan(absl::string_view json, int levels);

}  // namespace c3po

#endif  // C3PO_INDEX_BASE_JSON_NESTING_H_
