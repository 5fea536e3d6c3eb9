// One connection, one mutex. A statement is prepared for each call and finalized when the call ends, so that none keeps
// a read transaction open: with a reader always open, SQLite could never empty the write-ahead log.
// Long because all SQL of the store is here: SQLite is seen by one file only.

#include "index/store/reference_store.h"

#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <map>
#include <optional>
#include <system_error>
#include <tuple>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "index/base/durable_file.h"
#include "index/base/mutex.h"
#include "index/base/status_macros.h"
#include "index/store/row_codec.h"
#include "index/store/store_file.h"
#include "index/types/reference_id.h"

namespace c3po {
namespace {

constexpr int64_t kApplicationId = 0x6333706f;  // "c3po"
constexpr int64_t kSchemaVersion = 3;
constexpr size_t kArtifactNameMax = 256, kArtifactValueMax = size_t{16} << 20;
constexpr absl::string_view kPartialBackup = ".backup.partial";  // No name that somebody gives a copy of his own.
constexpr size_t kStampsMax = 1000;                              // Of changes that a reader keeps out of the file.

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

// What version 2 adds to version 1, and 3 to 2. A new file gets all of them.
constexpr char kSchemaOfVersion2[] = R"sql(
  CREATE TABLE artifact (
    collection TEXT NOT NULL,
    name TEXT NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (collection, name)) WITHOUT ROWID;
  PRAGMA user_version = 2;
)sql";

constexpr char kSchemaOfVersion3[] = R"sql(
  ALTER TABLE reference ADD COLUMN checksum BLOB;
  ALTER TABLE artifact ADD COLUMN checksum BLOB;
  ALTER TABLE store_state ADD COLUMN stamp BLOB;
  UPDATE store_state SET stamp = randomblob(16);
  PRAGMA user_version = 3;
)sql";
constexpr char kSelectState[] = "SELECT generation, stamp FROM store_state";
constexpr char kSelectArtifacts[] = "SELECT collection, name, value, checksum FROM artifact";
constexpr char kStampPage[] = "SELECT rootpage FROM sqlite_master WHERE name = 'store_state'";

// The last one is the checksum of those before it.
#define C3PO_REFERENCE_COLUMNS                                                                                \
  "id, collection, prompt, answer, choices, metadata, successful, model_digest, embedder_digest, embedding, " \
  "pathway_layers, pathway_experts, pathway, created_unix_seconds, checksum"
constexpr int kChecksumColumn = 14;
constexpr bool IsInteger(int column) { return column == 6 || column == 10 || column == 11 || column == 13; }

constexpr char kInsert[] =
    "INSERT INTO reference (" C3PO_REFERENCE_COLUMNS
    ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15) ON CONFLICT (id) DO UPDATE SET "
    "collection = ?2, prompt = ?3, answer = ?4, choices = ?5, metadata = ?6, successful = ?7, model_digest = ?8, "
    "embedder_digest = ?9, "
    "embedding = ?10, pathway_layers = ?11, "
    "pathway_experts = ?12, pathway = ?13, created_unix_seconds = ?14, checksum = ?15";
constexpr char kSelectById[] = "SELECT " C3PO_REFERENCE_COLUMNS " FROM reference WHERE id = ?1";
constexpr char kSelectAll[] = "SELECT " C3PO_REFERENCE_COLUMNS " FROM reference ORDER BY sequence";
constexpr char kSelectAllNumbered[] = "SELECT " C3PO_REFERENCE_COLUMNS ", sequence FROM reference";
constexpr char kListAll[] = "SELECT " C3PO_REFERENCE_COLUMNS " FROM reference WHERE id > ?1 ORDER BY id LIMIT ?2";
constexpr char kListCollection[] =
    "SELECT " C3PO_REFERENCE_COLUMNS " FROM reference WHERE id > ?1 AND collection = ?3 ORDER BY id LIMIT ?2";

// Through the key: names from "reference/ID/" up to, not including, the next character after '/'.
constexpr char kDeleteArtifactsOf[] =
    "DELETE FROM artifact WHERE collection = (SELECT collection FROM reference WHERE id = ?1) AND "
    "name >= 'reference/' || ?1 || '/' AND name < 'reference/' || ?1 || '0'";

