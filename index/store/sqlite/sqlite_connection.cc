#include "index/store/sqlite/sqlite_connection.h"

#include <errno.h>
#include <sqlite3.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "index/base/store_away.h"

namespace c3po {
namespace {

constexpr int kOpenFlags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE;
constexpr int kBusyMilliseconds = 5000;  // Someone may look into the file with the sqlite3 command.

// The store's statements are constants that fit its tables: where SQLite cannot compile one, the tables are others.
bool NamesWhatIsMissing(absl::string_view reason) {
  return absl::StrContains(reason, "no such table") || absl::StrContains(reason, "no such column") ||
         absl::StrContains(reason, "has no column named");
}

}  // namespace

absl::StatusOr<std::unique_ptr<SqliteConnection>> SqliteConnection::Open(const std::string& path) {
  std::unique_ptr<SqliteConnection> connection(new SqliteConnection(path));
  if (const int rc = sqlite3_open_v2(path.c_str(), &connection->db_, kOpenFlags, nullptr); rc != SQLITE_OK) {
    return connection->Error(rc, "cannot open");
  }
  sqlite3_busy_timeout(connection->db_, kBusyMilliseconds);
  return connection;
}

SqliteConnection::~SqliteConnection() {
  if (db_ != nullptr) sqlite3_close(db_);
}

absl::Status SqliteConnection::Error(int rc, absl::string_view action) const {
  // sqlite3_system_errno() stays 0 when COMMIT fails to write, so errno is asked, which was cleared before the call.
  const int system_error = errno;
  const absl::string_view reason = db_ == nullptr ? sqlite3_errstr(rc) : sqlite3_errmsg(db_);
  const std::string message = absl::StrCat("store ", path_, ": ", action, ": ", reason);
  switch (rc & 0xff) {  // The primary code of an extended one.
    case SQLITE_FULL:
    case SQLITE_NOMEM:
      return absl::ResourceExhaustedError(message);
    case SQLITE_TOOBIG:
    case SQLITE_NOTADB:
      return absl::InvalidArgumentError(message);
    case SQLITE_CORRUPT:
      return absl::DataLossError(message);
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return StoreAwayError(message);
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
      if (!NamesWhatIsMissing(reason)) return absl::InternalError(message);
      return absl::DataLossError(absl::StrCat("store ", path_, ": another program has altered its tables: ", reason,
                                              "; stop the server, put the store in its place, and start it again"));
    default:
      return absl::InternalError(message);
  }
}

absl::Status SqliteConnection::Execute(const char* sql, absl::string_view action) {
  errno = 0;
  const int rc = sqlite3_exec(db_, sql, nullptr, nullptr, nullptr);
  return rc == SQLITE_OK ? absl::OkStatus() : Error(rc, action);
}

absl::StatusOr<int64_t> SqliteConnection::QueryInteger(const std::string& sql) {
  SqliteStatement statement(*this);
  C3PO_RETURN_IF_ERROR(statement.Prepare(sql));
  C3PO_ASSIGN_OR_RETURN(const bool row, statement.Step("cannot read"));
  if (!row) return absl::DataLossError(absl::StrCat("store ", path_, ": no row for: ", sql));
  return statement.Integer(0);
}

absl::Status SqliteConnection::Transaction(absl::string_view action, absl::FunctionRef<absl::Status()> body) {
  C3PO_RETURN_IF_ERROR(Execute("BEGIN IMMEDIATE", action));
  absl::Status status = body();
  if (status.ok()) status = Execute("COMMIT", action);
  // Some errors (disk full, I/O) have SQLite roll back by itself; then there is nothing left to do.
  if (!status.ok() && sqlite3_get_autocommit(db_) == 0) sqlite3_exec(db_, "ROLLBACK", nullptr, nullptr, nullptr);
  return status;
}

void SqliteConnection::FoldLog() {
  sqlite3_wal_checkpoint_v2(db_, nullptr, SQLITE_CHECKPOINT_PASSIVE, nullptr, nullptr);
}

void SqliteConnection::FoldAndCutLog() {
  sqlite3_wal_checkpoint_v2(db_, nullptr, SQLITE_CHECKPOINT_TRUNCATE, nullptr, nullptr);
}

int64_t SqliteConnection::rows_changed() const { return sqlite3_changes64(db_); }

int64_t SqliteConnection::rows_changed_ever() const { return sqlite3_total_changes64(db_); }

SqliteStatement::~SqliteStatement() { sqlite3_finalize(statement_); }

absl::Status SqliteStatement::Prepare(absl::string_view sql) {
  const int rc =
      sqlite3_prepare_v2(connection_.db_, sql.data(), static_cast<int>(sql.size()), &statement_, /*pzTail=*/nullptr);
  return rc == SQLITE_OK ? absl::OkStatus() : connection_.Error(rc, "cannot prepare a statement");
}

void SqliteStatement::Bind(int parameter, absl::string_view text) {
  const int rc = sqlite3_bind_text64(statement_, parameter, text.data() == nullptr ? "" : text.data(), text.size(),
                                     SQLITE_STATIC, SQLITE_UTF8);
  if (bind_rc_ == SQLITE_OK) bind_rc_ = rc;
}

void SqliteStatement::Bind(int parameter, int64_t value) {
  const int rc = sqlite3_bind_int64(statement_, parameter, value);
  if (bind_rc_ == SQLITE_OK) bind_rc_ = rc;
}

void SqliteStatement::BindBlob(int parameter, absl::string_view bytes) {
  const int rc = sqlite3_bind_blob64(statement_, parameter, bytes.data(), bytes.size(), SQLITE_STATIC);
  if (bind_rc_ == SQLITE_OK) bind_rc_ = rc;
}

absl::StatusOr<bool> SqliteStatement::Step(absl::string_view action) {
  errno = 0;
  const int rc = bind_rc_ != SQLITE_OK ? bind_rc_ : sqlite3_step(statement_);
  if (rc == SQLITE_ROW) return true;
  if (rc == SQLITE_DONE) return false;
  return connection_.Error(rc, action);
}

// The error that sqlite3_reset may return is the last Step's, which was reported there.
void SqliteStatement::Reset() { sqlite3_reset(statement_); }

int64_t SqliteStatement::Integer(int column) { return sqlite3_column_int64(statement_, column); }

absl::string_view SqliteStatement::Bytes(int column) {
  const char* data = static_cast<const char*>(sqlite3_column_blob(statement_, column));
  const size_t size = static_cast<size_t>(sqlite3_column_bytes(statement_, column));
  return data == nullptr ? absl::string_view() : absl::string_view(data, size);
}

absl::StatusOr<std::unique_ptr<SqliteCopy>> SqliteCopy::Open(const std::string& path) {
  std::unique_ptr<SqliteCopy> copy(new SqliteCopy(path));
  int rc = sqlite3_open_v2(path.c_str(), &copy->target_, kOpenFlags, nullptr);
  // Nothing else reads the copy before it is whole; then it is synced once.
  if (rc == SQLITE_OK) {
    rc = sqlite3_exec(copy->target_, "PRAGMA synchronous = OFF; PRAGMA journal_mode = OFF", nullptr, nullptr, nullptr);
  }
  if (rc != SQLITE_OK) return copy->Error(rc);
  return copy;
}

SqliteCopy::~SqliteCopy() {
  if (target_ != nullptr) sqlite3_close(target_);
}

absl::Status SqliteCopy::Error(int rc) const {
  const std::string message = absl::StrCat("backup ", path_, ": ", sqlite3_errstr(rc));
  return (rc & 0xff) == SQLITE_FULL ? absl::ResourceExhaustedError(message) : absl::InternalError(message);
}

absl::Status SqliteCopy::Begin(SqliteConnection& source) {
  backup_ = sqlite3_backup_init(target_, "main", source.db_, "main");
  return backup_ != nullptr ? absl::OkStatus() : Error(sqlite3_extended_errcode(target_));
}

absl::StatusOr<bool> SqliteCopy::Step(int pages) {
  const int rc = sqlite3_backup_step(backup_, pages);
  if (rc == SQLITE_OK || rc == SQLITE_BUSY || rc == SQLITE_LOCKED) return false;
  if (rc != SQLITE_DONE) return Error(rc);
  return true;
}

void SqliteCopy::Finish() {
  if (backup_ != nullptr) sqlite3_backup_finish(std::exchange(backup_, nullptr));
}

absl::Status SqliteCopy::MakeOneFile() {
  const int rc = sqlite3_exec(target_, "PRAGMA journal_mode = DELETE", nullptr, nullptr, nullptr);
  return rc == SQLITE_OK ? absl::OkStatus() : Error(rc);
}

}  // namespace c3po
