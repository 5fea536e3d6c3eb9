#ifndef C3PO_INDEX_STORE_SQLITE_SQLITE_REFERENCE_STORE_H_
#define C3PO_INDEX_STORE_SQLITE_SQLITE_REFERENCE_STORE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "index/store/reference_store.h"

namespace c3po {

// One SQLite file (WAL, synchronous=FULL) that one process holds open. ReferenceStore has the contract of every call.
//
// The write-ahead log is folded into the file with each change, so that the file alone, copied while nothing changes,
// holds everything; another program that reads the file meanwhile can delay this until the next change. A copy that is
// made while the store changes is whole only through StartBackup.
//
// Where the file is taken away in the midst of a change, the call fails, and the file that was taken away may hold it.
//
// On disk: table `reference`, one row per record in insertion order; choices and metadata as JSON; embedding and
// pathway as little-endian float32; table `store_state` with the generation, and a stamp that each change draws anew.
// application_id is "c3po", user_version the schema's: 2 adds table `artifact`, 3 a checksum to each row of `reference`
// and `artifact` (RowChecksum) and the stamp, 4 a generation to each of these rows and table `erased`. A file of an
// earlier version is brought to this one when it is opened, in one transaction, for which the disk needs room for a
// second one. PATH.lock and the file itself are locked as long as the store is open (StoreFile). PATH.backup.partial,
// which a process that was killed may have left of a copy under way, is removed when the store is opened.
//
// Damage: artifacts are all looked at when the store is opened, references by ForEach, every row again when it is read.
// Indexes that disagree with their tables are made anew when the store is opened. What no checksum covers is SQLite's
// own structure, which Open checks, and the generation of a row.
//
// Thread-safe; one call runs at a time. Errors, besides the contract's: ResourceExhausted also at pages_max; DataLoss
// also where, while it was open, the file was deleted, replaced, cut or written over, or another program dropped or
// altered a table, then nothing is changed until it is back.
class SqliteReferenceStore final : public ReferenceStore {
 public:
  // Opens `path`, created if absent, and checks it (SQLite's integrity_check: reads the whole file). Errors, besides
  // the above:
  //   FailedPrecondition "store PATH is locked by another process"; or a schema of another version;
  //   InvalidArgument: the file, or one beside it that SQLite would open, is something else than a c3po reference
  //   store; NotFound: its folder does not exist;  PermissionDenied;
  //   DataLoss: the file has 0 bytes, and PATH-wal or one of options.trace_folders is not empty, so that it held a
  //   store and was cut. SQLite takes 0 bytes for a new database, and removes the log beside it.
  static absl::StatusOr<std::unique_ptr<SqliteReferenceStore>> Open(const std::string& path,
                                                                    const StoreOptions& options = StoreOptions());
  ~SqliteReferenceStore() override;

  absl::StatusOr<std::vector<AddOutcome>> Add(absl::Span<const ReferenceRecord> records) override;
  absl::StatusOr<ReferenceRecord> Get(absl::string_view id) const override;
  absl::StatusOr<std::vector<ReferenceRecord>> GetMany(absl::Span<const std::string> ids) const override;
  absl::StatusOr<std::vector<ReferenceRecord>> List(absl::string_view collection, absl::string_view after_id,
                                                    int limit) const override;
  absl::StatusOr<int64_t> Delete(absl::Span<const std::string> ids) override;
  absl::StatusOr<int64_t> DeleteCollection(absl::string_view collection) override;
  absl::Status PutArtifacts(absl::Span<const Artifact> artifacts) override;
  absl::StatusOr<std::vector<Artifact>> Artifacts(absl::string_view collection, absl::string_view prefix,
                                                  absl::string_view suffix = {}) const override;
  absl::StatusOr<std::vector<std::string>> CollectionsWith(absl::string_view artifact_name) const override;
  absl::StatusOr<std::vector<CollectionStats>> Stats(absl::string_view model_digest,
                                                     absl::string_view embedder_digest) const override;
  absl::Status ForEach(absl::FunctionRef<absl::Status(ReferenceRecord)> callback,
                       int64_t* generation = nullptr) const override;
  absl::StatusOr<StoreChanges> ChangesSince(int64_t generation, int limit) const override;

  int64_t generation() const override;
  bool shared() const override { return false; }
  absl::StatusOr<int64_t> WaitForGeneration(int64_t above, absl::Duration timeout) const override;

  absl::StatusOr<std::unique_ptr<StoreBackup>> StartBackup(const std::string& path) const override;
  std::string partial_backup_path() const override;  // PATH.backup.partial

  std::vector<DamagedRow> Damaged() const override;
  std::string empty_problem() const override;
  std::string index_problem() const override;

  // Looks at the file (StoreFile::Check) and its tables. Changes look by themselves, before and after. Waits for a call
  // under way only where something seems wrong with the file; the tables are looked at when there is none.
  absl::Status CheckPlace() override;
  // What the last look found. Never waits.
  absl::Status fault() const;

  const std::string& location() const override;  // The path.

 private:
  struct Impl;
  explicit SqliteReferenceStore(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace c3po

#endif  // C3PO_INDEX_STORE_SQLITE_SQLITE_REFERENCE_STORE_H_