std::string ArtifactChecksum(absl::string_view collection, absl::string_view name, absl::string_view value) {
  RowChecksum checksum;
  checksum.Add(collection);
  checksum.Add(name);
  checksum.Add(value);
  return checksum.Digest();
}

// Of a store that was here: its log or one of the folders, where they hold something. Empty: there is none.
std::string TraceOf(const std::string& path, const std::vector<std::string>& folders) {
  std::error_code error;
  const std::string log = std::filesystem::weakly_canonical(path, error).string() + "-wal";  // SQLite follows links.
  if (const auto bytes = std::filesystem::file_size(log, error); !error && bytes > 0) return log;
  for (const std::string& folder : folders) {
    const std::filesystem::directory_iterator entry(folder, error);
    if (!error && entry != std::filesystem::directory_iterator()) return folder;
  }
  return "";
}

// Before the file is opened, and made where it is absent: why the new store may not be what was meant. DataLoss: a
// store was cut.
absl::StatusOr<std::string> LookForCutStore(const std::string& path, const std::vector<std::string>& trace_folders) {
  std::error_code error;
  const bool exists = std::filesystem::is_regular_file(path, error);
  if (exists && (std::filesystem::file_size(path, error) > 0 || error)) return std::string();
  const std::string trace = TraceOf(path, trace_folders);
  if (!exists) {
    return trace.empty() ? "" : absl::StrCat("there was no file, and ", trace, " is left of a store: it begins empty");
  }
  if (!trace.empty()) {
    return absl::DataLossError(absl::StrCat("store ", path, ": has 0 bytes, but ", trace,
                                            " is left of a store: the file was cut. Restore it from a backup; to begin "
                                            "with an empty store, remove both"));
  }
  return "the file had 0 bytes: if it held a store, it was cut. It begins empty";
}

