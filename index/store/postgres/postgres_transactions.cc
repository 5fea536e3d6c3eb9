#include "index/store/postgres/postgres_transactions.h"

#include <random>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "index/base/steady_time.h"
#include "index/base/store_away.h"
#include "index/store/change_page.h"
#include "index/store/postgres/postgres_changes.h"

namespace c3po {
namespace {

constexpr int kTriesMax = 3;
constexpr absl::Duration kAskAgain = absl::Milliseconds(100);  // Whether a change was committed.
constexpr size_t kTokenBytes = 16;

constexpr char kBeginChange[] = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE";
// A reader that is slow keeps nobody waiting, so that it may take its time.
constexpr char kBeginRead[] =
    "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = 0; "
    "SET LOCAL idle_in_transaction_session_timeout = '10min'";
// The end of each change. Tokens are kept for longer than anybody asks for them: as long as a statement may take.
constexpr char kEndChange[] =
    "WITH raised AS (UPDATE state SET generation = $1), noted AS (INSERT INTO change VALUES ($1, $2)), "
    "forgotten AS (DELETE FROM change WHERE generation <= $1 - 100000) SELECT pg_notify($3, $4)";

std::string RandomToken() {
  std::random_device random;
  std::string token;
  while (token.size() < kTokenBytes) token.push_back(static_cast<char>(random()));
  return token;
}

}  // namespace

PostgresTransactions::PostgresTransactions(PostgresLocation location, const StoreOptions& options)
    : options_(options), pool_(std::move(location), {options.connect_timeout, options.statement_timeout}) {}

void PostgresTransactions::Learn(const PostgresState& state) {
  store_id_ = state.store_id;
  generation_.Raise(state.generation);
}

absl::Status PostgresTransactions::Lost(absl::string_view what) const {
  return absl::DataLossError(absl::StrCat("store ", pool_.location().name, ": ", what,
                                          "; stop the servers, put the store in its place, and start them again"));
}

absl::Status PostgresTransactions::CheckState(const PostgresState& state, int64_t met) const {
  if (state.store_id != store_id_) return Lost("the schema was replaced by another store while it was open");
  if (state.generation >= met) return absl::OkStatus();
  return Lost(absl::StrCat("was taken back from generation ", met, " to ", state.generation, " while it was open"));
}

absl::StatusOr<PostgresTransactions::Try> PostgresTransactions::BeforeCommit(PostgresConnection& session,
                                                                             const std::string& token, Body body) {
  const int64_t met = generation_.Get();
  C3PO_ASSIGN_OR_RETURN(const PostgresState state, c3po::ReadState(session, /*for_change=*/true));
  C3PO_RETURN_IF_ERROR(CheckState(state, met));
  const int64_t next = state.generation + 1;
  C3PO_ASSIGN_OR_RETURN(const Changed changed, body(session, next));
  if (changed.rows == 0) return Try{TryOutcome::kDone, absl::OkStatus(), changed.result, state.generation};
  if (next % kForgetErasuresEvery == 0) C3PO_RETURN_IF_ERROR(ForgetErasuresBeyond(session, options_.erasures_max));
  PostgresValues values;
  values.Integer(next).Bytes(token).Text(pool_.location().schema).Text(absl::StrCat(next));
  C3PO_RETURN_IF_ERROR(session.Run(kEndChange, values, "cannot raise the generation").status());
  return Try{TryOutcome::kUnknown, absl::OkStatus(), changed.result, next};
}

PostgresTransactions::Try PostgresTransactions::TryChange(absl::string_view action, const std::string& token,
                                                          Body body) {
  absl::StatusOr<PostgresPool::Lease> session = pool_.Take();
  if (!session.ok()) return {TryOutcome::kFailed, session.status()};
  const absl::Time begun = SteadyNow();
  const auto before_commit = [&]() -> absl::StatusOr<Try> {
    C3PO_RETURN_IF_ERROR((*session)->Execute(kBeginChange, action));
    return BeforeCommit(**session, token, body);
  };
  absl::StatusOr<Try> done = before_commit();
  if (!done.ok()) {
    // Nothing was asked to be committed: when the session ends, it is rolled back. A server that was silent until the
    // time was over is not waited for again.
    const bool ended = (*session)->broken() && SteadyNow() - begun < options_.statement_timeout;
    const bool repeat = ended || absl::IsAborted(done.status());
    return {repeat ? TryOutcome::kMayBeRepeated : TryOutcome::kFailed, done.status()};
  }
  if (done->outcome == TryOutcome::kDone) {
    (void)(*session)->Execute("ROLLBACK", action);  // Nothing was written.
    return *done;
  }
  const PostgresConnection::Commit commit = (*session)->CommitTransaction(action);
  done->status = commit.status;
  switch (commit.outcome) {
    case PostgresConnection::CommitOutcome::kCommitted:
      done->outcome = TryOutcome::kDone;
      break;
    case PostgresConnection::CommitOutcome::kRolledBack:
      done->outcome = absl::IsAborted(commit.status) ? TryOutcome::kMayBeRepeated : TryOutcome::kFailed;
      break;
    case PostgresConnection::CommitOutcome::kUnknown:
      break;
  }
  return *done;
}

absl::StatusOr<bool> PostgresTransactions::LookForToken(const std::string& token) {
  constexpr absl::string_view kAction = "cannot look whether a change was committed";
  C3PO_ASSIGN_OR_RETURN(const PostgresPool::Lease session, pool_.Take());
  C3PO_RETURN_IF_ERROR(session->Execute(kBeginChange, kAction));
  // From here on the transaction in question has ended: it held this row.
  C3PO_ASSIGN_OR_RETURN(const PostgresState state, c3po::ReadState(*session, /*for_change=*/true));
  if (state.store_id != store_id_) return CheckState(state, 0);
  C3PO_ASSIGN_OR_RETURN(const PostgresRows rows, session->Run("SELECT generation FROM change WHERE token = $1",
                                                              PostgresValues().Bytes(token), kAction));
  C3PO_RETURN_IF_ERROR(session->Execute("ROLLBACK", kAction));
  return rows.rows() > 0;
}

absl::StatusOr<bool> PostgresTransactions::WasCommitted(absl::string_view action, const std::string& token) {
  const absl::Time deadline = SteadyNow() + options_.statement_timeout;
  while (true) {
    absl::StatusOr<bool> committed = LookForToken(token);
    if (committed.ok() || !absl::IsUnavailable(committed.status())) return committed;
    if (SteadyNow() >= deadline) {
      return StoreAwayError(absl::StrCat(committed.status().message(), "; ", action,
                                         ": the answer to the commit was lost, the change may have been made"));
    }
    std::this_thread::sleep_for(absl::ToChronoNanoseconds(kAskAgain));
  }
}

absl::StatusOr<int64_t> PostgresTransactions::Change(absl::string_view action, Body body) {
  absl::Status last;
  for (int tries = 0; tries < kTriesMax; ++tries) {
    const std::string token = RandomToken();
    Try done = TryChange(action, token, body);
    if (done.outcome == TryOutcome::kUnknown) {
      C3PO_ASSIGN_OR_RETURN(const bool committed, WasCommitted(action, token));
      done.outcome = committed ? TryOutcome::kDone : TryOutcome::kMayBeRepeated;
    }
    if (done.outcome == TryOutcome::kDone) {
      generation_.Raise(done.generation);
      return done.result;
    }
    last = done.status;
    if (done.outcome == TryOutcome::kFailed) break;
  }
  // Aborted is of transactions, which the caller knows nothing of.
  return absl::IsAborted(last) ? StoreAwayError(last.message()) : last;
}

absl::Status PostgresTransactions::Read(absl::FunctionRef<absl::Status(PostgresConnection&)> body,
                                        absl::FunctionRef<bool()> done) {
  absl::Status last;
  for (int tries = 0; tries < kTriesMax; ++tries) {
    C3PO_ASSIGN_OR_RETURN(const PostgresPool::Lease session, pool_.Take());
    const absl::Time begun = SteadyNow();
    last = body(*session);
    const bool ended =
        absl::IsUnavailable(last) && session->broken() && SteadyNow() - begun < options_.statement_timeout;
    if (!ended || done()) return last;
  }
  return last;
}

absl::Status PostgresTransactions::ReadOneState(absl::string_view action,
                                                absl::FunctionRef<absl::Status(PostgresConnection&)> body,
                                                absl::FunctionRef<bool()> done) {
  const auto in_transaction = [&](PostgresConnection& session) -> absl::Status {
    C3PO_RETURN_IF_ERROR(session.Execute(kBeginRead, action));
    C3PO_RETURN_IF_ERROR(body(session));
    return session.Execute("COMMIT", action);
  };
  return Read(in_transaction, done);
}

}  // namespace c3po
