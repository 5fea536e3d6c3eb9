#include "index/store/postgres/postgres_connection.h"

#include <errno.h>
#include <libpq-fe.h>
#include <poll.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "index/base/status_macros.h"
#include "index/base/steady_time.h"
#include "index/base/store_away.h"

namespace c3po {
namespace {

constexpr int kVersionMin = 150000;                  // 15.0
constexpr absl::Duration kGrace = absl::Seconds(2);  // For the server to end a statement by itself.
constexpr char kSchemaParameter[] = "c3po_schema=";
constexpr size_t kIdentifierBytesMax = 63;

// What the URL may set otherwise. A peer that is gone is noticed within half a minute even where nothing is sent.
constexpr std::pair<const char*, const char*> kDefaults[] = {
    {"fallback_application_name", "c3pod"}, {"keepalives_idle", "10"},
    {"keepalives_interval", "5"},           {"keepalives_count", "3"},
    {"tcp_user_timeout", "15000"},          {"target_session_attrs", "read-write"},  // Of several hosts, the primary.
};

struct FreeOptions {
  void operator()(PQconninfoOption* options) const { PQconninfoFree(options); }
};
using Options = std::unique_ptr<PQconninfoOption, FreeOptions>;

// The values that are set, by keyword.
std::map<std::string, std::string> ValuesOf(const Options& options) {
  std::map<std::string, std::string> values;
  for (const PQconninfoOption* each = options.get(); each != nullptr && each->keyword != nullptr; ++each) {
    if (each->val != nullptr && each->val[0] != '\0') values[each->keyword] = each->val;
  }
  return values;
}

// Takes the parameter of ours out of the URL; libpq would refuse it. Empty: there is none.
std::string TakeSchema(std::string& url) {
  const size_t query = url.find('?');
  if (query == std::string::npos) return "";
  std::string schema;
  std::vector<std::string> kept;
  for (const absl::string_view parameter : absl::StrSplit(url.substr(query + 1), '&')) {
    if (absl::StartsWith(parameter, kSchemaParameter)) {
      schema = std::string(parameter.substr(sizeof(kSchemaParameter) - 1));
    } else {
      kept.emplace_back(parameter);
    }
  }
  url = kept.empty() ? url.substr(0, query) : absl::StrCat(url.substr(0, query), "?", absl::StrJoin(kept, "&"));
  return schema;
}

bool IsIdentifier(absl::string_view name) {
  const auto fits = [](char c) { return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '_'; };
  return !name.empty() && name.size() <= kIdentifierBytesMax && !absl::ascii_isdigit(name[0]) &&
         !absl::StartsWith(name, "pg_") && std::all_of(name.begin(), name.end(), fits);
}

// Of lists separated by commas, as a URL may have them: HOST:PORT,HOST:PORT. A port may be left out.
std::string ShownHosts(absl::string_view hosts, absl::string_view ports) {
  const std::vector<absl::string_view> port_of = absl::StrSplit(ports, ',');
  std::vector<std::string> shown;
  for (const absl::string_view host : absl::StrSplit(hosts, ',')) {
    const absl::string_view port = port_of[std::min(shown.size(), port_of.size() - 1)];
    shown.push_back(absl::StrCat(absl::StrReplaceAll(host.empty() ? "localhost" : host, {{"/", "%2F"}}), ":",
                                 port.empty() ? "5432" : port));
  }
  return absl::StrJoin(shown, ",");
}

// libpq's messages have lines.
std::string OneLine(absl::string_view message) {
  return absl::StrReplaceAll(absl::StripAsciiWhitespace(message), {{"\n\t", " "}, {"\n", "; "}});
}

// By the classes of appendix A of PostgreSQL's manual.
absl::Status StatusOf(absl::string_view state, const std::string& message) {
  const absl::string_view of_class = state.substr(0, 2);
  if (of_class == "08" || state == "57P01" || state == "57P02" || state == "57P03" || state == "57P04" ||
      state == "57P05" || state == "57014" || state == "55P03" || state == "53300" || state == "25P03" ||
      state == "25006") {
    return StoreAwayError(message);
  }
  if (of_class == "53") return absl::ResourceExhaustedError(message);
  if (of_class == "40") return absl::AbortedError(message);
  if (of_class == "54") return absl::InvalidArgumentError(message);
  if (of_class == "28" || state == "42501") return absl::PermissionDeniedError(message);
  if (state == "3D000") return absl::NotFoundError(message);
  if (state == "42P01" || state == "42703" || state == "3F000") {
    return absl::DataLossError(absl::StrCat(message, " (another program has altered its tables)"));
  }
  if (of_class == "XX" && state != "XX000") return absl::DataLossError(message);
  return absl::InternalError(message);
}

}  // namespace

absl::StatusOr<PostgresLocation> PostgresLocation::Parse(const std::string& url) {
  PostgresLocation location;
  std::string plain = url;
  if (const std::string schema = TakeSchema(plain); !schema.empty()) location.schema = schema;
  if (!IsIdentifier(location.schema)) {
    return absl::InvalidArgumentError(
        "store: c3po_schema must be 1 to 63 lower case letters, digits and _, without a digit or pg_ at its start");
  }
  char* problem = nullptr;
  const Options given(PQconninfoParse(plain.c_str(), &problem));
  PQfreemem(problem);  // It may quote the URL, with its password.
  if (given == nullptr) {
    return absl::InvalidArgumentError(
        "store: not a URL that libpq takes; it must be postgresql://USER@HOST:PORT/DATABASE?PARAMETER=VALUE, with "
        "other "
        "characters than letters and digits as %XX");
  }
  const std::map<std::string, std::string> values = ValuesOf(given);
  location.parameters.assign(values.begin(), values.end());
  std::map<std::string, std::string> shown = ValuesOf(Options(PQconndefaults()));
  for (const auto& [keyword, value] : values) shown[keyword] = value;
  const std::string hosts = shown["host"].empty() ? shown["hostaddr"] : shown["host"];
  const std::string database = shown["dbname"].empty() ? shown["user"] : shown["dbname"];
  location.name = absl::StrCat("postgresql://", ShownHosts(hosts, shown["port"]), "/", database);
  return location;
}

void PostgresRows::Clear::operator()(pg_result* result) const { PQclear(result); }

int PostgresRows::rows() const { return PQntuples(result_.get()); }

int64_t PostgresRows::rows_changed() const {
  int64_t changed = 0;
  return absl::SimpleAtoi(PQcmdTuples(result_.get()), &changed) ? changed : 0;
}

absl::string_view PostgresRows::command() const { return result_ == nullptr ? "" : PQcmdStatus(result_.get()); }

int64_t PostgresRows::Integer(int row, int column) const {
  uint64_t value = 0;
  for (const char byte : Bytes(row, column)) value = value << 8 | static_cast<uint8_t>(byte);
  return static_cast<int64_t>(value);
}

absl::string_view PostgresRows::Bytes(int row, int column) const {
  return absl::string_view(PQgetvalue(result_.get(), row, column),
                           static_cast<size_t>(PQgetlength(result_.get(), row, column)));
}

absl::StatusOr<std::unique_ptr<PostgresConnection>> PostgresConnection::Open(const PostgresLocation& location,
                                                                             const PostgresTimeouts& timeouts) {
  std::unique_ptr<PostgresConnection> connection(new PostgresConnection(location, timeouts));
  C3PO_RETURN_IF_ERROR(connection->Connect());
  C3PO_RETURN_IF_ERROR(connection->SetUp());
  return connection;
}

PostgresConnection::~PostgresConnection() {
  if (connection_ != nullptr) PQfinish(connection_);
}

absl::Time PostgresConnection::StatementDeadline() const { return SteadyNow() + timeouts_.statement + kGrace; }

absl::Status PostgresConnection::Lost(absl::string_view action, absl::string_view reason) {
  broken_ = true;
  return StoreAwayError(absl::StrCat("store ", name(), ": ", action, ": ", OneLine(reason)));
}

absl::Status PostgresConnection::Connect() {
  constexpr absl::string_view kAction = "cannot connect";
  std::vector<const char*> keywords, values;
  absl::Time deadline = SteadyNow() + timeouts_.connect;
  for (const auto& [keyword, value] : location_.parameters) {
    keywords.push_back(keyword.c_str());
    values.push_back(value.c_str());
    int seconds = 0;
    if (keyword == "connect_timeout" && absl::SimpleAtoi(value, &seconds) && seconds > 0) {
      deadline = SteadyNow() + absl::Seconds(seconds);
    }
  }
  for (const auto& [keyword, value] : kDefaults) {
    const auto is_same = [word = keyword](const char* given) { return absl::string_view(given) == word; };
    if (std::any_of(keywords.begin(), keywords.end(), is_same)) continue;
    keywords.push_back(keyword);
    values.push_back(value);
  }
  keywords.push_back(nullptr);
  values.push_back(nullptr);
  connection_ = PQconnectStartParams(keywords.data(), values.data(), /*expand_dbname=*/0);
  if (connection_ == nullptr) return absl::ResourceExhaustedError("store: no memory for a connection");
  PQsetNoticeProcessor(
      connection_, [](void*, const char*) {}, nullptr);  // Else they go to stderr.
  PostgresPollingStatusType status =
      PQstatus(connection_) == CONNECTION_BAD ? PGRES_POLLING_FAILED : PGRES_POLLING_WRITING;
  while (status == PGRES_POLLING_READING || status == PGRES_POLLING_WRITING) {
    C3PO_RETURN_IF_ERROR(WaitForSocket(status == PGRES_POLLING_WRITING, deadline, kAction));
    status = PQconnectPoll(connection_);
  }
  if (status == PGRES_POLLING_OK) return absl::OkStatus();
  const absl::Status lost = Lost(kAction, PQerrorMessage(connection_));
  // libpq tells no SQLSTATE of a connection that was refused. A server with translated messages says none of these:
  // then the store counts as away, which the caller tries again.
  const std::string message(lost.message());
  if (PQconnectionNeedsPassword(connection_) || absl::StrContains(message, "authentication failed") ||
      absl::StrContains(message, "no pg_hba.conf entry") || absl::StrContains(message, "permission denied")) {
    return absl::PermissionDeniedError(message);
  }
  const bool no_database = absl::StrContains(message, "database \"") && absl::StrContains(message, "does not exist");
  return no_database ? absl::NotFoundError(message) : lost;
}

absl::Status PostgresConnection::SetUp() {
  if (PQserverVersion(connection_) < kVersionMin) {
    return absl::FailedPreconditionError(absl::StrCat("store ", name(), ": PostgreSQL ",
                                                      PQserverVersion(connection_) / 10000, "; 15 or later is needed"));
  }
  if (PQsetnonblocking(connection_, 1) != 0) return Lost("cannot connect", PQerrorMessage(connection_));
  const int64_t milliseconds = std::max<int64_t>(1, absl::ToInt64Milliseconds(timeouts_.statement));
  // A server may be set up to answer before a change is safe. It is not set to less than what it does by itself.
  return Execute(
      absl::StrCat("SET search_path = \"", location_.schema, "\"; SET statement_timeout = ", milliseconds,
                   "; SET lock_timeout = ", milliseconds, "; SET idle_in_transaction_session_timeout = ", milliseconds,
                   "; SELECT set_config('synchronous_commit', 'on', false) WHERE "
                   "current_setting('synchronous_commit') IN ('off', 'local', 'remote_write')"),
      "cannot set up the session");
}

absl::Status PostgresConnection::WaitForSocket(bool writes, absl::Time deadline, absl::string_view action) {
  while (true) {
    const absl::Duration left = deadline - SteadyNow();
    if (left <= absl::ZeroDuration()) return Lost(action, "the server does not answer");
    // A connection in the making is either read from or written to; an open one may be read from as well.
    const bool reads = !writes || PQstatus(connection_) == CONNECTION_OK;
    pollfd socket = {PQsocket(connection_), static_cast<short>((reads ? POLLIN : 0) | (writes ? POLLOUT : 0)), 0};
    const int ready = poll(&socket, 1, static_cast<int>(absl::ToInt64Milliseconds(left)) + 1);
    if (ready > 0) return absl::OkStatus();
    if (ready < 0 && errno != EINTR) return Lost(action, "cannot wait for the server");
  }
}

absl::Status PostgresConnection::Send(const char* sql, const PostgresValues& values, absl::string_view action) {
  std::vector<Oid> types;
  std::vector<const char*> bytes;
  std::vector<int> lengths, formats(values.size(), 1);
  for (size_t i = 0; i < values.size(); ++i) {
    types.push_back(values.type(i));
    bytes.push_back(values.value(i).data());
    lengths.push_back(static_cast<int>(values.value(i).size()));
  }
  const int sent = PQsendQueryParams(connection_, sql, static_cast<int>(values.size()), types.data(), bytes.data(),
                                     lengths.data(), formats.data(), /*resultFormat=*/1);
  return sent == 1 ? absl::OkStatus() : Lost(action, PQerrorMessage(connection_));
}

absl::Status PostgresConnection::Flush(absl::Time deadline, absl::string_view action) {
  while (true) {
    const int left = PQflush(connection_);
    if (left == 0) return absl::OkStatus();
    if (left < 0) return absl::OkStatus();  // The server may have said why before it ended: reading tells.
    C3PO_RETURN_IF_ERROR(WaitForSocket(/*writes=*/true, deadline, action));
    if (PQconsumeInput(connection_) == 0) return Lost(action, PQerrorMessage(connection_));
  }
}

absl::StatusOr<pg_result*> PostgresConnection::NextResult(absl::Time deadline, absl::string_view action) {
  while (PQisBusy(connection_)) {
    C3PO_RETURN_IF_ERROR(WaitForSocket(/*writes=*/false, deadline, action));
    if (PQconsumeInput(connection_) == 0) return Lost(action, PQerrorMessage(connection_));
  }
  return PQgetResult(connection_);
}

absl::Status PostgresConnection::ErrorOf(const pg_result* result, absl::string_view action) {
  const char* state = PQresultErrorField(result, PG_DIAG_SQLSTATE);
  const char* severity = PQresultErrorField(result, PG_DIAG_SEVERITY_NONLOCALIZED);
  const char* primary = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);  // Details may have a row's values.
  const bool ended = state == nullptr || (severity != nullptr && absl::string_view(severity) != "ERROR");
  if (ended) broken_ = true;
  if (state == nullptr) return Lost(action, PQresultErrorMessage(result));
  return StatusOf(state,
                  absl::StrCat("store ", name(), ": ", action, ": ", OneLine(primary == nullptr ? "" : primary)));
}

