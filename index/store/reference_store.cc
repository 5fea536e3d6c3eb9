// One connection, one mutex. A statement is prepared for each call and finalized when the call ends, so that none keeps
// a read transaction open: with a reader always open, SQLite could never empty the write-ahead log. SQLite is
// seen by this one file only, hence its length.

#include "index/store/reference_store.h"

#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <sys/file.h>
#include <unistd.h>

#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/durable_file.h"
#include "index/base/mutex.h"
#include "index/base/status_macros.h"
#include "index/store/row_codec.h"
#include "index/types/reference_id.h"

namespace c3po {
namespace {

constexpr int64_t kApplicationId = 0x6333706f;  // "c3po"
constexpr int64_t kSchemaVersion = 2;
constexpr size_t kArtifactNameMax = 256, kArtifactValueMax = size_t{16} << 20;

constexpr char kSchema[] = R"sql(
  CREATE TABLE reference (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    collection TEXT NOT NULL,
    prompt TEXT NOT NULL,
    answer TEXT NOT NULL,
    choices TEXT NOT NULL,
    metadata TEXT NOT NULL,
    successful INTEGER NOT NULL,
    model_digest TEXT NOT NULL,
    embedder_digest TEXT NOT NULL,
    embedding BLOB NOT NULL,
    pathway_layers INTEGER NOT NULL,
    pathway_experts INTEGER NOT NULL,
    pathway BLOB NOT NULL,
    created_unix_seconds INTEGER NOT NULL);
  CREATE INDEX reference_by_collection ON reference (collection, id);
  CREATE TABLE store_state (only_row INTEGER PRIMARY KEY CHECK (only_row = 1), generation INTEGER NOT NULL);
  INSERT INTO store_state VALUES (1, 0);
  PRAGMA application_id = 0x6333706f;
)sql";

// What version 2 adds to version 1. A new file gets both.
constexpr char kSchemaOfVersion2[] = R"sql(
  CREATE TABLE artifact (
    collection TEXT NOT NULL,
    name TEXT NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (collection, name)) WITHOUT ROWID;
  PRAGMA user_version = 2;
)sql";

#define C3PO_REFERENCE_COLUMNS                                                                                \
  "id, collection, prompt, answer, choices, metadata, successful, model_digest, embedder_digest, embedding, " \
  "pathway_layers, pathway_experts, pathway, created_unix_seconds"

constexpr char kInsert[] =
    "INSERT INTO reference (" C3PO_REFERENCE_COLUMNS
    ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14) ON CONFLICT (id) DO UPDATE SET "
    "prompt = ?3, answer = ?4, choices = ?5, metadata = ?6, successful = ?7, model_digest = ?8, embedder_digest = ?9, "
    "embedding = ?10, pathway_layers = ?11, "
    "pathway_experts = ?12, pathway = ?13, created_unix_seconds = ?14";
constexpr char kSelectById[] = "SELECT " C3PO_REFERENCE_COLUMNS " FROM reference WHERE id = ?1";
constexpr char kSelectAll[] = "SELECT " C3PO_REFERENCE_COLUMNS " FROM reference ORDER BY sequence";
constexpr char kListAll[] = "SELECT " C3PO_REFERENCE_COLUMNS " FROM reference WHERE id > ?1 ORDER BY id LIMIT ?2";
constexpr char kListCollection[] =
    "SELECT " C3PO_REFERENCE_COLUMNS " FROM reference WHERE id > ?1 AND collection = ?3 ORDER BY id LIMIT ?2";

// Through the key: names from "reference/ID/" up to, not including, the next character after '/'.
constexpr char kDeleteArtifactsOf[] =
    "DELETE FROM artifact WHERE collection = (SELECT collection FROM reference WHERE id = ?1) AND "
    "name >= 'reference/' || ?1 || '/' AND name < 'reference/' || ?1 || '0'";

