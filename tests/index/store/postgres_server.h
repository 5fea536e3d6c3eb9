#ifndef C3PO_TESTS_INDEX_STORE_POSTGRES_SERVER_H_
#define C3PO_TESTS_INDEX_STORE_POSTGRES_SERVER_H_

#include <sys/types.h>

#include <string>
#include <vector>

namespace c3po {

// A real PostgreSQL for tests, in a folder of its own, reached by a Unix socket in it. As PostgreSQL refuses to be run
// by root, it is run by the user `postgres` then, or `nobody`. A test binary has one, started when it is first wanted
// and ended with the process, whatever ends that. Where there is no PostgreSQL, or it does not start, the process ends
// with what to install: these tests are not skipped. fsync is off: what is killed here is the server, not the machine.
class PostgresServer {
 public:
  static PostgresServer& Shared();

  // A database without tables, of a name that no other has.
  std::string NewDatabase();
  // postgresql://USER@SOCKET/DATABASE; without `user` the owner of everything. `socket_folder`: another one than its
  // own.
  std::string Url(const std::string& database, const std::string& user = kOwner,
                  const std::string& socket_folder = "") const;

  // Runs SQL as the owner, statement by statement in one transaction; the first column of the last one's rows.
  // `may_fail` returns nothing then.
  std::vector<std::string> Sql(const std::string& database, const std::string& sql, bool may_fail = false) const;

  // Ends every process at once, as a crash does, and starts it again on the same files.
  void Kill();
  void Start();
  // Stops every process, as a machine that hangs does, and lets them go on.
  void Pause();
  void Resume();

  std::string SocketPath() const;

  static constexpr char kOwner[] = "c3po_owner";
  // Users with the password kPassword, which they have to give.
  static constexpr char kGuarded[] = "guarded";
  static constexpr char kPassword[] = "s3cret-w0rd";

  ~PostgresServer();
  PostgresServer(const PostgresServer&) = delete;
  PostgresServer& operator=(const PostgresServer&) = delete;

 private:
  PostgresServer();
  pid_t Spawn(const std::vector<std::string>& command) const;
  std::vector<pid_t> Processes() const;
  void SignalAll(int signal) const;

  std::string programs_, folder_;
  uid_t user_ = 0;
  gid_t group_ = 0;
  pid_t postmaster_ = 0;
  pid_t owner_ = 0;
  int databases_ = 0;
};

}  // namespace c3po

#endif  // C3PO_TESTS_INDEX_STORE_POSTGRES_SERVER_H_
