// One connection, one mutex. A statement is prepared for each call and finalized when the call ends, so that none keeps
// a read transaction open: with a reader always open, SQLite could never empty the write-ahead log.
//
// The parts, each with its header:
//   row_codec, record_row, artifact_row    what lies in a row, its checksum, and what is refused; no database
//   damaged_rows                           which rows are left out
//   sqlite_connection                      the door to SQLite
//   sqlite_schema                          tables, their earlier versions, pages and indexes
//   sqlite_references, sqlite_artifacts,
//   sqlite_erasures                        the SQL of a table
//   store_file, stamped_file, store_traces whether the file is the store, still or at all
//   sqlite_backup                          a copy of a store in use

#include "index/store/sqlite/sqlite_reference_store.h"

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "index/base/durable_file.h"
#include "index/base/mutex.h"
#include "index/base/status_macros.h"
#include "index/store/announced_generation.h"
#include "index/store/artifact_row.h"
#include "index/store/change_page.h"
#include "index/store/damaged_rows.h"
#include "index/store/record_row.h"
#include "index/store/sqlite/sqlite_artifacts.h"
#include "index/store/sqlite/sqlite_backup.h"
#include "index/store/sqlite/sqlite_connection.h"
#include "index/store/sqlite/sqlite_erasures.h"
#include "index/store/sqlite/sqlite_references.h"
#include "index/store/sqlite/sqlite_schema.h"
#include "index/store/sqlite/stamped_file.h"
#include "index/store/sqlite/store_file.h"
#include "index/store/sqlite/store_traces.h"

namespace c3po {
namespace {

constexpr absl::string_view kPartialBackup = ".backup.partial";  // No name that somebody gives a copy of his own.

}  // namespace

struct SqliteReferenceStore::Impl {
  Impl(const std::string& store_path, const StoreOptions& store_options, std::unique_ptr<StoreFile> locked,
       std::unique_ptr<SqliteConnection> opened)
      : path(store_path), options(store_options), file(std::move(locked)), connection(std::move(opened)) {}

  // Makes the open database a store, and looks at all that is checked once.
  absl::Status Begin() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);

  // Runs `body` with the generation that the change is to have, in a transaction, refused where the file is no longer
  // at its path. Where it changes any row, the generation is raised, and the file gets a new stamp. Returns what `body`
  // does.
  absl::StatusOr<int64_t> Change(absl::string_view action, absl::FunctionRef<absl::StatusOr<int64_t>(int64_t)> body)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);

  // A change that only takes away. On a full disk, which has no room for what ChangesSince tells of it, it is made
  // without, and everything that was erased so far is forgotten.
  absl::StatusOr<int64_t> Erase(absl::string_view action, absl::FunctionRef<absl::StatusOr<int64_t>(int64_t)> body)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);

  // ReferenceStore::ChangesSince says what it does.
  absl::StatusOr<StoreChanges> ChangesSince(int64_t after, int limit) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);

  const std::string path;
  const StoreOptions options;
  const std::unique_ptr<StoreFile> file;  // Closed after the connection.
  std::string empty_problem;              // Set once, before others see it.
  std::atomic<bool> backup_under_way{false};
  Mutex mutex;
  const std::unique_ptr<SqliteConnection> connection ABSL_PT_GUARDED_BY(mutex);
  DamagedRows damaged ABSL_GUARDED_BY(mutex);
  SqliteErasures erasures ABSL_GUARDED_BY(mutex){*connection};
  SqliteArtifacts artifacts ABSL_GUARDED_BY(mutex){*connection, erasures, damaged};
  SqliteReferences references ABSL_GUARDED_BY(mutex){*connection, erasures, artifacts, damaged};
  StampedFile stamped{*file};
  AnnouncedGeneration generation;  // Raised under `mutex`.
  std::string index_problem ABSL_GUARDED_BY(mutex);
};

