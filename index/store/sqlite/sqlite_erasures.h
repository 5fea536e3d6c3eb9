#ifndef C3PO_INDEX_STORE_SQLITE_SQLITE_ERASURES_H_
#define C3PO_INDEX_STORE_SQLITE_SQLITE_ERASURES_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "index/store/change_page.h"
#include "index/store/reference_store.h"
#include "index/store/sqlite/sqlite_connection.h"

namespace c3po {

// Table `erased`: what is gone, and the generation that took it, so that whoever has seen an earlier one can be told.
// What is there again is not in it. Every call that changes it belongs into a transaction of the caller's. Not
// thread-safe. Errors: SqliteConnection's.
class SqliteErasures {
 public:
  // It outlives this.
  explicit SqliteErasures(SqliteConnection& connection) : connection_(connection) {}

  // Before the rows go; what does not exist is not noted.
  absl::Status NoteReference(absl::string_view id, int64_t generation);
  absl::Status NoteCollection(absl::string_view collection, int64_t generation);
  absl::Status NoteArtifact(absl::string_view collection, absl::string_view name, int64_t generation);
  absl::Status NoteArtifactsOfReference(absl::string_view id, int64_t generation);
  absl::Status NoteArtifactsOfCollection(absl::string_view collection, int64_t generation);

  // They are there again.
  absl::Status ForgetReference(absl::string_view id);
  absl::Status ForgetArtifact(absl::string_view collection, absl::string_view name);

  // On a full disk: forgets everything, and notes nothing until it is told to again. `generation` is the change's.
  absl::Status ForgetAll(int64_t generation);
  void NoteAgain() { notes_ = true; }

  // Forgets the oldest, generation by generation, until at most `rows_max` are left.
  absl::Status ForgetBeyond(int64_t rows_max);
  // From this generation on all erasures are remembered.
  absl::StatusOr<int64_t> RememberedFrom() const;

  // Which changes come after `after`, in all three tables, of which about `limit` rows are wanted.
  absl::StatusOr<ChangePage> PageAfter(int64_t after, int64_t latest, int limit) const;
  // Adds the erasures of a page to `changes`.
  absl::Status Read(const ChangePage& page, StoreChanges& changes) const;

  // A statement that names every column: it can be prepared as long as the table is as it was made.
  static const char* Probe();

 private:
  // Runs `sql` with ?1 = generation, ?2 = first, ?3 = second, unless nothing is noted.
  absl::Status Run(const char* sql, int64_t generation, absl::string_view first, absl::string_view second = {});

  absl::Status ForgetThrough(int64_t generation);

  SqliteConnection& connection_;
  bool notes_ = true;
};

}  // namespace c3po

#endif  // C3PO_INDEX_STORE_SQLITE_SQLITE_ERASURES_H_