absl::StatusOr<PostgresRows> PostgresConnection::Collect(absl::string_view action) {
  const absl::Time deadline = StatementDeadline();
  C3PO_RETURN_IF_ERROR(Flush(deadline, action));
  PostgresRows last(nullptr);
  absl::Status error;
  while (true) {
    C3PO_ASSIGN_OR_RETURN(pg_result * result, NextResult(deadline, action));
    if (result == nullptr) break;
    PostgresRows rows(result);
    const ExecStatusType status = PQresultStatus(result);
    if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK && error.ok()) error = ErrorOf(result, action);
    last = std::move(rows);
  }
  C3PO_RETURN_IF_ERROR(error);
  if (PQstatus(connection_) != CONNECTION_OK) return Lost(action, PQerrorMessage(connection_));
  return last;
}

absl::Status PostgresConnection::Execute(const std::string& sql, absl::string_view action) {
  if (PQsendQuery(connection_, sql.c_str()) != 1) return Lost(action, PQerrorMessage(connection_));
  return Collect(action).status();
}

absl::StatusOr<PostgresRows> PostgresConnection::Run(const char* sql, const PostgresValues& values,
                                                     absl::string_view action) {
  C3PO_RETURN_IF_ERROR(Send(sql, values, action));
  return Collect(action);
}