absl::Status SqliteReferenceStore::Impl::Begin() {
  C3PO_ASSIGN_OR_RETURN(index_problem, PrepareSchema(*connection, references, artifacts));
  C3PO_RETURN_IF_ERROR(artifacts.LookAtAll());
  if (options.pages_max > 0) {
    const std::string limit = absl::StrCat("PRAGMA max_page_count = ", options.pages_max);
    C3PO_RETURN_IF_ERROR(connection->QueryInteger(limit).status());
  }
  C3PO_ASSIGN_OR_RETURN(const int64_t stored, StampedFile::Generation(*connection));
  generation.Raise(stored);
  C3PO_RETURN_IF_ERROR(stamped.Learn(*connection));
  C3PO_RETURN_IF_ERROR(stamped.Check(*connection));  // It may have been replaced between its locking and its opening.
  return SyncFolderOf(path);
}

absl::StatusOr<int64_t> SqliteReferenceStore::Impl::Change(absl::string_view action,
                                                           absl::FunctionRef<absl::StatusOr<int64_t>(int64_t)> body) {
  C3PO_RETURN_IF_ERROR(stamped.Check(*connection));
  const int64_t next = generation.Get() + 1;
  int64_t result = 0;
  std::string stamp;
  const auto with_stamp = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) -> absl::Status {
    const int64_t rows_before = connection->rows_changed_ever();
    C3PO_ASSIGN_OR_RETURN(result, body(next));
    if (connection->rows_changed_ever() == rows_before) return absl::OkStatus();
    if (next % kForgetErasuresEvery == 0) C3PO_RETURN_IF_ERROR(erasures.ForgetBeyond(options.erasures_max));
    C3PO_ASSIGN_OR_RETURN(stamp, stamped.Stamp(*connection, action));
    return absl::OkStatus();
  };
  C3PO_RETURN_IF_ERROR(connection->Transaction(action, with_stamp));
  if (!stamp.empty()) {
    generation.Raise(next);
    stamped.Committed(stamp);
  }
  // The change is made: where rows cannot be looked at now, all stay on the list.
  const auto look = [this](const DamagedRow& row) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    const bool is_reference = row.kind == DamagedRow::Kind::kReference;
    return is_reference ? references.LookAt(row.name) : artifacts.LookAt(row.collection, row.name);
  };
  (void)damaged.LookAgain(look);
  C3PO_RETURN_IF_ERROR(stamped.Check(*connection));
  return result;
}

absl::StatusOr<int64_t> SqliteReferenceStore::Impl::Erase(absl::string_view action,
                                                          absl::FunctionRef<absl::StatusOr<int64_t>(int64_t)> body) {
  absl::StatusOr<int64_t> result = Change(action, body);
  if (!absl::IsResourceExhausted(result.status())) return result;
  const auto without_a_note = [&](int64_t next) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) -> absl::StatusOr<int64_t> {
    C3PO_RETURN_IF_ERROR(erasures.ForgetAll(next));
    return body(next);
  };
  result = Change(action, without_a_note);
  erasures.NoteAgain();
  return result;
}

absl::StatusOr<StoreChanges> SqliteReferenceStore::Impl::ChangesSince(int64_t after, int limit) {
  StoreChanges changes;
  changes.generation = generation.Get();
  if (after >= changes.generation) return changes;
  C3PO_ASSIGN_OR_RETURN(const int64_t remembered_from, erasures.RememberedFrom());
  ChangePage page{after, changes.generation, changes.generation, /*from_start=*/true};
  if (after >= remembered_from) {
    C3PO_ASSIGN_OR_RETURN(page, erasures.PageAfter(after, changes.generation, limit));
    C3PO_RETURN_IF_ERROR(erasures.Read(page, changes));
  }
  C3PO_RETURN_IF_ERROR(references.ReadChanged(page, changes));
  C3PO_RETURN_IF_ERROR(artifacts.ReadChanged(page, changes));
  SortArtifacts(changes.artifacts);
  changes.generation = page.through;
  changes.more = page.more();
  changes.from_start = page.from_start;
  return changes;
}

