#ifndef C3PO_INDEX_STORE_REFERENCE_STORE_H_
#define C3PO_INDEX_STORE_REFERENCE_STORE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "index/store/store_backup.h"
#include "index/types/reference_record.h"
#include "index/types/reference_validation.h"

namespace c3po {

struct StoreOptions {
  int64_t pages_max = 0;  // Of 4 KiB, for the database as a whole; 0: what the disk holds. Beyond: ResourceExhausted.
  SampleLimits sample_limits;
  // Folders that a store in use leaves something in, such as that of the index graphs.
  std::vector<std::string> trace_folders;
};

enum class AddOutcome {
  kInserted,
  kDuplicate,  // The id is there, made with the same model and embedder: nothing is changed.
  kReplaced,   // The id was there, made with another model or embedder, or one that the sample brought, with another
               // content: the row now holds the new record. In the latter case the reference's artifacts are gone.
};

// Something learned over a collection, kept beside its references: named bytes that the store does not interpret.
// Names that begin with "reference/ID/" belong to that reference and go when it goes.
struct Artifact {
  std::string collection;
  std::string name;   // [1, 256] bytes
  std::string value;  // at most 16 MiB; in PutArtifacts, empty: removes it
};

struct CollectionStats {
  std::string collection;
  int64_t references = 0;
  int64_t successful = 0;  // Of `references`, with whatever model they were made.
  int64_t usable = 0;      // Of `references`, made with the model and the embedder asked about.
};

// A row that is not as it was written, so that nothing of it is served. The bytes of its names may be what is damaged:
// they need not be UTF-8.
struct DamagedRow {
  enum class Kind { kReference, kArtifact };
  Kind kind = Kind::kReference;
  std::string collection;
  std::string name;     // The reference's id, or the artifact's name.
  std::string problem;  // What is wrong, and what puts it right.
};

// The durable source of truth of reference records: one SQLite file (WAL, synchronous=FULL) that one process holds
// open.
//
// The write-ahead log is folded into the file with each change, so that the file alone, copied while nothing changes,
// holds everything; another program that reads the file meanwhile can delay this until the next change. A copy that is
// made while the store changes is whole only through StartBackup.
//
// A call that changes the store returns OK only once the change is committed and synced: after a crash or a power cut
// at any moment the store opens with everything that was acknowledged, and with each batch whole or absent. A call that
// fails changes nothing and the store goes on working, also when the disk is full. (Where the file is taken away in the
// midst of a change, the call fails, and the file that was taken away may hold it.)
//
// On disk: table `reference`, one row per record in insertion order; choices and metadata as JSON; embedding and
// pathway as little-endian float32; table `store_state` with the generation, and a stamp that each change draws anew.
// application_id is "c3po", user_version the schema's: 2 adds table `artifact`, 3 a checksum to each row of `reference`
// and `artifact` (RowChecksum) and the stamp. A file of an earlier version is brought to this one when it is opened, in
// one transaction, for which the disk needs room for a second one. PATH.lock and the file itself are locked as long as
// the store is open (StoreFile). PATH.backup.partial, which a process that was killed may have left of a copy under
// way, is removed when the store is opened.
//
// Damage: a row that does not match its checksum is never returned. It is left out, as if it were absent, counted, and
// listed by Damaged(); Get of its id says DataLoss. Add and PutArtifacts write it anew, whatever it holds. Artifacts
// are all looked at when the store is opened, references by ForEach, every row again when it is read. Indexes that
// disagree with their tables are made anew when the store is opened. What no checksum covers is SQLite's own structure,
// which Open checks.
//
// Every method is thread-safe; one call runs at a time. Errors name the path: ResourceExhausted (disk full, pages_max),
// DataLoss (corrupt; or, while it was open, the file was deleted, replaced, cut or written over, or another program
// dropped or altered a table, then nothing is changed until it is back), Unavailable (another program holds the
// database busy), Internal (anything else).
class ReferenceStore {
 public:
  // Opens `path`, created if absent, and checks it (SQLite's integrity_check: reads the whole file). Errors, besides
  // the above:
  //   FailedPrecondition "store PATH is locked by another process"; or a schema of another version;
  //   InvalidArgument: the file, or one beside it that SQLite would open, is something else than a c3po reference
  //   store; NotFound: its folder does not exist;  PermissionDenied;
  //   DataLoss: the file has 0 bytes, and PATH-wal or one of options.trace_folders is not empty, so that it held a
  //   store and was cut. SQLite takes 0 bytes for a new database, and removes the log beside it.
  static absl::StatusOr<std::unique_ptr<ReferenceStore>> Open(const std::string& path,
                                                              const StoreOptions& options = StoreOptions());
  ~ReferenceStore();
  ReferenceStore(const ReferenceStore&) = delete;
  ReferenceStore& operator=(const ReferenceStore&) = delete;