absl::Status PostgresConnection::Stream(const char* sql, const PostgresValues& values, absl::string_view action,
                                        absl::FunctionRef<absl::Status(const PostgresRows&)> row) {
  C3PO_RETURN_IF_ERROR(Send(sql, values, action));
  if (PQsetSingleRowMode(connection_) != 1) return Lost(action, "cannot read row by row");
  C3PO_RETURN_IF_ERROR(Flush(StatementDeadline(), action));
  absl::Status error;
  while (true) {
    C3PO_ASSIGN_OR_RETURN(pg_result * result, NextResult(StatementDeadline(), action));
    if (result == nullptr) return error;
    const PostgresRows rows(result);
    const ExecStatusType status = PQresultStatus(result);
    if (status == PGRES_SINGLE_TUPLE) {
      const absl::Status taken = row(rows);
      if (taken.ok()) continue;
      broken_ = true;
      return taken;
    }
    if (status != PGRES_TUPLES_OK && error.ok()) error = ErrorOf(result, action);
  }
}

PostgresConnection::Commit PostgresConnection::CommitTransaction(absl::string_view action) {
  if (PQsendQuery(connection_, "COMMIT") != 1)
    return {CommitOutcome::kUnknown, Lost(action, PQerrorMessage(connection_))};
  const absl::StatusOr<PostgresRows> answer = Collect(action);
  if (broken_) return {CommitOutcome::kUnknown, answer.status()};
  if (!answer.ok()) return {CommitOutcome::kRolledBack, answer.status()};
  // A transaction in which a statement failed is rolled back, and that is no error.
  if (answer->command() == "COMMIT") return {CommitOutcome::kCommitted, absl::OkStatus()};
  return {CommitOutcome::kRolledBack,
          absl::InternalError(absl::StrCat("store ", name(), ": ", action, ": rolled back"))};
}

