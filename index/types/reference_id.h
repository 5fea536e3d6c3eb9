#ifndef C3PO_INDEX_TYPES_REFERENCE_ID_H_
#define C3PO_INDEX_TYPES_REFERENCE_ID_H_

#include <string>

#include "absl/strings/string_view.h"
#include "index/types/reference_record.h"

namespace c3po {

// The id of a sample in a collection. Of one with an id of its own: COLLECTION:ID, where ID has no colon, so that no
// two collections share it. Of others, the first 32 hexadecimal digits of
//   SHA-256(P(collection) P(prompt) P(answer) n P(choices[0]) ... P(choices[n-1])),  P(s) = length of s, then its
//   bytes,
// lengths and n as 8 bytes, little-endian. Metadata takes no part: the same question in one collection has one id. The
// order of the choices does. Pure and thread-safe.
std::string ReferenceId(absl::string_view collection, const ReferenceSample& sample);

// The sample's own id in a reference's; empty where that one is made of the sample. Pure and thread-safe.
absl::string_view OwnIdOf(absl::string_view collection, absl::string_view reference_id);

}  // namespace c3po

#endif  // C3PO_INDEX_TYPES_REFERENCE_ID_H_