class FileLock {
 public:
  static absl::StatusOr<FileLock> Take(const std::string& path) {
    // Two spellings of one path, or a link to it, must meet at one lock file.
    std::error_code error;
    std::filesystem::path canonical = std::filesystem::weakly_canonical(path, error);
    const std::string lock_path = absl::StrCat(error ? path : canonical.string(), ".lock");
    FileLock lock(open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
    if (lock.fd_ < 0) return FileError(lock_path, "cannot open the store's lock file", errno);
    if (flock(lock.fd_, LOCK_EX | LOCK_NB) == 0) return lock;
    if (errno == EWOULDBLOCK) {
      return absl::FailedPreconditionError(absl::StrCat("store ", path, " is locked by another process"));
    }
    return FileError(lock_path, "cannot lock", errno);
  }

  FileLock() = default;
  FileLock(FileLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileLock& operator=(FileLock&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  // The lock file stays: removing it would let a third process lock a new file while a second waits for the old one.
  ~FileLock() {
    if (fd_ >= 0) close(fd_);
  }

 private:
  explicit FileLock(int fd) : fd_(fd) {}
  int fd_ = -1;
};

}  // namespace

struct ReferenceStore::Impl {
  class Statement;

  explicit Impl(std::string store_path) : path(std::move(store_path)) {}
  // Closing the last connection writes the log back into the database file.
  ~Impl() {
    if (db != nullptr) sqlite3_close(db);
  }

  absl::Status Error(int rc, absl::string_view action) const;
  absl::Status Execute(const char* sql, absl::string_view action) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  absl::StatusOr<int64_t> QueryInteger(const char* sql) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);

  absl::Status OpenDatabase(const StoreOptions& options) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  absl::Status CreateOrCheckSchema() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  absl::Status CheckPages() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);

  // Runs `body` in a transaction. `body` returns how many records it changed; any: the generation is raised.
  absl::StatusOr<int64_t> Change(absl::string_view action, absl::FunctionRef<absl::StatusOr<int64_t>()> body)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  absl::StatusOr<AddOutcome> AddOne(const ReferenceRecord& record, Statement& find, Statement& insert,
                                    Statement& forget) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);

  const std::string path;
  StoreOptions options;
  FileLock lock;
  Mutex mutex;
  sqlite3* db = nullptr;
  int64_t generation ABSL_GUARDED_BY(mutex) = 0;
};

// A prepared statement. Texts bound to it must outlive the next Step or Reset. Parameters and columns count as SQLite's
// do: from 1 and from 0.
class ReferenceStore::Impl::Statement {
 public:
  explicit Statement(const Impl& impl) : impl_(impl) {}
  ~Statement() { sqlite3_finalize(statement_); }
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;

  absl::Status Prepare(absl::string_view sql) {
    const int rc =
        sqlite3_prepare_v2(impl_.db, sql.data(), static_cast<int>(sql.size()), &statement_, /*pzTail=*/nullptr);
    return rc == SQLITE_OK ? absl::OkStatus() : impl_.Error(rc, "cannot prepare a statement");
  }

  void Bind(int parameter, absl::string_view text) {
    Note(sqlite3_bind_text64(statement_, parameter, text.data() == nullptr ? "" : text.data(), text.size(),
                             SQLITE_STATIC, SQLITE_UTF8));
  }
  void BindBlob(int parameter, absl::string_view bytes) {
    Note(sqlite3_bind_blob64(statement_, parameter, bytes.data(), bytes.size(), SQLITE_STATIC));
  }
  void Bind(int parameter, int64_t value) { Note(sqlite3_bind_int64(statement_, parameter, value)); }

  // True: at a row. False: done.
  absl::StatusOr<bool> Step(absl::string_view action) {
    errno = 0;
    const int rc = bind_rc_ != SQLITE_OK ? bind_rc_ : sqlite3_step(statement_);
    if (rc == SQLITE_ROW) return true;
    if (rc == SQLITE_DONE) return false;
    return impl_.Error(rc, action);
  }

  // Ready to be bound and run again. The error that it may return is the last Step's, which was reported there.
  void Reset() { sqlite3_reset(statement_); }

  int64_t Integer(int column) { return sqlite3_column_int64(statement_, column); }
  absl::string_view Bytes(int column) {
    const char* data = static_cast<const char*>(sqlite3_column_blob(statement_, column));
    const size_t size = static_cast<size_t>(sqlite3_column_bytes(statement_, column));
    return data == nullptr ? absl::string_view() : absl::string_view(data, size);
  }
  std::string Text(int column) { return std::string(Bytes(column)); }

  // The row at which a SELECT of C3PO_REFERENCE_COLUMNS stands.
  absl::StatusOr<ReferenceRecord> Record() {
    ReferenceRecord record;
    record.id = Text(0);
    const absl::Status status = DecodeInto(record);
    if (status.ok()) return record;
    return absl::DataLossError(
        absl::StrCat("store ", impl_.path, ": reference \"", record.id, "\": ", status.message()));
  }