absl::StatusOr<bool> PostgresConnection::WaitForNotification(absl::Duration timeout) {
  constexpr absl::string_view kAction = "cannot listen";
  const absl::Time deadline = SteadyNow() + timeout;
  while (true) {
    bool notified = false;
    while (PGnotify* notification = PQnotifies(connection_)) {
      PQfreemem(notification);
      notified = true;
    }
    if (notified) return true;
    const absl::Duration left = deadline - SteadyNow();
    if (left <= absl::ZeroDuration()) return false;
    pollfd socket = {PQsocket(connection_), POLLIN, 0};
    const int ready = poll(&socket, 1, static_cast<int>(absl::ToInt64Milliseconds(left)) + 1);
    if (ready < 0 && errno != EINTR) return Lost(kAction, "cannot wait for the server");
    if (ready > 0 && PQconsumeInput(connection_) == 0) return Lost(kAction, PQerrorMessage(connection_));
  }
}

bool PostgresConnection::IsIdle() {
  if (broken_ || PQtransactionStatus(connection_) != PQTRANS_IDLE) return false;
  // What an idle session is sent is a notice or a notification, or why it ends, and then the end.
  pollfd socket = {PQsocket(connection_), POLLIN, 0};
  while (PQstatus(connection_) == CONNECTION_OK && poll(&socket, 1, 0) > 0) {
    if (PQconsumeInput(connection_) == 0) return false;
    (void)PQisBusy(connection_);  // Has libpq take in what it read.
  }
  return PQstatus(connection_) == CONNECTION_OK;
}

}  // namespace c3po
