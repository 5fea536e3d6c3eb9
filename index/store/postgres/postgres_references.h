#ifndef C3PO_INDEX_STORE_POSTGRES_POSTGRES_REFERENCES_H_
#define C3PO_INDEX_STORE_POSTGRES_POSTGRES_REFERENCES_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "index/store/change_page.h"
#include "index/store/postgres/noted_damage.h"
#include "index/store/postgres/postgres_artifacts.h"
#include "index/store/postgres/postgres_connection.h"
#include "index/store/record_row.h"
#include "index/store/reference_store.h"
#include "index/types/reference_record.h"

namespace c3po {

// Table `reference`, through one session. What reads a row compares its checksum; a row that does not match, or cannot
// be decoded, is noted as damaged, and left out. What changes rows belongs into a transaction that holds `state`, and
// notes in `erased` what goes. ReferenceStore says what each does. Errors: PostgresConnection's.
class PostgresReferences {
 public:
  // Both outlive it.
  PostgresReferences(PostgresConnection& session, NotedDamage& damage)
      : session_(session), damage_(damage), artifacts_(session, damage) {}

  // Takes valid ones (ValidateRecord). Nothing is changed for a duplicate.
  absl::StatusOr<std::vector<AddOutcome>> Add(absl::Span<const ReferenceRecord> records, int64_t generation);
  // Return how many records are gone. `rows_changed` are those and artifacts.
  absl::StatusOr<int64_t> Delete(absl::Span<const std::string> ids, int64_t generation, int64_t& rows_changed);
  absl::StatusOr<int64_t> DeleteCollection(absl::string_view collection, int64_t generation, int64_t& rows_changed);

  absl::StatusOr<std::vector<ReferenceRecord>> GetMany(absl::Span<const std::string> ids);
  absl::StatusOr<std::vector<ReferenceRecord>> List(absl::string_view collection, absl::string_view after_id,
                                                    int limit);
  absl::StatusOr<std::vector<CollectionStats>> Stats(absl::string_view model_digest, absl::string_view embedder_digest);
  absl::Status ForEach(absl::FunctionRef<absl::Status(ReferenceRecord)> callback);
  // Adds those that were added or replaced in a page of changes, or all.
  absl::Status ReadChanged(const ChangePage& page, StoreChanges& changes);
  // Reads one row, if it is there, for whether it is damaged.
  absl::Status LookAt(absl::string_view id);

 private:
  std::optional<ReferenceRecord> Whole(const PostgresRows& rows, int row);
  absl::Status Insert(absl::Span<const RecordRow* const> rows, int64_t generation);
  absl::Status LeaveDamagedOut(absl::string_view model_digest, absl::string_view embedder_digest,
                               std::vector<CollectionStats>& stats);

  PostgresConnection& session_;
  NotedDamage& damage_;
  PostgresArtifacts artifacts_;
};

}  // namespace c3po

#endif  // C3PO_INDEX_STORE_POSTGRES_POSTGRES_REFERENCES_H_