 private:
  void Note(int rc) {
    if (bind_rc_ == SQLITE_OK) bind_rc_ = rc;
  }

  absl::Status DecodeInto(ReferenceRecord& record) {
    record.collection = Text(1);
    record.sample.prompt = Text(2);
    record.sample.answer = Text(3);
    C3PO_ASSIGN_OR_RETURN(record.sample.choices, DecodeTexts(Bytes(4)));
    C3PO_ASSIGN_OR_RETURN(record.sample.metadata, DecodeTextMap(Bytes(5)));
    record.sample.id = std::string(OwnIdOf(record.collection, record.id));
    record.successful = Integer(6) != 0;
    record.model_digest = Text(7);
    record.embedder_digest = Text(8);
    C3PO_ASSIGN_OR_RETURN(record.embedding, DecodeFloats(Bytes(9)));
    const int64_t layers = Integer(10);
    const int64_t experts = Integer(11);
    C3PO_ASSIGN_OR_RETURN(record.pathway.weights, DecodeFloats(Bytes(12)));
    const int64_t weights = static_cast<int64_t>(record.pathway.weights.size());
    if (layers <= 0 || experts <= 0 || weights % layers != 0 || weights / layers != experts) {
      return absl::DataLossError(absl::StrCat("a pathway of ", layers, " x ", experts, " has ", weights, " weights"));
    }
    record.pathway.layers = static_cast<int>(layers);
    record.pathway.experts = static_cast<int>(experts);
    record.created_unix_seconds = Integer(13);
    return absl::OkStatus();
  }

  const Impl& impl_;
  sqlite3_stmt* statement_ = nullptr;
  int bind_rc_ = SQLITE_OK;
};

absl::Status ReferenceStore::Impl::Error(int rc, absl::string_view action) const {
  // sqlite3_system_errno() stays 0 when COMMIT fails to write, so errno is asked, which was cleared before the call.
  const int system_error = errno;
  const std::string message =
      absl::StrCat("store ", path, ": ", action, ": ", db == nullptr ? sqlite3_errstr(rc) : sqlite3_errmsg(db));
  switch (rc & 0xff) {  // The primary code of an extended one.
    case SQLITE_FULL:
    case SQLITE_NOMEM:
      return absl::ResourceExhaustedError(message);
    case SQLITE_TOOBIG:
      return absl::InvalidArgumentError(message);
    case SQLITE_NOTADB:
      return absl::InvalidArgumentError(message);
    case SQLITE_CORRUPT:
      return absl::DataLossError(message);
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return absl::UnavailableError(message);
    case SQLITE_READONLY:
    case SQLITE_PERM:
    case SQLITE_CANTOPEN:
      return absl::PermissionDeniedError(message);
    case SQLITE_IOERR:
      if (system_error == ENOSPC || system_error == EDQUOT || system_error == EFBIG) {
        return absl::ResourceExhaustedError(absl::StrCat(message, " (no space left)"));
      }
      return absl::InternalError(message);
    default:
      return absl::InternalError(message);
  }
}

absl::Status ReferenceStore::Impl::Execute(const char* sql, absl::string_view action) {
  errno = 0;
  const int rc = sqlite3_exec(db, sql, nullptr, nullptr, nullptr);
  return rc == SQLITE_OK ? absl::OkStatus() : Error(rc, action);
}

absl::StatusOr<int64_t> ReferenceStore::Impl::QueryInteger(const char* sql) {
  Statement statement(*this);
  C3PO_RETURN_IF_ERROR(statement.Prepare(sql));
  C3PO_ASSIGN_OR_RETURN(const bool row, statement.Step("cannot read"));
  if (!row) return absl::DataLossError(absl::StrCat("store ", path, ": no row for: ", sql));
  return statement.Integer(0);
}

