#ifndef C3PO_INDEX_STORE_SQLITE_SQLITE_REFERENCES_H_
#define C3PO_INDEX_STORE_SQLITE_SQLITE_REFERENCES_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "index/store/damaged_rows.h"
#include "index/store/reference_store.h"
#include "index/store/sqlite/sqlite_artifacts.h"
#include "index/store/sqlite/sqlite_connection.h"
#include "index/store/sqlite/sqlite_erasures.h"
#include "index/types/reference_record.h"

namespace c3po {

// Table `reference`, a row for each record. What reads a row compares its checksum; a row that does not match, or
// cannot be decoded, is noted as damaged, and left out. What changes rows belongs into a transaction of the caller's.
// Not thread-safe. ReferenceStore says what each does. Errors: SqliteConnection's.
class SqliteReferences {
 public:
  // All outlive it, and are of the same connection. The artifacts of a reference go with it.
  SqliteReferences(SqliteConnection& connection, SqliteErasures& erasures, SqliteArtifacts& artifacts,
                   DamagedRows& damaged)
      : connection_(connection), erasures_(erasures), artifacts_(artifacts), damaged_(damaged) {}

  // `generation` is the change's. Add takes valid ones (ValidateRecord). Nothing is changed for a duplicate.
  absl::StatusOr<std::vector<AddOutcome>> Add(absl::Span<const ReferenceRecord> records, int64_t generation);
  absl::StatusOr<int64_t> Delete(absl::Span<const std::string> ids, int64_t generation);
  absl::StatusOr<int64_t> DeleteCollection(absl::string_view collection, int64_t generation);

  absl::StatusOr<std::vector<ReferenceRecord>> GetMany(absl::Span<const std::string> ids) const;
  absl::StatusOr<std::vector<ReferenceRecord>> List(absl::string_view collection, absl::string_view after_id,
                                                    int limit) const;
  absl::StatusOr<std::vector<CollectionStats>> Stats(absl::string_view model_digest,
                                                     absl::string_view embedder_digest) const;
  absl::Status ForEach(absl::FunctionRef<absl::Status(ReferenceRecord)> callback) const;
  // Adds those that were added or replaced in a page of changes, or all.
  absl::Status ReadChanged(const ChangePage& page, StoreChanges& changes) const;

  // Reads one row, if it is there, for whether it is damaged.
  absl::Status LookAt(absl::string_view id) const;

  // Gives every row the checksum of what it holds now.
  absl::Status AddChecksums();

  // Statements that name every column and the key: they can be prepared as long as the table is as it was made.
  static absl::Span<const char* const> Probes();

 private:
  std::optional<ReferenceRecord> Whole(SqliteStatement& select) const;
  absl::StatusOr<AddOutcome> AddOne(const ReferenceRecord& record, int64_t generation, SqliteStatement& find,
                                    SqliteStatement& insert);
  absl::Status LeaveDamagedOut(absl::string_view model_digest, absl::string_view embedder_digest,
                               std::vector<CollectionStats>& stats) const;

  SqliteConnection& connection_;
  SqliteErasures& erasures_;
  SqliteArtifacts& artifacts_;
  DamagedRows& damaged_;
};

}  // namespace c3po

#endif  // C3PO_INDEX_STORE_SQLITE_SQLITE_REFERENCES_H_
