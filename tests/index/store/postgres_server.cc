#include "tests/index/store/postgres_server.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <postgresql/libpq-fe.h>
#include <pwd.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>
#include <thread>

namespace c3po {
namespace {

namespace fs = std::filesystem;

constexpr int kVersionMin = 15;
constexpr char kPort[] = "5432";  // Of the socket's name; nothing listens on the network.

[[noreturn]] void Die(const std::string& why) {
  std::cerr << "PostgreSQL for tests: " << why << "\n" << std::flush;
  std::exit(1);  // Not _exit: what was started is ended.
}

// The folder with initdb and postgres of the newest version.
std::string FindPrograms() {
  int newest = 0;
  std::error_code error;
  for (const fs::directory_entry& each : fs::directory_iterator("/usr/lib/postgresql", error)) {
    const int version = atoi(each.path().filename().c_str());
    if (fs::exists(each.path() / "bin" / "initdb") && fs::exists(each.path() / "bin" / "postgres")) {
      newest = std::max(newest, version);
    }
  }
  if (newest < kVersionMin) {
    Die("initdb and postgres of version 15 or later are not in /usr/lib/postgresql; install postgresql-15, as "
        "deploy/install_deps.sh does");
  }
  return "/usr/lib/postgresql/" + std::to_string(newest) + "/bin";
}

pid_t ParentOf(pid_t process) {
  std::ifstream in("/proc/" + std::to_string(process) + "/stat");
  std::stringstream text;
  text << in.rdbuf();
  const std::string stat = text.str();
  const size_t name_end = stat.rfind(')');
  if (name_end == std::string::npos) return 0;
  char state = 0;
  int parent = 0;
  return sscanf(stat.c_str() + name_end + 1, " %c %d", &state, &parent) == 2 ? parent : 0;
}

struct Ended {
  void operator()(PGconn* connection) const { PQfinish(connection); }
};
using Session = std::unique_ptr<PGconn, Ended>;

}  // namespace

PostgresServer& PostgresServer::Shared() {
  static PostgresServer server;
  return server;
}

PostgresServer::PostgresServer() : programs_(FindPrograms()), owner_(getpid()) {
  char name[] = "/tmp/c3po-postgres-XXXXXX";  // Short: a socket's path has 107 characters at most.
  if (mkdtemp(name) == nullptr) Die("cannot make a folder in /tmp");
  folder_ = name;
  user_ = getuid();
  group_ = getgid();
  if (user_ == 0) {
    const passwd* other = getpwnam("postgres");
    if (other == nullptr) other = getpwnam("nobody");
    if (other == nullptr) Die("there is neither a user postgres nor nobody to run it");
    user_ = other->pw_uid;
    group_ = other->pw_gid;
  }
  if (chown(name, user_, group_) != 0) Die("cannot give it its folder");
  const pid_t initdb = Spawn({"initdb", "--pgdata=" + folder_ + "/data", "--username=" + std::string(kOwner),
                              "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"});
  int status = 0;
  if (waitpid(initdb, &status, 0) != initdb || status != 0) Die("initdb failed; see " + folder_ + "/log");
  std::ofstream(folder_ + "/data/pg_hba.conf") << "local all " << kGuarded << " scram-sha-256\nlocal all all trust\n";
  Start();
  Sql("postgres", std::string("CREATE ROLE ") + kGuarded + " LOGIN SUPERUSER PASSWORD '" + kPassword + "'");
}

PostgresServer::~PostgresServer() {
  if (getpid() != owner_) return;  // A child by fork.
  if (postmaster_ != 0) SignalAll(SIGKILL);
  std::error_code ignored;
  fs::remove_all(folder_, ignored);
}

pid_t PostgresServer::Spawn(const std::vector<std::string>& command) const {
  const std::string program = programs_ + "/" + command[0], log = folder_ + "/log";
  std::vector<char*> arguments;
  for (const std::string& each : command) arguments.push_back(const_cast<char*>(each.c_str()));
  arguments.push_back(nullptr);
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child < 0) Die("cannot fork");
  if (child > 0) return child;
  const int out = open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
  dup2(out, 1);
  dup2(out, 2);
  if (getuid() == 0 && (setgroups(0, nullptr) != 0 || setgid(group_) != 0 || setuid(user_) != 0)) _exit(101);
  prctl(PR_SET_PDEATHSIG, SIGQUIT);  // A test that is killed takes it along.
  if (getppid() != parent || chdir(folder_.c_str()) != 0) _exit(102);
  execv(program.c_str(), arguments.data());
  _exit(103);
}

