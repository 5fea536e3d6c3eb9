#ifndef C3PO_SERVER_RPC_DOORS_FIELD_NAMES_H_
#define C3PO_SERVER_RPC_DOORS_FIELD_NAMES_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace c3po {

// What the pipeline calls a field, and what the client of a door does. Both are beginnings of dotted paths.
struct FieldName {
  absl::string_view ours, theirs;
};

// `status` with the field at the start of its message called as the client knows it, by the first row that fits a whole
// part of the path: "sampling" fits "sampling.top_p: ..." and "sampling: ...", "sampling." the former. Keeps code and
// payloads. Pure and thread-safe.
absl::Status InTheirWords(const absl::Status& status, absl::Span<const FieldName> names);

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_DOORS_FIELD_NAMES_H_
