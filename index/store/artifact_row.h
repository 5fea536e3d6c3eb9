#ifndef C3PO_INDEX_STORE_ARTIFACT_ROW_H_
#define C3PO_INDEX_STORE_ARTIFACT_ROW_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "index/store/reference_store.h"

namespace c3po {

// An artifact as it lies in a row, whichever database holds it. Pure and thread-safe.

// RowChecksum over its three fields, in their order.
std::string ChecksumOf(const Artifact& artifact);

// InvalidArgument "artifacts[i].FIELD: ...": what PutArtifacts says of them.
absl::Status ValidateArtifacts(absl::Span<const Artifact> artifacts);

// By ascending collection and name.
void SortArtifacts(std::vector<Artifact>& artifacts);

}  // namespace c3po

#endif  // C3PO_INDEX_STORE_ARTIFACT_ROW_H_