void PostgresServer::Start() {
  for (int tries = 0; tries < 100; ++tries) {
    // Of the server that was killed, children may hold the shared memory for a moment longer.
    std::error_code ignored;
    fs::remove(folder_ + "/data/postmaster.pid", ignored);
    postmaster_ = Spawn({"postgres",
                         "-D",
                         folder_ + "/data",
                         "-k",
                         folder_,
                         "-p",
                         kPort,
                         "-c",
                         "listen_addresses=",
                         "-c",
                         "fsync=off",
                         "-c",
                         "shared_buffers=16MB",
                         "-c",
                         "max_connections=60",
                         "-c",
                         "wal_level=minimal",
                         "-c",
                         "max_wal_senders=0",
                         "-c",
                         "unix_socket_permissions=0777"});
    for (int waited = 0; waited < 3000; ++waited) {
      const Session session(PQconnectdb(Url("postgres").c_str()));
      if (PQstatus(session.get()) == CONNECTION_OK) return;
      int status = 0;
      if (waitpid(postmaster_, &status, WNOHANG) == postmaster_) break;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  Die("postgres does not start; see " + folder_ + "/log");
}

std::vector<pid_t> PostgresServer::Processes() const {
  std::vector<pid_t> processes = {postmaster_};
  for (const fs::directory_entry& each : fs::directory_iterator("/proc")) {
    const pid_t process = atoi(each.path().filename().c_str());
    if (process > 0 && ParentOf(process) == postmaster_) processes.push_back(process);
  }
  return processes;
}

// The postmaster first, which would start others.
void PostgresServer::SignalAll(int signal) const {
  kill(postmaster_, SIGSTOP);
  const std::vector<pid_t> processes = Processes();
  for (const pid_t process : processes) kill(process, signal);
  if (signal != SIGKILL) return;
  int status = 0;
  waitpid(postmaster_, &status, 0);
}

void PostgresServer::Kill() { SignalAll(SIGKILL); }

void PostgresServer::Pause() { SignalAll(SIGSTOP); }

void PostgresServer::Resume() {
  for (const pid_t process : Processes()) kill(process, SIGCONT);
}

std::string PostgresServer::SocketPath() const { return folder_ + "/.s.PGSQL." + kPort; }

std::string PostgresServer::NewDatabase() {
  const std::string name = "test_" + std::to_string(++databases_);
  const Session session(PQconnectdb(Url("postgres").c_str()));
  PQclear(PQexec(session.get(), ("CREATE DATABASE " + name + " TEMPLATE template0").c_str()));
  if (*PQerrorMessage(session.get()) != '\0') Die(PQerrorMessage(session.get()));
  return name;
}

std::string PostgresServer::Url(const std::string& database, const std::string& user,
                                const std::string& socket_folder) const {
  std::string host;
  for (const char c : socket_folder.empty() ? folder_ : socket_folder) host += c == '/' ? "%2F" : std::string(1, c);
  return "postgresql://" + user + "@" + host + "/" + database;
}

std::vector<std::string> PostgresServer::Sql(const std::string& database, const std::string& sql, bool may_fail) const {
  const Session session(PQconnectdb(Url(database).c_str()));
  PQsetNoticeProcessor(
      session.get(), [](void*, const char*) {}, nullptr);
  PGresult* result = PQexec(session.get(), ("SET search_path = c3po; " + sql).c_str());
  const ExecStatusType status = PQresultStatus(result);
  std::vector<std::string> rows;
  for (int row = 0; row < PQntuples(result); ++row) rows.push_back(PQgetvalue(result, row, 0));
  const std::string problem = PQresultErrorMessage(result);
  PQclear(result);
  if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK && !may_fail) Die(sql + ": " + problem);
  return rows;
}

}  // namespace c3po
