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
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "index/store/store_backup.h"
#include "index/types/reference_record.h"
#include "index/types/reference_validation.h"

namespace c3po {

struct StoreOptions {
  // Of 4 KiB, for the database as a whole; 0: what the disk holds. Beyond: ResourceExhausted. SQLite's alone: a
  // PostgreSQL database is bounded by its tablespace, and its store says InvalidArgument.
  int64_t pages_max = 0;
  SampleLimits sample_limits;
  // How many erasures are remembered for ChangesSince, about; the oldest are forgotten first.
  int64_t erasures_max = 100000;
  // Folders that a store in use leaves something in, such as that of the index graphs.
  std::vector<std::string> trace_folders;
  // PostgreSQL's alone: how long a connection may take, and a statement before the call fails with Unavailable.
  absl::Duration connect_timeout = absl::Seconds(5);
  absl::Duration statement_timeout = absl::Seconds(15);
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

// What changed in a store after a generation: enough for whoever holds the state of that generation to hold a later
// one. In pages: where `more` is true, what he holds then is a mixture of states, until a page says false.
struct StoreChanges {
  int64_t generation = 0;                // The state that these lead to.
  std::vector<ReferenceRecord> records;  // Added or replaced since, in the order of insertion; each once, as it is now.
  std::vector<std::string> erased;       // Ids of references that are gone since, by ascending id.
  // Set since, or removed (their value is empty), by ascending collection and name. Each once. A reference that is
  // erased takes its artifacts along; each of them is told as removed.
  std::vector<Artifact> artifacts;
  bool more = false;  // There are further changes: ask again from `generation`.
  // The erasures since are not all remembered: here is everything that exists, and what is not here is gone.
  bool from_start = false;
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

// The durable source of truth of reference records and of what was learned over them. SqliteReferenceStore is a file
// that one process holds open, PostgresReferenceStore a database that many servers share; their headers say how each
// keeps this contract. One test suite holds both to it.
//
// A call that changes the store returns OK only once the change is committed and synced: after a crash or a power cut
// at any moment the store has everything that was acknowledged, and each batch whole or absent. A call that fails
// changes nothing and the store goes on working, also when the disk is full. One exception: where a database ends the
// connection over a commit and is not to be asked again in time, the call is Unavailable, and says that the change may
// have been made. Every change may be repeated: it comes to the same state.
//
// Generations: each committed change that changes any row, artifacts' included, raises the generation by one, and a
// change becomes visible together with its generation, in their order. A new store has 0.
//
// Damage: a row that does not match its checksum (RowChecksum) is never returned. It is left out, as if it were absent,
// counted, and listed by Damaged(); Get of its id says DataLoss. Add and PutArtifacts write it anew, whatever it holds.
// Every row is looked at when it is read.
//
// Every method is thread-safe. Errors name the location: ResourceExhausted (disk full), DataLoss (corrupt; or something
// else than the store that was opened is in its place), StoreAwayError (the database does not answer, or is held busy;
// the same call may succeed later), PermissionDenied, Internal (anything else).
class ReferenceStore {
 public:
  virtual ~ReferenceStore() = default;
  ReferenceStore(const ReferenceStore&) = delete;
  ReferenceStore& operator=(const ReferenceStore&) = delete;

  // Adds the records in one transaction; outcomes in the order of `records`. Two records with one id in a batch behave
  // as if added one after the other. InvalidArgument "records[3].choices[2]: ..." (see ValidateRecord): none is added.
  // A replaced record keeps its place in the insertion order.
  virtual absl::StatusOr<std::vector<AddOutcome>> Add(absl::Span<const ReferenceRecord> records) = 0;

  // NotFound: no such id.
  virtual absl::StatusOr<ReferenceRecord> Get(absl::string_view id) const = 0;

  // Those of `ids` that exist, in the order asked for.
  virtual absl::StatusOr<std::vector<ReferenceRecord>> GetMany(absl::Span<const std::string> ids) const = 0;

  // Up to `limit` records of a collection (empty: of all), by ascending id, from the first id above `after_id` (empty:
  // from the start). Fewer than `limit`: the end is reached. InvalidArgument: limit < 1.
  virtual absl::StatusOr<std::vector<ReferenceRecord>> List(absl::string_view collection, absl::string_view after_id,
                                                            int limit) const = 0;