constexpr char kCure[] = "; write it anew (import it, calibrate, learn), delete it, or restore the store from a backup";

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
  absl::Status AddChecksums() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  absl::Status CheckPages() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  absl::StatusOr<std::string> PageProblem(const char* pragma) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);  // Empty: none.
  absl::Status CheckArtifacts() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);

  // What is wrong with a row, or nothing; a wrong one is noted in `damaged`.
  std::optional<ReferenceRecord> Whole(Statement& select) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  bool IsWhole(const Artifact& artifact, absl::string_view checksum) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  // Forgets what a change has put right.
  absl::Status LookAtDamagedAgain() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  // Takes rows that cannot be trusted out of what SQL counted.
  absl::Status LeaveDamagedOut(absl::string_view model_digest, absl::string_view embedder_digest,
                               std::vector<CollectionStats>& stats) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);

  absl::Status LearnStamp() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  // StoreFile::Check and CheckTables while no change is under way.
  absl::Status CheckFile() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  // What is known of the tables, where nothing is wrong with the file.
  absl::Status CheckFileAsKnown();
  // Whether another program has dropped or altered a table; notes it for CheckFileAsKnown.
  void CheckTables() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);

  // Runs `body` in a transaction.
  absl::Status Transaction(absl::string_view action, absl::FunctionRef<absl::Status()> body)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  // The same for what users change, refused where the file is no longer at its path. `body` returns how many records it
  // changed; any: the generation is raised. Whatever it changed gets a new stamp.
  absl::StatusOr<int64_t> Change(absl::string_view action, absl::FunctionRef<absl::StatusOr<int64_t>()> body)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  absl::StatusOr<AddOutcome> AddOne(const ReferenceRecord& record, Statement& find, Statement& insert,
                                    Statement& forget) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);

  const std::string path;
  StoreOptions options;
  std::unique_ptr<StoreFile> file;  // Closed after the connection.
  Mutex mutex;
  sqlite3* db = nullptr;
  int64_t generation ABSL_GUARDED_BY(mutex) = 0;
  int64_t sound_schema ABSL_GUARDED_BY(mutex) = -1;  // SQLite's count of changes, at which the tables were sound.
  std::string empty_problem;                         // Set once, before others see it.
  std::atomic<bool> backup_under_way{false};
  std::string index_problem ABSL_GUARDED_BY(mutex);
  using RowKey = std::tuple<DamagedRow::Kind, std::string, std::string>;  // Kind, collection, name.
  std::map<RowKey, std::string> damaged ABSL_GUARDED_BY(mutex);           // And what is wrong.

  // Where the stamp lies in the file, and which ones may be there: that of the last change, and those before it that a
  // reader may have kept in the log. None: it is not known. Taken after `mutex`.
  Mutex stamp_mutex ABSL_ACQUIRED_AFTER(mutex);
  int64_t stamp_page ABSL_GUARDED_BY(stamp_mutex) = 0;
  std::vector<std::string> stamps ABSL_GUARDED_BY(stamp_mutex);
  absl::Status table_fault ABSL_GUARDED_BY(stamp_mutex);
  absl::Status fault ABSL_GUARDED_BY(stamp_mutex);
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

  // The row at which a SELECT of C3PO_REFERENCE_COLUMNS stands. DataLoss, without the row's name: it is damaged.
  absl::StatusOr<ReferenceRecord> Record() {
    if (Bytes(kChecksumColumn) != Checksum()) return absl::DataLossError("it does not match its checksum");
    ReferenceRecord record;
    record.id = Text(0);
    C3PO_RETURN_IF_ERROR(DecodeInto(record));
    return record;
  }
  // Of that row, as its columns are now.
  std::string Checksum() {
    RowChecksum checksum;
    for (int column = 0; column < kChecksumColumn; ++column) {
      IsInteger(column) ? checksum.Add(Integer(column)) : checksum.Add(Bytes(column));
    }
    return checksum.Digest();
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
  const absl::string_view reason = db == nullptr ? sqlite3_errstr(rc) : sqlite3_errmsg(db);
  const std::string message = absl::StrCat("store ", path, ": ", action, ": ", reason);
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
    case SQLITE_ERROR:
      // The statements are constants that fit the tables: these are others.
      if (absl::StrContains(reason, "no such table") || absl::StrContains(reason, "no such column") ||
          absl::StrContains(reason, "has no column named")) {
        return absl::DataLossError(absl::StrCat("store ", path, ": another program has altered its tables: ", reason,
                                                "; stop the server, put the store in its place, and start it again"));
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
  C3PO_RETURN_IF_ERROR(CheckArtifacts());
  if (options.pages_max > 0) {
    C3PO_RETURN_IF_ERROR(QueryInteger(absl::StrCat("PRAGMA max_page_count = ", options.pages_max).c_str()).status());
  }
  C3PO_ASSIGN_OR_RETURN(generation, QueryInteger("SELECT generation FROM store_state"));
  file->NoteLog();
  C3PO_RETURN_IF_ERROR(LearnStamp());
  C3PO_RETURN_IF_ERROR(CheckFile());  // It may have been replaced between its locking and its opening.
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
  if (!blank) C3PO_RETURN_IF_ERROR(CheckPages());
  if (version == kSchemaVersion) return absl::OkStatus();
  // One transaction: a process that is killed leaves the old version or the new one.
  const auto upgrade = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) -> absl::Status {
    constexpr absl::string_view kAction = "cannot create the schema";
    if (blank) C3PO_RETURN_IF_ERROR(Execute(kSchema, kAction));
    if (version < 2) C3PO_RETURN_IF_ERROR(Execute(kSchemaOfVersion2, kAction));
    C3PO_RETURN_IF_ERROR(Execute(kSchemaOfVersion3, kAction));
    return AddChecksums();
  };
  C3PO_RETURN_IF_ERROR(Transaction("cannot create the schema", upgrade));
  // An upgrade writes every row: its log is as large as the file.
  sqlite3_wal_checkpoint_v2(db, nullptr, SQLITE_CHECKPOINT_TRUNCATE, nullptr, nullptr);
  return absl::OkStatus();
}