absl::Status ReferenceStore::Impl::OpenDatabase(const StoreOptions& store_options) {
  options = store_options;
  const int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE;
  if (const int rc = sqlite3_open_v2(path.c_str(), &db, flags, nullptr); rc != SQLITE_OK) {
    return Error(rc, "cannot open");
  }
  sqlite3_busy_timeout(db, 5000);  // Milliseconds; someone may look into the file with the sqlite3 command.
  C3PO_RETURN_IF_ERROR(CreateOrCheckSchema());
  C3PO_RETURN_IF_ERROR(CheckPages());
  if (options.pages_max > 0) {
    C3PO_RETURN_IF_ERROR(QueryInteger(absl::StrCat("PRAGMA max_page_count = ", options.pages_max).c_str()).status());
  }
  C3PO_ASSIGN_OR_RETURN(generation, QueryInteger("SELECT generation FROM store_state"));
  return SyncFolderOf(path);
}

absl::Status ReferenceStore::Impl::CreateOrCheckSchema() {
  // Nothing is written before the file is known to be ours, or empty.
  C3PO_ASSIGN_OR_RETURN(const int64_t application_id, QueryInteger("PRAGMA application_id"));
  C3PO_ASSIGN_OR_RETURN(const int64_t version, QueryInteger("PRAGMA user_version"));
  C3PO_ASSIGN_OR_RETURN(const int64_t objects, QueryInteger("SELECT count(*) FROM sqlite_master"));
  const bool blank = application_id == 0 && version == 0 && objects == 0;
  if (!blank && application_id != kApplicationId) {
    return absl::InvalidArgumentError(absl::StrCat("store ", path, ": the database of another application"));
  }
  if (!blank && (version < 1 || version > kSchemaVersion)) {
    return absl::FailedPreconditionError(
        absl::StrCat("store ", path, ": has schema version ", version, ", this build reads 1 to ", kSchemaVersion));
  }
  // wal_autocheckpoint 1: the log is folded into the file after each change. By SQLite's default of 1000 pages a small
  // store would live in its log alone, and a copy of the file be empty. It costs a change one more sync of the file.
  C3PO_RETURN_IF_ERROR(
      Execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; "
              "PRAGMA wal_autocheckpoint = 1",
              "cannot set up the write-ahead log"));
  // What a process that was killed left in the log. Where somebody reads the file it waits for the next change.
  sqlite3_wal_checkpoint_v2(db, nullptr, SQLITE_CHECKPOINT_PASSIVE, nullptr, nullptr);
  if (version == kSchemaVersion) return absl::OkStatus();
  return Change("cannot create the schema",
                [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) -> absl::StatusOr<int64_t> {
                  if (blank) C3PO_RETURN_IF_ERROR(Execute(kSchema, "cannot create the schema"));
                  C3PO_RETURN_IF_ERROR(Execute(kSchemaOfVersion2, "cannot create the schema"));
                  return 0;
                })
      .status();
}

absl::Status ReferenceStore::Impl::CheckPages() {
  Statement check(*this);
  C3PO_RETURN_IF_ERROR(check.Prepare("PRAGMA quick_check(1)"));
  C3PO_ASSIGN_OR_RETURN(const bool row, check.Step("cannot check the pages"));
  if (row && check.Bytes(0) == "ok") return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("store ", path, ": corrupt: ", check.Bytes(0)));
}

absl::StatusOr<int64_t> ReferenceStore::Impl::Change(absl::string_view action,
                                                     absl::FunctionRef<absl::StatusOr<int64_t>()> body) {
  C3PO_RETURN_IF_ERROR(Execute("BEGIN IMMEDIATE", action));
  absl::StatusOr<int64_t> changed = body();
  absl::Status status = changed.status();
  if (status.ok() && *changed > 0) {
    status = Execute("UPDATE store_state SET generation = generation + 1", action);
  }
  if (status.ok()) status = Execute("COMMIT", action);
  if (!status.ok()) {
    // Some errors (disk full, I/O) have SQLite roll back by itself; then there is nothing left to do.
    if (sqlite3_get_autocommit(db) == 0) sqlite3_exec(db, "ROLLBACK", nullptr, nullptr, nullptr);
    return status;
  }
  if (*changed > 0) ++generation;
  return changed;
}

