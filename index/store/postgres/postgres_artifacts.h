#ifndef C3PO_INDEX_STORE_POSTGRES_POSTGRES_ARTIFACTS_H_
#define C3PO_INDEX_STORE_POSTGRES_POSTGRES_ARTIFACTS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "index/store/change_page.h"
#include "index/store/postgres/noted_damage.h"
#include "index/store/postgres/postgres_connection.h"
#include "index/store/reference_store.h"

namespace c3po {

// Table `artifact`, through one session. What reads a row compares its checksum; a row that does not match is noted as
// damaged, and left out. What changes rows belongs into a transaction that holds `state`, and notes in `erased` what
// goes; it returns how many rows it changed. ReferenceStore says what each does. Errors: PostgresConnection's.
class PostgresArtifacts {
 public:
  // Both outlive it.
  PostgresArtifacts(PostgresConnection& session, NotedDamage& damage) : session_(session), damage_(damage) {}

  // Takes valid ones (ValidateArtifacts).
  absl::StatusOr<int64_t> Put(absl::Span<const Artifact> artifacts, int64_t generation);
  // What belongs to these references, which are still there.
  absl::StatusOr<int64_t> ForgetReferences(absl::Span<const std::string> ids, int64_t generation);
  absl::StatusOr<int64_t> DeleteCollection(absl::string_view collection, int64_t generation);

  absl::StatusOr<std::vector<Artifact>> Read(absl::string_view collection, absl::string_view prefix,
                                             absl::string_view suffix);
  absl::StatusOr<std::vector<std::string>> CollectionsWith(absl::string_view name);
  // Adds those that were set in a page of changes, or all.
  absl::Status ReadChanged(const ChangePage& page, StoreChanges& changes);
  // Reads one row, if it is there, for whether it is damaged.
  absl::Status LookAt(absl::string_view collection, absl::string_view name);

 private:
  bool IsWhole(const Artifact& artifact, absl::string_view checksum);
  absl::Status PutChunk(absl::Span<const Artifact* const> artifacts, int64_t generation);
  absl::StatusOr<int64_t> Remove(absl::Span<const Artifact* const> artifacts, int64_t generation);

  PostgresConnection& session_;
  NotedDamage& damage_;
};

}  // namespace c3po

#endif  // C3PO_INDEX_STORE_POSTGRES_POSTGRES_ARTIFACTS_H_