// Rows of a version that had none get the checksum of what they hold now.
absl::Status ReferenceStore::Impl::AddChecksums() {
  constexpr absl::string_view kAction = "cannot add checksums";
  {
    std::vector<std::pair<int64_t, std::string>> checksums;
    Statement select(*this), update(*this);
    C3PO_RETURN_IF_ERROR(select.Prepare(kSelectAllNumbered));
    C3PO_RETURN_IF_ERROR(update.Prepare("UPDATE reference SET checksum = ?1 WHERE sequence = ?2"));
    while (true) {
      C3PO_ASSIGN_OR_RETURN(const bool row, select.Step(kAction));
      if (!row) break;
      checksums.emplace_back(select.Integer(kChecksumColumn + 1), select.Checksum());
    }
    for (const auto& [sequence, checksum] : checksums) {
      update.Reset();
      update.BindBlob(1, checksum);
      update.Bind(2, sequence);
      C3PO_RETURN_IF_ERROR(update.Step(kAction).status());
    }
  }
  std::vector<std::tuple<std::string, std::string, std::string>> checksums;
  Statement select(*this), update(*this);
  C3PO_RETURN_IF_ERROR(select.Prepare("SELECT collection, name, value FROM artifact"));
  C3PO_RETURN_IF_ERROR(update.Prepare("UPDATE artifact SET checksum = ?1 WHERE collection = ?2 AND name = ?3"));
  while (true) {
    C3PO_ASSIGN_OR_RETURN(const bool row, select.Step(kAction));
    if (!row) break;
    checksums.emplace_back(select.Text(0), select.Text(1),
                           ArtifactChecksum(select.Bytes(0), select.Bytes(1), select.Bytes(2)));
  }
  for (const auto& [collection, name, checksum] : checksums) {
    update.Reset();
    update.BindBlob(1, checksum);
    update.Bind(2, collection);
    update.Bind(3, name);
    C3PO_RETURN_IF_ERROR(update.Step(kAction).status());
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReferenceStore::Impl::PageProblem(const char* pragma) {
  Statement check(*this);
  C3PO_RETURN_IF_ERROR(check.Prepare(pragma));
  C3PO_ASSIGN_OR_RETURN(const bool row, check.Step("cannot check the pages"));
  return row && check.Bytes(0) == "ok" ? "" : absl::StrCat("corrupt: ", check.Bytes(0));
}

// Indexes hold nothing that the tables do not: where only they are wrong, they are made anew. Rows are looked at when
// they are read.
absl::Status ReferenceStore::Impl::CheckPages() {
  const auto lost = [&](absl::string_view problem) {
    return absl::DataLossError(absl::StrCat("store ", path, ": ", problem));
  };
  C3PO_ASSIGN_OR_RETURN(index_problem, PageProblem("PRAGMA integrity_check(1)"));
  if (index_problem.empty()) return absl::OkStatus();
  C3PO_ASSIGN_OR_RETURN(const std::string table_problem, PageProblem("PRAGMA quick_check(1)"));
  if (!table_problem.empty()) return lost(table_problem);
  const absl::Status rebuilt = Transaction("cannot rebuild the indexes", [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    return Execute("REINDEX", "cannot rebuild the indexes");
  });
  if (absl::IsInternal(rebuilt)) return lost(absl::StrCat(index_problem, "; ", rebuilt.message()));
  C3PO_RETURN_IF_ERROR(rebuilt);
  C3PO_ASSIGN_OR_RETURN(const std::string left, PageProblem("PRAGMA integrity_check(1)"));
  return left.empty() ? absl::OkStatus() : lost(left);
}

absl::Status ReferenceStore::Impl::CheckArtifacts() {
  Statement select(*this);
  C3PO_RETURN_IF_ERROR(select.Prepare(kSelectArtifacts));
  while (true) {
    C3PO_ASSIGN_OR_RETURN(const bool row, select.Step("cannot read artifacts"));
    if (!row) return absl::OkStatus();
    IsWhole({select.Text(0), select.Text(1), select.Text(2)}, select.Bytes(3));
  }
}

std::optional<ReferenceRecord> ReferenceStore::Impl::Whole(Statement& select) {
  absl::StatusOr<ReferenceRecord> record = select.Record();
  if (record.ok()) return *std::move(record);
  damaged[{DamagedRow::Kind::kReference, select.Text(1), select.Text(0)}] = std::string(record.status().message());
  return std::nullopt;
}

bool ReferenceStore::Impl::IsWhole(const Artifact& artifact, absl::string_view checksum) {
  if (checksum == ArtifactChecksum(artifact.collection, artifact.name, artifact.value)) return true;
  damaged[{DamagedRow::Kind::kArtifact, artifact.collection, artifact.name}] = "it does not match its checksum";
  return false;
}

absl::Status ReferenceStore::Impl::LookAtDamagedAgain() {
  if (damaged.empty()) return absl::OkStatus();
  const auto before = std::exchange(damaged, {});
  Statement reference(*this), artifact(*this);
  C3PO_RETURN_IF_ERROR(reference.Prepare(kSelectById));
  C3PO_RETURN_IF_ERROR(artifact.Prepare("SELECT value, checksum FROM artifact WHERE collection = ?1 AND name = ?2"));
  for (const auto& [key, problem] : before) {
    const auto& [kind, collection, name] = key;
    const bool is_reference = kind == DamagedRow::Kind::kReference;
    Statement& select = is_reference ? reference : artifact;
    select.Reset();
    select.Bind(1, is_reference ? name : collection);
    if (!is_reference) select.Bind(2, name);
    C3PO_ASSIGN_OR_RETURN(const bool row, select.Step("cannot read a damaged row"));
    if (!row) continue;
    is_reference ? static_cast<void>(Whole(select))
                 : static_cast<void>(IsWhole({collection, name, select.Text(0)}, select.Bytes(1)));
  }
  return absl::OkStatus();
}

absl::Status ReferenceStore::Impl::LeaveDamagedOut(absl::string_view model_digest, absl::string_view embedder_digest,
                                                   std::vector<CollectionStats>& stats) {
  Statement counted(*this);
  C3PO_RETURN_IF_ERROR(
      counted.Prepare("SELECT collection, successful, model_digest = ?1 AND embedder_digest = ?2 FROM reference WHERE "
                      "id = ?3"));
  for (const auto& [key, problem] : damaged) {
    if (std::get<0>(key) != DamagedRow::Kind::kReference) continue;
    counted.Reset();
    counted.Bind(1, model_digest);
    counted.Bind(2, embedder_digest);
    counted.Bind(3, std::get<2>(key));
    C3PO_ASSIGN_OR_RETURN(const bool row, counted.Step("cannot count references"));
    if (!row) continue;
    for (CollectionStats& each : stats) {
      if (each.collection != counted.Bytes(0)) continue;
      --each.references;
      each.successful -= counted.Integer(1);
      each.usable -= counted.Integer(2);
    }
  }
  std::erase_if(stats, [](const CollectionStats& each) { return each.references <= 0; });
  return absl::OkStatus();
}

absl::Status ReferenceStore::Impl::LearnStamp() {
  C3PO_ASSIGN_OR_RETURN(const int64_t page, QueryInteger(kStampPage));
  Statement select(*this);
  C3PO_RETURN_IF_ERROR(select.Prepare("SELECT stamp FROM store_state"));
  C3PO_ASSIGN_OR_RETURN(const bool row, select.Step("cannot read the stamp"));
  const std::string stamp = row ? select.Text(0) : "";
  MutexLock held(stamp_mutex);
  stamp_page = page;
  // Where a reader keeps the last change in the log, the file holds another stamp, which is not known.
  if (stamp.size() == StoreFile::kStampBytes && file->Holds(page, stamp)) stamps = {stamp};
  return absl::OkStatus();
}

absl::Status ReferenceStore::Impl::CheckFileAsKnown() {
  int64_t page = 0;
  std::vector<std::string> known;
  {
    MutexLock held(stamp_mutex);
    page = stamp_page;
    known = stamps;
  }
  absl::Status found = file->Check(page, known);
  MutexLock held(stamp_mutex);
  if (found.ok()) found = table_fault;
  fault = found;
  return found;
}

void ReferenceStore::Impl::CheckTables() {
  const auto version = QueryInteger("PRAGMA schema_version");
  if (!version.ok() || *version == sound_schema) return;  // What is wrong with the file is said by others.
  // A statement that runs has SQLite read its schema anew; one that is prepared is held against the one it knew.
  if (!QueryInteger("SELECT count(*) FROM sqlite_master").ok()) return;
  absl::Status found;
  for (const char* statement : {kInsert, kSelectById, kSelectArtifacts, kSelectState}) {
    if (found.ok()) found = Statement(*this).Prepare(statement);
  }
  if (found.ok()) {
    sound_schema = *version;
  } else if (!absl::IsDataLoss(found)) {
    return;
  }
  MutexLock held(stamp_mutex);
  table_fault = found;
}

absl::Status ReferenceStore::Impl::CheckFile() {
  CheckTables();
  if (CheckFileAsKnown().ok()) return absl::OkStatus();
  // Another program that vacuums the file, as SQLite lets it, may have moved the stamp.
  if (const auto page = QueryInteger(kStampPage); page.ok()) {
    MutexLock held(stamp_mutex);
    stamp_page = *page;
  }
  return CheckFileAsKnown();
}

absl::Status ReferenceStore::Impl::Transaction(absl::string_view action, absl::FunctionRef<absl::Status()> body) {
  C3PO_RETURN_IF_ERROR(Execute("BEGIN IMMEDIATE", action));
  absl::Status status = body();
  if (status.ok()) status = Execute("COMMIT", action);
  // Some errors (disk full, I/O) have SQLite roll back by itself; then there is nothing left to do.
  if (!status.ok() && sqlite3_get_autocommit(db) == 0) sqlite3_exec(db, "ROLLBACK", nullptr, nullptr, nullptr);
  return status;
}

absl::StatusOr<int64_t> ReferenceStore::Impl::Change(absl::string_view action,
                                                     absl::FunctionRef<absl::StatusOr<int64_t>()> body) {
  C3PO_RETURN_IF_ERROR(CheckFile());
  int64_t changed = 0;
  std::string stamp;
  const auto stamped = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) -> absl::Status {
    const int64_t rows_before = sqlite3_total_changes64(db);
    C3PO_ASSIGN_OR_RETURN(changed, body());
    if (sqlite3_total_changes64(db) == rows_before) return absl::OkStatus();
    Statement update(*this);
    C3PO_RETURN_IF_ERROR(
        update.Prepare("UPDATE store_state SET generation = generation + ?1, stamp = randomblob(16) RETURNING stamp"));
    update.Bind(1, int64_t{changed > 0});
    C3PO_ASSIGN_OR_RETURN(const bool row, update.Step(action));
    if (row) stamp = update.Text(0);
    C3PO_RETURN_IF_ERROR(update.Step(action).status());
    MutexLock held(stamp_mutex);
    if (!stamps.empty()) stamps.push_back(stamp);
    return absl::OkStatus();
  };
  C3PO_RETURN_IF_ERROR(Transaction(action, stamped));
  if (changed > 0) ++generation;
  if (!stamp.empty()) {
    MutexLock held(stamp_mutex);
    if (file->Holds(stamp_page, stamp)) {
      stamps = {stamp};
    } else if (stamps.size() > kStampsMax) {
      stamps.clear();
    }
  }
  // The change is made: rows that cannot be looked at now stay on the list.
  if (const auto before = damaged; !LookAtDamagedAgain().ok()) damaged = before;
  C3PO_RETURN_IF_ERROR(CheckFile());
  return changed;
}

absl::StatusOr<AddOutcome> ReferenceStore::Impl::AddOne(const ReferenceRecord& record, Statement& find,
                                                        Statement& insert, Statement& forget) {
  const std::string choices = EncodeTexts(record.sample.choices);
  const std::string metadata = EncodeTextMap(record.sample.metadata);
  find.Reset();
  find.Bind(1, record.id);
  C3PO_ASSIGN_OR_RETURN(const bool exists, find.Step("cannot look up a reference"));
  // Of a damaged row nothing is known: it is written anew.
  const bool whole = exists && find.Record().ok();
  const bool same_makers = whole && find.Bytes(7) == record.model_digest && find.Bytes(8) == record.embedder_digest;
  // An id made of the sample says that prompt, answer and choices are the same; the first metadata stay.
  const bool same_content = record.sample.id.empty() ||
                            (whole && find.Bytes(2) == record.sample.prompt && find.Bytes(3) == record.sample.answer &&
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
  RowChecksum checksum;
  int parameter = 0;
  const auto bind = [&](const auto& value) {
    insert.Bind(++parameter, value);
    checksum.Add(value);
  };
  const auto bind_blob = [&](absl::string_view bytes) {
    insert.BindBlob(++parameter, bytes);
    checksum.Add(bytes);
  };
  bind(absl::string_view(record.id));
  bind(absl::string_view(record.collection));
  bind(absl::string_view(record.sample.prompt));
  bind(absl::string_view(record.sample.answer));
  bind(absl::string_view(choices));
  bind(absl::string_view(metadata));
  bind(int64_t{record.successful});
  bind(absl::string_view(record.model_digest));
  bind(absl::string_view(record.embedder_digest));
  bind_blob(embedding);
  bind(int64_t{record.pathway.layers});
  bind(int64_t{record.pathway.experts});
  bind_blob(pathway);
  bind(record.created_unix_seconds);
  const std::string digest = checksum.Digest();
  insert.BindBlob(++parameter, digest);
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
  auto impl = std::make_unique<Impl>(path);
  absl::StatusOr<std::string> empty_problem = LookForCutStore(path, options.trace_folders);
  C3PO_ASSIGN_OR_RETURN(impl->file, StoreFile::Lock(path));  // Whose errors go first: another process may be at work.
  C3PO_ASSIGN_OR_RETURN(impl->empty_problem, std::move(empty_problem));
  const std::string left_over = path + std::string(kPartialBackup);
  if (std::filesystem::is_regular_file(left_over, error)) std::filesystem::remove(left_over, error);
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
  C3PO_RETURN_IF_ERROR(find.Prepare(kSelectById));
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
  if (!found.empty()) return std::move(found[0]);
  MutexLock held(impl_->mutex);
  for (const auto& [key, problem] : impl_->damaged) {
    if (std::get<0>(key) != DamagedRow::Kind::kReference || std::get<2>(key) != id) continue;
    return absl::DataLossError(absl::StrCat("store ", impl_->path, ": reference \"", id, "\": ", problem, kCure));
  }
  return absl::NotFoundError(absl::StrCat("reference \"", id, "\" does not exist"));
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
    if (auto record = impl_->Whole(select)) records.push_back(*std::move(record));
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
  // Once, and again for as many as were left out.
  std::string after(after_id);
  for (int64_t rows = limit; rows == limit && records.size() < static_cast<size_t>(limit);) {
    select.Reset();
    select.Bind(1, after);
    select.Bind(2, int64_t{limit});
    if (!collection.empty()) select.Bind(3, collection);
    std::string last;
    for (rows = 0; records.size() < static_cast<size_t>(limit); ++rows) {
      C3PO_ASSIGN_OR_RETURN(const bool row, select.Step("cannot list references"));
      if (!row) break;
      last = select.Text(0);
      if (auto record = impl_->Whole(select)) records.push_back(*std::move(record));
    }
    select.Reset();
    after = std::move(last);
  }
  return records;
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
  C3PO_RETURN_IF_ERROR(
      put.Prepare("INSERT OR REPLACE INTO artifact (collection, name, value, checksum) VALUES (?1, ?2, ?3, ?4)"));
  C3PO_RETURN_IF_ERROR(remove.Prepare("DELETE FROM artifact WHERE collection = ?1 AND name = ?2"));
  const auto put_all = [&]() -> absl::StatusOr<int64_t> {
    for (const Artifact& artifact : artifacts) {
      Impl::Statement& statement = artifact.value.empty() ? remove : put;
      statement.Reset();
      statement.Bind(1, artifact.collection);
      statement.Bind(2, artifact.name);
      const std::string checksum = ArtifactChecksum(artifact.collection, artifact.name, artifact.value);
      if (!artifact.value.empty()) {
        statement.BindBlob(3, artifact.value);
        statement.BindBlob(4, checksum);
      }
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
      select.Prepare("SELECT name, value, checksum FROM artifact WHERE collection = ?1 AND name >= ?2 AND "
                     "substr(name, 1, length(?2)) = ?2 ORDER BY name"));
  select.Bind(1, collection);
  select.Bind(2, prefix);
  while (true) {
    C3PO_ASSIGN_OR_RETURN(const bool row, select.Step("cannot read artifacts"));
    if (!row) return artifacts;
    Artifact artifact{std::string(collection), select.Text(0), select.Text(1)};
    if (impl_->IsWhole(artifact, select.Bytes(2))) artifacts.push_back(std::move(artifact));
  }
}

absl::StatusOr<std::vector<std::string>> ReferenceStore::CollectionsWith(absl::string_view artifact_name) const {
  std::vector<std::string> collections;
  MutexLock held(impl_->mutex);
  Impl::Statement select(*impl_);
  C3PO_RETURN_IF_ERROR(
      select.Prepare("SELECT collection, name, value, checksum FROM artifact WHERE name = ?1 ORDER BY collection"));
  select.Bind(1, artifact_name);
  while (true) {
    C3PO_ASSIGN_OR_RETURN(const bool row, select.Step("cannot list artifacts"));
    if (!row) return collections;
    const Artifact artifact{select.Text(0), select.Text(1), select.Text(2)};
    if (impl_->IsWhole(artifact, select.Bytes(3))) collections.push_back(artifact.collection);
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
    if (!row) break;
    stats.push_back({select.Text(0), select.Integer(1), select.Integer(2), select.Integer(3)});
  }
  C3PO_RETURN_IF_ERROR(impl_->LeaveDamagedOut(model_digest, embedder_digest, stats));
  return stats;
}

absl::Status ReferenceStore::ForEach(absl::FunctionRef<absl::Status(ReferenceRecord)> callback) const {
  MutexLock held(impl_->mutex);
  Impl::Statement select(*impl_);
  C3PO_RETURN_IF_ERROR(select.Prepare(kSelectAll));
  while (true) {
    C3PO_ASSIGN_OR_RETURN(const bool row, select.Step("cannot read references"));
    if (!row) return absl::OkStatus();
    if (auto record = impl_->Whole(select)) C3PO_RETURN_IF_ERROR(callback(*std::move(record)));
  }
}

struct StoreBackup::Impl {
  // Holds the store's one place for a copy, which the caller has taken.
  Impl(ReferenceStore::Impl& from, std::string to) : source(from), path(std::move(to)) {}
  ~Impl() {
    Close();
    if (created && !whole) unlink(path.c_str());
    source.backup_under_way = false;
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
  bool created = false, whole = false;
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
  if (impl_->backup_under_way.exchange(true)) {
    return absl::ResourceExhaustedError("another backup is being made; ask again when it is done");
  }
  auto impl = std::make_unique<StoreBackup::Impl>(*impl_, path);
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0 && errno == EEXIST) {
    return absl::AlreadyExistsError(
        absl::StrCat("backup ", path, ": a file is there that no backup under way has made; move it away"));
  }
  if (fd < 0) return FileError(path, "cannot create", errno);
  close(fd);
  impl->created = true;
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

std::string ReferenceStore::partial_backup_path() const { return path() + std::string(kPartialBackup); }

int64_t ReferenceStore::generation() const {
  MutexLock held(impl_->mutex);
  return impl_->generation;
}

std::vector<DamagedRow> ReferenceStore::Damaged() const {
  std::vector<DamagedRow> rows;
  MutexLock held(impl_->mutex);
  for (const auto& [key, problem] : impl_->damaged) {
    rows.push_back({std::get<0>(key), std::get<1>(key), std::get<2>(key), absl::StrCat(problem, kCure)});
  }
  return rows;
}

std::string ReferenceStore::empty_problem() const { return impl_->empty_problem; }

std::string ReferenceStore::index_problem() const {
  MutexLock held(impl_->mutex);
  return impl_->index_problem;
}

absl::Status ReferenceStore::CheckFile() {
  if (impl_->mutex.TryLock()) {
    impl_->CheckTables();
    impl_->mutex.Unlock();
  }
  if (impl_->CheckFileAsKnown().ok()) return absl::OkStatus();
  MutexLock held(impl_->mutex);  // A change that was under way is done.
  return impl_->CheckFile();
}

absl::Status ReferenceStore::fault() const {
  MutexLock held(impl_->stamp_mutex);
  return impl_->fault;
}

const std::string& ReferenceStore::path() const { return impl_->path; }

}  // namespace c3po