absl::StatusOr<AddOutcome> ReferenceStore::Impl::AddOne(const ReferenceRecord& record, Statement& find,
                                                        Statement& insert, Statement& forget) {
  const std::string choices = EncodeTexts(record.sample.choices);
  const std::string metadata = EncodeTextMap(record.sample.metadata);
  find.Reset();
  find.Bind(1, record.id);
  C3PO_ASSIGN_OR_RETURN(const bool exists, find.Step("cannot look up a reference"));
  const bool same_makers = exists && find.Bytes(0) == record.model_digest && find.Bytes(1) == record.embedder_digest;
  // An id made of the sample says that prompt, answer and choices are the same; the first metadata stay.
  const bool same_content = record.sample.id.empty() ||
                            (exists && find.Bytes(2) == record.sample.prompt && find.Bytes(3) == record.sample.answer &&
                             find.Bytes(4) == choices && find.Bytes(5) == metadata);
  find.Reset();
  if (same_makers && same_content) return AddOutcome::kDuplicate;
  if (exists && !same_content) {
    forget.Reset();
    forget.Bind(1, record.id);
    C3PO_RETURN_IF_ERROR(forget.Step("cannot delete a reference's artifacts").status());
    forget.Reset();
  }

  const std::string embedding = EncodeFloats(record.embedding);
  const std::string pathway = EncodeFloats(record.pathway.weights);
  insert.Bind(1, record.id);
  insert.Bind(2, record.collection);
  insert.Bind(3, record.sample.prompt);
  insert.Bind(4, record.sample.answer);
  insert.Bind(5, choices);
  insert.Bind(6, metadata);
  insert.Bind(7, int64_t{record.successful});
  insert.Bind(8, record.model_digest);
  insert.Bind(9, record.embedder_digest);
  insert.BindBlob(10, embedding);
  insert.Bind(11, int64_t{record.pathway.layers});
  insert.Bind(12, int64_t{record.pathway.experts});
  insert.BindBlob(13, pathway);
  insert.Bind(14, record.created_unix_seconds);
  const absl::Status status = insert.Step("cannot add a reference").status();
  insert.Reset();
  C3PO_RETURN_IF_ERROR(status);
  return exists ? AddOutcome::kReplaced : AddOutcome::kInserted;
}

