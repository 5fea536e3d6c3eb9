#ifndef C3PO_INDEX_STORE_SQLITE_SQLITE_ARTIFACTS_H_
#define C3PO_INDEX_STORE_SQLITE_SQLITE_ARTIFACTS_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "index/store/damaged_rows.h"
#include "index/store/reference_store.h"
#include "index/store/sqlite/sqlite_connection.h"
#include "index/store/sqlite/sqlite_erasures.h"

namespace c3po {

// Table `artifact`: profiles, priors and shifts, each beside its checksum. What reads a row compares its checksum; a
// row that does not match is noted as damaged, and left out. What changes rows belongs into a transaction of the
// caller's. Not thread-safe. Errors: SqliteConnection's.
class SqliteArtifacts {
 public:
  // All outlive it; `erasures` are of the same connection.
  SqliteArtifacts(SqliteConnection& connection, SqliteErasures& erasures, DamagedRows& damaged)
      : connection_(connection), erasures_(erasures), damaged_(damaged) {}

  // ReferenceStore says what these do. Put takes valid ones (ValidateArtifacts); `generation` is the change's.
  absl::Status Put(absl::Span<const Artifact> artifacts, int64_t generation);
  absl::StatusOr<std::vector<Artifact>> Read(absl::string_view collection, absl::string_view prefix,
                                             absl::string_view suffix) const;
  absl::StatusOr<std::vector<std::string>> CollectionsWith(absl::string_view name) const;

  // Removes what belongs to these references, which are still there.
  absl::Status ForgetReferences(absl::Span<const std::string> ids, int64_t generation);
  absl::Status DeleteCollection(absl::string_view collection, int64_t generation);

  // Adds those that were set in a page of changes, or all.
  absl::Status ReadChanged(const ChangePage& page, StoreChanges& changes) const;

  // Reads all of them, or one, for what is damaged.
  absl::Status LookAtAll() const;
  absl::Status LookAt(absl::string_view collection, absl::string_view name) const;

  // Gives every row the checksum of what it holds now.
  absl::Status AddChecksums();

  // A statement that names every column: it can be prepared as long as the table is as it was made.
  static const char* Probe();

 private:
  bool IsWhole(const Artifact& artifact, absl::string_view checksum) const;

  SqliteConnection& connection_;
  SqliteErasures& erasures_;
  DamagedRows& damaged_;
};

}  // namespace c3po

#endif  // C3PO_INDEX_STORE_SQLITE_SQLITE_ARTIFACTS_H_
