#ifndef C3PO_INDEX_STORE_SQLITE_SQLITE_CONNECTION_H_
#define C3PO_INDEX_STORE_SQLITE_SQLITE_CONNECTION_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

struct sqlite3;
struct sqlite3_backup;
struct sqlite3_stmt;

namespace c3po {

// The door to SQLite: no other file calls its interface. Nothing here is thread-safe; the store's lock guards it.

// One connection to a database file. Errors name the path and `action`, what was being done:
//   ResourceExhausted: the disk, the memory or the page limit is full;  InvalidArgument: not a database, or a value
//   beyond SQLite's limit;  DataLoss: corrupt, or another program has altered the tables;  Unavailable: another program
//   holds the database busy for 5 seconds;  PermissionDenied;  Internal: anything else.
class SqliteConnection {
 public:
  // Creates the file where it is absent.
  static absl::StatusOr<std::unique_ptr<SqliteConnection>> Open(const std::string& path);
  // Closing the last connection writes the log back into the database file.
  ~SqliteConnection();
  SqliteConnection(const SqliteConnection&) = delete;
  SqliteConnection& operator=(const SqliteConnection&) = delete;

  // Statements without results.
  absl::Status Execute(const char* sql, absl::string_view action);
  // The first column of the only row. DataLoss: there is no row.
  absl::StatusOr<int64_t> QueryInteger(const std::string& sql);

  // Runs `body` in a transaction, which is rolled back where `body` or the commit fails.
  absl::Status Transaction(absl::string_view action, absl::FunctionRef<absl::Status()> body);

  // Writes what the write-ahead log holds into the file, as far as no reader keeps it there.
  void FoldLog();
  // The same, then cuts the log to no bytes.
  void FoldAndCutLog();

  int64_t rows_changed() const;       // By the last statement.
  int64_t rows_changed_ever() const;  // Since it was opened.

  const std::string& path() const { return path_; }

 private:
  friend class SqliteCopy;
  friend class SqliteStatement;
  explicit SqliteConnection(std::string path) : path_(std::move(path)) {}
  absl::Status Error(int rc, absl::string_view action) const;

  const std::string path_;
  sqlite3* db_ = nullptr;
};

// A prepared statement. Texts and blobs bound to it must outlive the next Step or Reset. Parameters and columns count
// as SQLite's do: from 1 and from 0. One that stands at a row keeps a read transaction open, which keeps SQLite from
// emptying the write-ahead log: a statement lives for one call of the store.
class SqliteStatement {
 public:
  explicit SqliteStatement(SqliteConnection& connection) : connection_(connection) {}
  ~SqliteStatement();
  SqliteStatement(const SqliteStatement&) = delete;
  SqliteStatement& operator=(const SqliteStatement&) = delete;

  absl::Status Prepare(absl::string_view sql);

  void Bind(int parameter, absl::string_view text);
  void Bind(int parameter, int64_t value);
  void BindBlob(int parameter, absl::string_view bytes);

  // True: at a row. False: done. Says what was wrong with a binding, too.
  absl::StatusOr<bool> Step(absl::string_view action);
  // Ready to be bound and run again.
  void Reset();

  // Of the row at which it stands; NULL is 0 and no bytes. Bytes are valid until the next Step or Reset.
  int64_t Integer(int column);
  absl::string_view Bytes(int column);
  std::string Text(int column) { return std::string(Bytes(column)); }

 private:
  SqliteConnection& connection_;
  sqlite3_stmt* statement_ = nullptr;
  int bind_rc_ = 0;  // Of the first binding that failed.
};

// A copy of an open database under way, a few pages at a time: SQLite's online backup. Changes through the source's own
// connection reach pages that were copied before. Errors name the copy's path: ResourceExhausted (disk full), Internal.
class SqliteCopy {
 public:
  // Into the file `path`, which is empty.
  static absl::StatusOr<std::unique_ptr<SqliteCopy>> Open(const std::string& path);
  // Finish came before, if Begin did.
  ~SqliteCopy();
  SqliteCopy(const SqliteCopy&) = delete;
  SqliteCopy& operator=(const SqliteCopy&) = delete;

  // These three read through `source`, or let go of it: under the lock that guards it.
  absl::Status Begin(SqliteConnection& source);
  absl::StatusOr<bool> Step(int pages);  // True: every page is copied.
  void Finish();

  // After that: the copy is one file, with no log, until somebody opens it as a store.
  absl::Status MakeOneFile();

 private:
  explicit SqliteCopy(std::string path) : path_(std::move(path)) {}
  absl::Status Error(int rc) const;

  const std::string path_;
  sqlite3* target_ = nullptr;
  sqlite3_backup* backup_ = nullptr;
};

}  // namespace c3po

#endif  // C3PO_INDEX_STORE_SQLITE_SQLITE_CONNECTION_H_