ReferenceStore::ReferenceStore(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

ReferenceStore::~ReferenceStore() = default;

absl::StatusOr<std::unique_ptr<ReferenceStore>> ReferenceStore::Open(const std::string& path,
                                                                     const StoreOptions& options) {
  if (path.empty()) return absl::InvalidArgumentError("store: the path is empty");
  std::error_code error;
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  if (!folder.empty() && !std::filesystem::is_directory(folder, error)) {
    return absl::NotFoundError(absl::StrCat("store ", path, ": folder ", folder.string(), " does not exist"));
  }
  if (std::filesystem::exists(path, error) && !std::filesystem::is_regular_file(path, error)) {
    return absl::InvalidArgumentError(absl::StrCat("store ", path, ": not a regular file"));
  }
  auto impl = std::make_unique<Impl>(path);
  C3PO_ASSIGN_OR_RETURN(impl->lock, FileLock::Take(path));
  std::filesystem::remove(absl::StrCat(path, ".backup"), error);
  {
    MutexLock held(impl->mutex);
    C3PO_RETURN_IF_ERROR(impl->OpenDatabase(options));
  }
  return std::unique_ptr<ReferenceStore>(new ReferenceStore(std::move(impl)));
}

absl::StatusOr<std::vector<AddOutcome>> ReferenceStore::Add(absl::Span<const ReferenceRecord> records) {
  for (size_t i = 0; i < records.size(); ++i) {
    const absl::Status status = ValidateRecord(records[i], impl_->options.sample_limits);
    if (!status.ok()) return absl::Status(status.code(), absl::StrCat("records[", i, "].", status.message()));
  }
  std::vector<AddOutcome> outcomes;
  outcomes.reserve(records.size());
  MutexLock held(impl_->mutex);
  Impl::Statement find(*impl_);
  Impl::Statement insert(*impl_);
  Impl::Statement forget(*impl_);
  C3PO_RETURN_IF_ERROR(find.Prepare(
      "SELECT model_digest, embedder_digest, prompt, answer, choices, metadata FROM reference WHERE id = ?1"));
  C3PO_RETURN_IF_ERROR(forget.Prepare(kDeleteArtifactsOf));
  C3PO_RETURN_IF_ERROR(insert.Prepare(kInsert));
  const auto add_all = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(impl_->mutex) -> absl::StatusOr<int64_t> {
    int64_t changed = 0;
    for (const ReferenceRecord& record : records) {
      C3PO_ASSIGN_OR_RETURN(const AddOutcome outcome, impl_->AddOne(record, find, insert, forget));
      if (outcome != AddOutcome::kDuplicate) ++changed;
      outcomes.push_back(outcome);
    }
    return changed;
  };
  C3PO_RETURN_IF_ERROR(impl_->Change("cannot add references", add_all).status());
  return outcomes;
}

absl::StatusOr<ReferenceRecord> ReferenceStore::Get(absl::string_view id) const {
  const std::string wanted(id);
  C3PO_ASSIGN_OR_RETURN(std::vector<ReferenceRecord> found, GetMany({wanted}));
  if (found.empty()) return absl::NotFoundError(absl::StrCat("reference \"", id, "\" does not exist"));
  return std::move(found[0]);
}

absl::StatusOr<std::vector<ReferenceRecord>> ReferenceStore::GetMany(absl::Span<const std::string> ids) const {
  std::vector<ReferenceRecord> records;
  MutexLock held(impl_->mutex);
  Impl::Statement select(*impl_);
  C3PO_RETURN_IF_ERROR(select.Prepare(kSelectById));
  for (const std::string& id : ids) {
    select.Reset();
    select.Bind(1, id);
    C3PO_ASSIGN_OR_RETURN(const bool row, select.Step("cannot read a reference"));
    if (!row) continue;
    C3PO_ASSIGN_OR_RETURN(records.emplace_back(), select.Record());
  }
  return records;
}

absl::StatusOr<std::vector<ReferenceRecord>> ReferenceStore::List(absl::string_view collection,
                                                                  absl::string_view after_id, int limit) const {
  if (limit < 1) return absl::InvalidArgumentError(absl::StrCat("limit: ", limit, ", must be at least 1"));
  std::vector<ReferenceRecord> records;
  MutexLock held(impl_->mutex);
  Impl::Statement select(*impl_);
  C3PO_RETURN_IF_ERROR(select.Prepare(collection.empty() ? kListAll : kListCollection));
  select.Bind(1, after_id);
  select.Bind(2, int64_t{limit});
  if (!collection.empty()) select.Bind(3, collection);
  while (true) {
    C3PO_ASSIGN_OR_RETURN(const bool row, select.Step("cannot list references"));
    if (!row) return records;
    C3PO_ASSIGN_OR_RETURN(records.emplace_back(), select.Record());
  }
}

absl::StatusOr<int64_t> ReferenceStore::Delete(absl::Span<const std::string> ids) {
  MutexLock held(impl_->mutex);
  Impl::Statement remove(*impl_);
  Impl::Statement remove_artifacts(*impl_);
  C3PO_RETURN_IF_ERROR(remove.Prepare("DELETE FROM reference WHERE id = ?1"));
  C3PO_RETURN_IF_ERROR(remove_artifacts.Prepare(kDeleteArtifactsOf));
  return impl_->Change("cannot delete references", [&]() -> absl::StatusOr<int64_t> {
    int64_t deleted = 0;
    for (const std::string& id : ids) {
      remove_artifacts.Reset();
      remove_artifacts.Bind(1, id);
      C3PO_RETURN_IF_ERROR(remove_artifacts.Step("cannot delete a reference's artifacts").status());
      remove.Reset();
      remove.Bind(1, id);
      C3PO_RETURN_IF_ERROR(remove.Step("cannot delete a reference").status());
      deleted += sqlite3_changes64(impl_->db);
    }
    remove.Reset();
    remove_artifacts.Reset();
    return deleted;
  });
}

absl::StatusOr<int64_t> ReferenceStore::DeleteCollection(absl::string_view collection) {
  MutexLock held(impl_->mutex);
  Impl::Statement remove(*impl_);
  Impl::Statement remove_artifacts(*impl_);
  C3PO_RETURN_IF_ERROR(remove.Prepare("DELETE FROM reference WHERE collection = ?1"));
  C3PO_RETURN_IF_ERROR(remove_artifacts.Prepare("DELETE FROM artifact WHERE collection = ?1"));
  return impl_->Change("cannot delete a collection", [&]() -> absl::StatusOr<int64_t> {
    remove_artifacts.Bind(1, collection);
    C3PO_RETURN_IF_ERROR(remove_artifacts.Step("cannot delete a collection's artifacts").status());
    remove_artifacts.Reset();
    remove.Bind(1, collection);
    C3PO_RETURN_IF_ERROR(remove.Step("cannot delete a collection").status());
    const int64_t deleted = sqlite3_changes64(impl_->db);
    remove.Reset();
    return deleted;
  });
}

absl::Status ReferenceStore::PutArtifacts(absl::Span<const Artifact> artifacts) {
  for (size_t i = 0; i < artifacts.size(); ++i) {
    const Artifact& artifact = artifacts[i];
    const auto wrong = [&](absl::string_view what) {
      return absl::InvalidArgumentError(absl::StrCat("artifacts[", i, "].", what));
    };
    if (artifact.collection.empty()) return wrong("collection: must not be empty");
    if (artifact.name.empty() || artifact.name.size() > kArtifactNameMax)
      return wrong("name: must have 1 to 256 bytes");
    if (artifact.value.size() > kArtifactValueMax) return wrong("value: is larger than 16 MiB");
  }
  MutexLock held(impl_->mutex);
  Impl::Statement put(*impl_), remove(*impl_);
  C3PO_RETURN_IF_ERROR(put.Prepare("INSERT OR REPLACE INTO artifact (collection, name, value) VALUES (?1, ?2, ?3)"));
  C3PO_RETURN_IF_ERROR(remove.Prepare("DELETE FROM artifact WHERE collection = ?1 AND name = ?2"));
  const auto put_all = [&]() -> absl::StatusOr<int64_t> {
    for (const Artifact& artifact : artifacts) {
      Impl::Statement& statement = artifact.value.empty() ? remove : put;
      statement.Reset();
      statement.Bind(1, artifact.collection);
      statement.Bind(2, artifact.name);
      if (!artifact.value.empty()) statement.BindBlob(3, artifact.value);
      C3PO_RETURN_IF_ERROR(statement.Step("cannot store an artifact").status());
      statement.Reset();
    }
    return 0;
  };
  return impl_->Change("cannot store artifacts", put_all).status();
}

absl::StatusOr<std::vector<Artifact>> ReferenceStore::Artifacts(absl::string_view collection,
                                                                absl::string_view prefix) const {
  std::vector<Artifact> artifacts;
  MutexLock held(impl_->mutex);
  Impl::Statement select(*impl_);
  C3PO_RETURN_IF_ERROR(
      select.Prepare("SELECT name, value FROM artifact WHERE collection = ?1 AND name >= ?2 AND "
                     "substr(name, 1, length(?2)) = ?2 ORDER BY name"));
  select.Bind(1, collection);
  select.Bind(2, prefix);
  while (true) {
    C3PO_ASSIGN_OR_RETURN(const bool row, select.Step("cannot read artifacts"));
    if (!row) return artifacts;
    artifacts.push_back({std::string(collection), select.Text(0), select.Text(1)});
  }
}

absl::StatusOr<std::vector<std::string>> ReferenceStore::CollectionsWith(absl::string_view artifact_name) const {
  std::vector<std::string> collections;
  MutexLock held(impl_->mutex);
  Impl::Statement select(*impl_);
  C3PO_RETURN_IF_ERROR(select.Prepare("SELECT collection FROM artifact WHERE name = ?1 ORDER BY collection"));
  select.Bind(1, artifact_name);
  while (true) {
    C3PO_ASSIGN_OR_RETURN(const bool row, select.Step("cannot list artifacts"));
    if (!row) return collections;
    collections.push_back(select.Text(0));
  }
}

absl::StatusOr<std::vector<CollectionStats>> ReferenceStore::Stats(absl::string_view model_digest,
                                                                   absl::string_view embedder_digest) const {
  std::vector<CollectionStats> stats;
  MutexLock held(impl_->mutex);
  Impl::Statement select(*impl_);
  C3PO_RETURN_IF_ERROR(
      select.Prepare("SELECT collection, count(*), sum(successful), sum(model_digest = ?1 AND embedder_digest = ?2) "
                     "FROM reference GROUP BY collection ORDER BY collection"));
  select.Bind(1, model_digest);
  select.Bind(2, embedder_digest);
  while (true) {
    C3PO_ASSIGN_OR_RETURN(const bool row, select.Step("cannot count references"));
    if (!row) return stats;
    stats.push_back({select.Text(0), select.Integer(1), select.Integer(2), select.Integer(3)});
  }
}

absl::Status ReferenceStore::ForEach(absl::FunctionRef<absl::Status(ReferenceRecord)> callback) const {
  MutexLock held(impl_->mutex);
  Impl::Statement select(*impl_);
  C3PO_RETURN_IF_ERROR(select.Prepare(kSelectAll));
  while (true) {
    C3PO_ASSIGN_OR_RETURN(const bool row, select.Step("cannot read references"));
    if (!row) return absl::OkStatus();
    C3PO_ASSIGN_OR_RETURN(ReferenceRecord record, select.Record());
    C3PO_RETURN_IF_ERROR(callback(std::move(record)));
  }
}

struct StoreBackup::Impl {
  Impl(ReferenceStore::Impl& from, std::string to) : source(from), path(std::move(to)) {}
  ~Impl() {
    Close();
    if (!whole) unlink(path.c_str());
  }

  // The source's lock is held: the backup reads through its connection.
  void Finish() ABSL_EXCLUSIVE_LOCKS_REQUIRED(source.mutex) {
    if (backup != nullptr) sqlite3_backup_finish(std::exchange(backup, nullptr));
  }
  void Close() {
    {
      MutexLock held(source.mutex);
      Finish();
    }
    if (target != nullptr) sqlite3_close(std::exchange(target, nullptr));
  }
  absl::Status Error(int rc) const {
    const std::string message = absl::StrCat("backup ", path, ": ", sqlite3_errstr(rc));
    return (rc & 0xff) == SQLITE_FULL ? absl::ResourceExhaustedError(message) : absl::InternalError(message);
  }

  ReferenceStore::Impl& source;
  const std::string path;
  sqlite3* target = nullptr;
  sqlite3_backup* backup = nullptr;
  bool whole = false;
};

StoreBackup::StoreBackup(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

StoreBackup::~StoreBackup() = default;

absl::StatusOr<bool> StoreBackup::Step(int pages) {
  {
    MutexLock held(impl_->source.mutex);
    // Changes through the source's own connection, the only one, reach pages that were copied before.
    const int rc = sqlite3_backup_step(impl_->backup, pages);
    if (rc == SQLITE_OK || rc == SQLITE_BUSY || rc == SQLITE_LOCKED) return false;
    if (rc != SQLITE_DONE) return impl_->Error(rc);
    impl_->Finish();
  }
  // The copy is no write-ahead store until somebody opens it as one: it is one file.
  const int rc = sqlite3_exec(impl_->target, "PRAGMA journal_mode = DELETE", nullptr, nullptr, nullptr);
  if (rc != SQLITE_OK) return impl_->Error(rc);
  impl_->Close();
  const int fd = open(impl_->path.c_str(), O_RDONLY | O_CLOEXEC);
  const bool synced = fd >= 0 && fsync(fd) == 0;
  const int error = errno;
  if (fd >= 0) close(fd);
  if (!synced) return FileError(impl_->path, "cannot sync", error);
  C3PO_RETURN_IF_ERROR(SyncFolderOf(impl_->path));
  impl_->whole = true;
  return true;
}

absl::StatusOr<std::unique_ptr<StoreBackup>> ReferenceStore::StartBackup(const std::string& path) const {
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0 && errno == EEXIST) return absl::AlreadyExistsError(absl::StrCat("backup ", path, ": is there already"));
  if (fd < 0) return FileError(path, "cannot create", errno);
  close(fd);
  auto impl = std::make_unique<StoreBackup::Impl>(*impl_, path);
  const int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE;
  int rc = sqlite3_open_v2(path.c_str(), &impl->target, flags, nullptr);
  // Nothing else reads the copy before it is whole; then it is synced once.
  if (rc == SQLITE_OK) {
    rc = sqlite3_exec(impl->target, "PRAGMA synchronous = OFF; PRAGMA journal_mode = OFF", nullptr, nullptr, nullptr);
  }
  if (rc != SQLITE_OK) return impl->Error(rc);
  MutexLock held(impl_->mutex);
  impl->backup = sqlite3_backup_init(impl->target, "main", impl_->db, "main");
  if (impl->backup == nullptr) rc = sqlite3_extended_errcode(impl->target);
  if (rc != SQLITE_OK) return impl->Error(rc);
  return std::unique_ptr<StoreBackup>(new StoreBackup(std::move(impl)));
}

int64_t ReferenceStore::generation() const {
  MutexLock held(impl_->mutex);
  return impl_->generation;
}

const std::string& ReferenceStore::path() const { return impl_->path; }

}  // namespace c3po