  // Adds the records in one transaction; outcomes in the order of `records`. Two records with one id in a batch behave
  // as if added one after the other. InvalidArgument "records[3].choices[2]: ..." (see ValidateRecord): none is added.
  // A replaced record keeps its place in the insertion order.
  absl::StatusOr<std::vector<AddOutcome>> Add(absl::Span<const ReferenceRecord> records);

  // NotFound: no such id.
  absl::StatusOr<ReferenceRecord> Get(absl::string_view id) const;

  // Those of `ids` that exist, in the order asked for.
  absl::StatusOr<std::vector<ReferenceRecord>> GetMany(absl::Span<const std::string> ids) const;

  // Up to `limit` records of a collection (empty: of all), by ascending id, from the first id above `after_id` (empty:
  // from the start). Fewer than `limit`: the end is reached. InvalidArgument: limit < 1.
  absl::StatusOr<std::vector<ReferenceRecord>> List(absl::string_view collection, absl::string_view after_id,
                                                    int limit) const;

  // Each in one transaction, with the artifacts of what goes; they return how many records are gone. Unknown ids and
  // collections count nothing.
  absl::StatusOr<int64_t> Delete(absl::Span<const std::string> ids);
  absl::StatusOr<int64_t> DeleteCollection(absl::string_view collection);

  // Sets or removes all of them in one transaction; does not raise the generation. The collection need not have
  // references. InvalidArgument "artifacts[i].FIELD: ...": none is changed.
  absl::Status PutArtifacts(absl::Span<const Artifact> artifacts);
  // Of a collection, those whose names begin with `prefix` and end with `suffix` (empty: all), by ascending name.
  absl::StatusOr<std::vector<Artifact>> Artifacts(absl::string_view collection, absl::string_view prefix,
                                                  absl::string_view suffix = {}) const;

  // The collections that hold an artifact of this name, by ascending name.
  absl::StatusOr<std::vector<std::string>> CollectionsWith(absl::string_view artifact_name) const;

  // By ascending name. Empty collections do not exist.
  absl::StatusOr<std::vector<CollectionStats>> Stats(absl::string_view model_digest,
                                                     absl::string_view embedder_digest) const;

  // Calls `callback` with every record in insertion order, one at a time, from one consistent state; stops at its first
  // error and returns that. The callback must not call this store.
  absl::Status ForEach(absl::FunctionRef<absl::Status(ReferenceRecord)> callback) const;

  // Begins a copy in a new file `path`. The store outlives it. ResourceExhausted: another copy is under way.
  // AlreadyExists: a file is there, which is left as it is.
  absl::StatusOr<std::unique_ptr<StoreBackup>> StartBackup(const std::string& path) const;
  // Where a copy may lie that is to be removed once it was read: PATH.backup.partial.
  std::string partial_backup_path() const;

  // Damage found since the store was opened, and not put right since; references by collection and id, then artifacts.
  std::vector<DamagedRow> Damaged() const;
  // Why it is doubtful that the store was to begin empty, as it did when it was opened: a file of 0 bytes, or no file
  // beside what a store leaves. Empty: it held something, or there was nothing.
  std::string empty_problem() const;
  // Why the indexes were made anew when the store was opened; empty: they were not.
  std::string index_problem() const;

  // Looks whether the open file is still what path() leads to (StoreFile::Check), and its tables those that this store
  // works with. Changes look by themselves, before and after. Waits for a call under way only where something seems
  // wrong with the file; the tables are looked at when there is none.
  absl::Status CheckFile();
  // What the last look found. Never waits.
  absl::Status fault() const;

  // 0 for a new store, raised by one with each committed change; a call that changes no record does not raise it.
  // Durable.
  int64_t generation() const;

  const std::string& path() const;

 private:
  struct Impl;
  explicit ReferenceStore(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace c3po

#endif  // C3PO_INDEX_STORE_REFERENCE_STORE_H_
