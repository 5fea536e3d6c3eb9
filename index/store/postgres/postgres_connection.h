#ifndef C3PO_INDEX_STORE_POSTGRES_POSTGRES_CONNECTION_H_
#define C3PO_INDEX_STORE_POSTGRES_POSTGRES_CONNECTION_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "index/store/postgres/postgres_location.h"
#include "index/store/postgres/postgres_values.h"

struct pg_conn;
struct pg_result;

namespace c3po {

// The door to PostgreSQL: no other file calls libpq, which is chosen over libpqxx because Debian 12 has that at 6.4,
// without binary parameters, and because libpq alone lets every wait be bounded here. Nothing here is thread-safe.

// The rows that a statement returned.
class PostgresRows {
 public:
  explicit PostgresRows(pg_result* result) : result_(result) {}

  int rows() const;
  int64_t rows_changed() const;       // By INSERT, UPDATE or DELETE.
  absl::string_view command() const;  // Such as "COMMIT"; none: empty.
  // NULL is 0 and no bytes. Bytes are valid as long as this is.
  int64_t Integer(int row, int column) const;
  absl::string_view Bytes(int row, int column) const;
  std::string Text(int row, int column) const { return std::string(Bytes(row, column)); }

 private:
  struct Clear {
    void operator()(pg_result* result) const;
  };
  std::unique_ptr<pg_result, Clear> result_;
};

struct PostgresTimeouts {
  absl::Duration connect, statement;
};

// One session. Whoever waits for the server does so at most `connect` to open it, and little more than `statement` for
// each call, by the steady clock, whatever the server, the network or the kernel's buffers do: then the session is
// broken. Names are looked up before that, as long as the resolver takes. The server is told to end a statement, and a
// wait for a lock, by itself after the same time, and a transaction that does nothing for as long.
//
// Errors name the location and `action`, what was being done, and never a value of a statement:
//   StoreAwayError: the server cannot be reached, does not answer in time, has no connection left, ends this one, is a
//   standby, or a lock is held for too long;  ResourceExhausted: disk or memory are full;
//   DataLoss: a table or column is missing, or the server found its files corrupt;
//   PermissionDenied: the user, the password or a right;  NotFound: no such database;
//   InvalidArgument: a value beyond PostgreSQL's limits;  FailedPrecondition: older than version 15;
//   Aborted: it ran into another transaction, and may be repeated;  Internal: anything else.
class PostgresConnection {
 public:
  static absl::StatusOr<std::unique_ptr<PostgresConnection>> Open(const PostgresLocation& location,
                                                                  const PostgresTimeouts& timeouts);
  // A transaction that is open is rolled back by the server. Does not wait.
  ~PostgresConnection();
  PostgresConnection(const PostgresConnection&) = delete;
  PostgresConnection& operator=(const PostgresConnection&) = delete;

  // Statements without parameters or rows, separated by semicolons.
  absl::Status Execute(const std::string& sql, absl::string_view action);
  absl::StatusOr<PostgresRows> Run(const char* sql, const PostgresValues& values, absl::string_view action);
  // Calls `row` with each row by itself, as it comes. Each may take as long as a statement. At its first error the
  // session is broken, as the rest of the rows is on its way, and the error is returned.
  absl::Status Stream(const char* sql, const PostgresValues& values, absl::string_view action,
                      absl::FunctionRef<absl::Status(const PostgresRows&)> row);

  enum class CommitOutcome {
    kCommitted,
    kRolledBack,  // The server said so.
    kUnknown,     // The session ended, or was silent, after the server was asked. It is broken.
  };
  struct Commit {
    CommitOutcome outcome = CommitOutcome::kRolledBack;
    absl::Status status;  // Why it is not committed.
  };
  Commit CommitTransaction(absl::string_view action);

  // Waits for a notification of a channel that is listened to, at most `timeout`. True: there was one, or several.
  absl::StatusOr<bool> WaitForNotification(absl::Duration timeout);

  // Whether it can be used for another call outside of a transaction, as far as this end has heard. Does not wait.
  bool IsIdle();
  // It is of no use any more: the server ended it, or did not answer.
  bool broken() const { return broken_; }

  const std::string& name() const { return location_.name; }

 private:
  PostgresConnection(const PostgresLocation& location, const PostgresTimeouts& timeouts)
      : location_(location), timeouts_(timeouts) {}
  absl::Status Connect();
  absl::Status SetUp();
  // Waits until the socket can be read (and written to, if `writes`); StoreAwayError: the session is lost.
  absl::Status WaitForSocket(bool writes, absl::Time deadline, absl::string_view action);
  absl::Status Send(const char* sql, const PostgresValues& values, absl::string_view action);
  absl::Status Flush(absl::Time deadline, absl::string_view action);
  // The next result of what was sent; null: there is none.
  absl::StatusOr<pg_result*> NextResult(absl::Time deadline, absl::string_view action);
  // All results; the last one with rows, or the first error.
  absl::StatusOr<PostgresRows> Collect(absl::string_view action);
  absl::Status ErrorOf(const pg_result* result, absl::string_view action);
  absl::Status Lost(absl::string_view action, absl::string_view reason);
  absl::Time StatementDeadline() const;

  const PostgresLocation location_;
  const PostgresTimeouts timeouts_;
  pg_conn* connection_ = nullptr;
  bool broken_ = false;
};

}  // namespace c3po

#endif  // C3PO_INDEX_STORE_POSTGRES_POSTGRES_CONNECTION_H_