SqliteReferenceStore::SqliteReferenceStore(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

SqliteReferenceStore::~SqliteReferenceStore() = default;

absl::StatusOr<std::unique_ptr<SqliteReferenceStore>> SqliteReferenceStore::Open(const std::string& path,
                                                                                 const StoreOptions& options) {
  if (path.empty()) return absl::InvalidArgumentError("store: the path is empty");
  std::error_code error;
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  if (!folder.empty() && !std::filesystem::is_directory(folder, error)) {
    return absl::NotFoundError(absl::StrCat("store ", path, ": folder ", folder.string(), " does not exist"));
  }
  absl::StatusOr<std::string> empty_problem = LookForCutStore(path, options.trace_folders);
  // Its errors go first: another process may be at work.
  C3PO_ASSIGN_OR_RETURN(std::unique_ptr<StoreFile> file, StoreFile::Lock(path));
  C3PO_RETURN_IF_ERROR(empty_problem.status());
  const std::string left_over = path + std::string(kPartialBackup);
  if (std::filesystem::is_regular_file(left_over, error)) std::filesystem::remove(left_over, error);
  C3PO_ASSIGN_OR_RETURN(std::unique_ptr<SqliteConnection> connection, SqliteConnection::Open(path));
  auto impl = std::make_unique<Impl>(path, options, std::move(file), std::move(connection));
  impl->empty_problem = *std::move(empty_problem);
  {
    const MutexLock held(impl->mutex);
    C3PO_RETURN_IF_ERROR(impl->Begin());
  }
  return std::unique_ptr<SqliteReferenceStore>(new SqliteReferenceStore(std::move(impl)));
}

absl::StatusOr<std::vector<AddOutcome>> SqliteReferenceStore::Add(absl::Span<const ReferenceRecord> records) {
  C3PO_RETURN_IF_ERROR(ValidateRecords(records, impl_->options.sample_limits));
  std::vector<AddOutcome> outcomes;
  const MutexLock held(impl_->mutex);
  const auto add = [&](int64_t generation) ABSL_EXCLUSIVE_LOCKS_REQUIRED(impl_->mutex) -> absl::StatusOr<int64_t> {
    C3PO_ASSIGN_OR_RETURN(outcomes, impl_->references.Add(records, generation));
    return 0;
  };
  C3PO_RETURN_IF_ERROR(impl_->Change("cannot add references", add).status());
  return outcomes;
}

absl::StatusOr<ReferenceRecord> SqliteReferenceStore::Get(absl::string_view id) const {
  const std::string wanted(id);
  C3PO_ASSIGN_OR_RETURN(std::vector<ReferenceRecord> found, GetMany({wanted}));
  if (!found.empty()) return std::move(found[0]);
  const MutexLock held(impl_->mutex);
  C3PO_RETURN_IF_ERROR(impl_->damaged.CheckReference(impl_->path, id));
  return absl::NotFoundError(absl::StrCat("reference \"", id, "\" does not exist"));
}

absl::StatusOr<std::vector<ReferenceRecord>> SqliteReferenceStore::GetMany(absl::Span<const std::string> ids) const {
  const MutexLock held(impl_->mutex);
  return impl_->references.GetMany(ids);
}

absl::StatusOr<std::vector<ReferenceRecord>> SqliteReferenceStore::List(absl::string_view collection,
                                                                        absl::string_view after_id, int limit) const {
  if (limit < 1) return absl::InvalidArgumentError(absl::StrCat("limit: ", limit, ", must be at least 1"));
  const MutexLock held(impl_->mutex);
  return impl_->references.List(collection, after_id, limit);
}

absl::StatusOr<int64_t> SqliteReferenceStore::Delete(absl::Span<const std::string> ids) {
  const MutexLock held(impl_->mutex);
  const auto remove = [&](int64_t generation) ABSL_EXCLUSIVE_LOCKS_REQUIRED(impl_->mutex) {
    return impl_->references.Delete(ids, generation);
  };
  return impl_->Erase("cannot delete references", remove);
}

absl::StatusOr<int64_t> SqliteReferenceStore::DeleteCollection(absl::string_view collection) {
  const MutexLock held(impl_->mutex);
  const auto remove = [&](int64_t generation) ABSL_EXCLUSIVE_LOCKS_REQUIRED(impl_->mutex) {
    return impl_->references.DeleteCollection(collection, generation);
  };
  return impl_->Erase("cannot delete a collection", remove);
}

absl::Status SqliteReferenceStore::PutArtifacts(absl::Span<const Artifact> artifacts) {
  C3PO_RETURN_IF_ERROR(ValidateArtifacts(artifacts));
  const MutexLock held(impl_->mutex);
  const auto put = [&](int64_t generation) ABSL_EXCLUSIVE_LOCKS_REQUIRED(impl_->mutex) -> absl::StatusOr<int64_t> {
    C3PO_RETURN_IF_ERROR(impl_->artifacts.Put(artifacts, generation));
    return 0;
  };
  const bool only_removes =
      std::all_of(artifacts.begin(), artifacts.end(), [](const Artifact& each) { return each.value.empty(); });
  constexpr absl::string_view kAction = "cannot store artifacts";
  return (only_removes ? impl_->Erase(kAction, put) : impl_->Change(kAction, put)).status();
}

absl::StatusOr<std::vector<Artifact>> SqliteReferenceStore::Artifacts(absl::string_view collection,
                                                                      absl::string_view prefix,
                                                                      absl::string_view suffix) const {
  const MutexLock held(impl_->mutex);
  return impl_->artifacts.Read(collection, prefix, suffix);
}

absl::StatusOr<std::vector<std::string>> SqliteReferenceStore::CollectionsWith(absl::string_view artifact_name) const {
  const MutexLock held(impl_->mutex);
  return impl_->artifacts.CollectionsWith(artifact_name);
}

absl::StatusOr<std::vector<CollectionStats>> SqliteReferenceStore::Stats(absl::string_view model_digest,
                                                                         absl::string_view embedder_digest) const {
  const MutexLock held(impl_->mutex);
  return impl_->references.Stats(model_digest, embedder_digest);
}

absl::Status SqliteReferenceStore::ForEach(absl::FunctionRef<absl::Status(ReferenceRecord)> callback,
                                           int64_t* generation) const {
  const MutexLock held(impl_->mutex);
  if (generation != nullptr) *generation = impl_->generation.Get();
  return impl_->references.ForEach(callback);
}

absl::StatusOr<StoreChanges> SqliteReferenceStore::ChangesSince(int64_t generation, int limit) const {
  C3PO_RETURN_IF_ERROR(CheckChangeRequest(generation, limit));
  const MutexLock held(impl_->mutex);
  return impl_->ChangesSince(generation, limit);
}

absl::StatusOr<std::unique_ptr<StoreBackup>> SqliteReferenceStore::StartBackup(const std::string& path) const {
  return SqliteBackup::Start(impl_->connection.get(), impl_->mutex, impl_->backup_under_way, path);
}

std::string SqliteReferenceStore::partial_backup_path() const { return impl_->path + std::string(kPartialBackup); }

int64_t SqliteReferenceStore::generation() const { return impl_->generation.Get(); }

absl::StatusOr<int64_t> SqliteReferenceStore::WaitForGeneration(int64_t above, absl::Duration timeout) const {
  return impl_->generation.WaitAbove(above, timeout);
}

std::vector<DamagedRow> SqliteReferenceStore::Damaged() const {
  const MutexLock held(impl_->mutex);
  return impl_->damaged.List();
}

std::string SqliteReferenceStore::empty_problem() const { return impl_->empty_problem; }

std::string SqliteReferenceStore::index_problem() const {
  const MutexLock held(impl_->mutex);
  return impl_->index_problem;
}

absl::Status SqliteReferenceStore::CheckPlace() {
  if (impl_->mutex.TryLock()) {
    impl_->stamped.LookAtTables(*impl_->connection);
    impl_->mutex.Unlock();
  }
  if (impl_->stamped.CheckAsKnown().ok()) return absl::OkStatus();
  const MutexLock held(impl_->mutex);  // A change that was under way is done.
  return impl_->stamped.Check(*impl_->connection);
}

absl::Status SqliteReferenceStore::fault() const { return impl_->stamped.fault(); }

const std::string& SqliteReferenceStore::location() const { return impl_->path; }

}  // namespace c3po