  // Each in one transaction, with the artifacts of what goes; they return how many records are gone. Unknown ids and
  // collections count nothing.
  virtual absl::StatusOr<int64_t> Delete(absl::Span<const std::string> ids) = 0;
  virtual absl::StatusOr<int64_t> DeleteCollection(absl::string_view collection) = 0;

  // Sets or removes all of them in one transaction. The collection need not have references. InvalidArgument
  // "artifacts[i].FIELD: ...": none is changed.
  virtual absl::Status PutArtifacts(absl::Span<const Artifact> artifacts) = 0;
  // Of a collection, those whose names begin with `prefix` and end with `suffix` (empty: all), by ascending name.
  virtual absl::StatusOr<std::vector<Artifact>> Artifacts(absl::string_view collection, absl::string_view prefix,
                                                          absl::string_view suffix = {}) const = 0;

  // The collections that hold an artifact of this name, by ascending name.
  virtual absl::StatusOr<std::vector<std::string>> CollectionsWith(absl::string_view artifact_name) const = 0;

  // By ascending name. Empty collections do not exist.
  virtual absl::StatusOr<std::vector<CollectionStats>> Stats(absl::string_view model_digest,
                                                             absl::string_view embedder_digest) const = 0;

  // Calls `callback` with every record in insertion order, one at a time, from one consistent state; stops at its first
  // error and returns that. The callback must not call this store. `generation`, unless null: of that state.
  virtual absl::Status ForEach(absl::FunctionRef<absl::Status(ReferenceRecord)> callback,
                               int64_t* generation = nullptr) const = 0;

  // What changed after `generation`, in pages of about `limit` rows: a change is never torn, so a page has one change
  // at least, and more rows than `limit` where that has. From a generation that the store has not reached: nothing, and
  // its own generation. One that is older than the erasures that are remembered gets everything (from_start) in one
  // page, whatever `limit` says. Damaged rows are left out. InvalidArgument: generation < 0, limit < 1.
  virtual absl::StatusOr<StoreChanges> ChangesSince(int64_t generation, int limit) const = 0;

  // The last generation that this object has met: its own changes, and what its calls read. Never waits.
  virtual int64_t generation() const = 0;
  // Whether others may change it too, so that generation() may be behind the store's.
  virtual bool shared() const = 0;
  // Waits until the store has a generation above `above`, at most `timeout`, and returns the store's last one, whatever
  // it is. Others' changes are announced; where an announcement is lost, it is seen within a second. One thread at a
  // time; a second one waits for the first.
  virtual absl::StatusOr<int64_t> WaitForGeneration(int64_t above, absl::Duration timeout) const = 0;

  // Begins a copy in a new file `path`. The store outlives it. ResourceExhausted: another copy is under way.
  // AlreadyExists: a file is there, which is left as it is. FailedPrecondition: a store of this kind is copied by other
  // means, which the message names.
  virtual absl::StatusOr<std::unique_ptr<StoreBackup>> StartBackup(const std::string& path) const = 0;
  // Where a copy may lie that is to be removed once it was read. Empty: StartBackup fails.
  virtual std::string partial_backup_path() const = 0;

  // Damage found since the store was opened, and not put right since; references by collection and id, then artifacts.
  virtual std::vector<DamagedRow> Damaged() const = 0;
  // Why it is doubtful that the store was to begin empty, as it did when it was opened: there was none, or a file of 0
  // bytes, beside what a store leaves. Empty: it held something, or there was nothing.
  virtual std::string empty_problem() const = 0;
  // Why indexes of the store were made anew when it was opened; empty: they were not.
  virtual std::string index_problem() const = 0;

  // Looks whether what lies at location() is still what was opened, and its tables those that this build works with.
  // DataLoss: it is not, and changes are refused until it is back. StoreAwayError: it cannot be asked now.
  virtual absl::Status CheckPlace() = 0;

  // What errors and the log call it: a path; or postgresql://HOST:PORT/DATABASE, without user and password.
  virtual const std::string& location() const = 0;

 protected:
  ReferenceStore() = default;
};

// The store at `location`: postgresql:// or postgres:// is a database (PostgresReferenceStore), anything else the path
// of a file (SqliteReferenceStore). Errors: those of their Open.
absl::StatusOr<std::unique_ptr<ReferenceStore>> OpenReferenceStore(const std::string& location,
                                                                   const StoreOptions& options = StoreOptions());
// Whether `location` is a database rather than a file.
bool IsPostgresLocation(absl::string_view location);

}  // namespace c3po

#endif  // C3PO_INDEX_STORE_REFERENCE_STORE_H_
