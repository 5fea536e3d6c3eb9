// The parts, each with its header:
//   row_codec, record_row, artifact_row,
//   damaged_rows, change_page                 as with SQLite: what lies in a row, what is left out, what a page has
//   postgres_location, postgres_values,
//   postgres_connection                       the door to PostgreSQL
//   postgres_pool                             sessions that are ready, and pauses while there is no database
//   postgres_schema                           tables and their versions
//   postgres_transactions                     what is made whole, or again, and what came of a lost commit
//   postgres_references, postgres_artifacts,
//   postgres_changes                          the SQL of the tables

#include "index/store/postgres/postgres_reference_store.h"

#include <algorithm>
#include <filesystem>
#include <mutex>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "index/base/steady_time.h"
#include "index/store/artifact_row.h"
#include "index/store/change_page.h"
#include "index/store/postgres/noted_damage.h"
#include "index/store/postgres/postgres_artifacts.h"
#include "index/store/postgres/postgres_changes.h"
#include "index/store/postgres/postgres_connection.h"
#include "index/store/postgres/postgres_references.h"
#include "index/store/postgres/postgres_schema.h"
#include "index/store/postgres/postgres_transactions.h"
#include "index/store/record_row.h"

namespace c3po {
namespace {

constexpr absl::Duration kPollEvery = absl::Seconds(1);  // Of the generation, by who waits for it.
constexpr size_t kLookedAgainMax = 100;                  // Damaged rows that one look reads anew.

// The first of `folders` that holds something; empty: none does.
std::string TraceIn(const std::vector<std::string>& folders) {
  std::error_code error;
  for (const std::string& folder : folders) {
    const std::filesystem::directory_iterator entry(folder, error);
    if (!error && entry != std::filesystem::directory_iterator()) return folder;
  }
  return "";
}

}  // namespace

struct PostgresReferenceStore::Impl {
  Impl(PostgresLocation location, const StoreOptions& store_options)
      : options(store_options), database(std::move(location), store_options) {}

  const std::string& name() const { return database.location().name; }
  absl::StatusOr<int64_t> Change(absl::string_view action, PostgresTransactions::Body body) {
    C3PO_ASSIGN_OR_RETURN(const int64_t result, database.Change(action, body));
    LookAtDamagedAgain();
    return result;
  }
  void LookAtDamagedAgain();

  const StoreOptions options;
  PostgresTransactions database;
  std::string empty_problem;  // Set once, before others see it.
  NotedDamage damage;
  std::mutex listening;                          // Held by who waits for a generation.
  std::unique_ptr<PostgresConnection> listener;  // Under `listening`.
};

// After a change, or now and then: damaged rows may have been put right. Where they cannot be read now, they stay on
// the list.
void PostgresReferenceStore::Impl::LookAtDamagedAgain() {
  std::vector<DamagedRow> rows = damage.List();
  if (rows.size() > kLookedAgainMax) rows.resize(kLookedAgainMax);
  if (rows.empty()) return;
  (void)database.Read([&](PostgresConnection& session) -> absl::Status {
    for (const DamagedRow& row : rows) {
      NotedDamage now;
      const bool is_reference = row.kind == DamagedRow::Kind::kReference;
      C3PO_RETURN_IF_ERROR(is_reference ? PostgresReferences(session, now).LookAt(row.name)
                                        : PostgresArtifacts(session, now).LookAt(row.collection, row.name));
      if (now.List().empty()) damage.Forget(row);
    }
    return absl::OkStatus();
  });
}

PostgresReferenceStore::PostgresReferenceStore(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

PostgresReferenceStore::~PostgresReferenceStore() = default;

absl::StatusOr<std::unique_ptr<PostgresReferenceStore>> PostgresReferenceStore::Open(const std::string& url,
                                                                                     const StoreOptions& options) {
  C3PO_ASSIGN_OR_RETURN(PostgresLocation location, PostgresLocation::Parse(url));
  if (options.pages_max > 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "store ", location.name, ": pages_max is SQLite's; a PostgreSQL database is bounded by its tablespace"));
  }
  auto impl = std::make_unique<Impl>(std::move(location), options);
  C3PO_ASSIGN_OR_RETURN(const PostgresPool::Lease session, impl->database.pool().Take());
  C3PO_ASSIGN_OR_RETURN(const bool made, PrepareSchema(*session, impl->database.location().schema));
  C3PO_RETURN_IF_ERROR(ProbeTables(*session));
  C3PO_ASSIGN_OR_RETURN(const PostgresState state, ReadState(*session));
  impl->database.Learn(state);
  if (const std::string trace = TraceIn(options.trace_folders); made && !trace.empty()) {
    impl->empty_problem = absl::StrCat("there were no tables, and ", trace, " is left of a store: it begins empty");
  }
  return std::unique_ptr<PostgresReferenceStore>(new PostgresReferenceStore(std::move(impl)));
}

absl::StatusOr<std::vector<AddOutcome>> PostgresReferenceStore::Add(absl::Span<const ReferenceRecord> records) {
  C3PO_RETURN_IF_ERROR(ValidateRecords(records, impl_->options.sample_limits));
  std::vector<AddOutcome> outcomes;
  const auto add = [&](PostgresConnection& session,
                       int64_t generation) -> absl::StatusOr<PostgresTransactions::Changed> {
    C3PO_ASSIGN_OR_RETURN(outcomes, PostgresReferences(session, impl_->damage).Add(records, generation));
    return PostgresTransactions::Changed{0, std::count_if(outcomes.begin(), outcomes.end(), [](AddOutcome outcome) {
                                           return outcome != AddOutcome::kDuplicate;
                                         })};
  };
  C3PO_RETURN_IF_ERROR(impl_->Change("cannot add references", add).status());
  return outcomes;
}

absl::StatusOr<ReferenceRecord> PostgresReferenceStore::Get(absl::string_view id) const {
  const std::string wanted(id);
  C3PO_ASSIGN_OR_RETURN(std::vector<ReferenceRecord> found, GetMany({wanted}));
  if (!found.empty()) return std::move(found[0]);
  C3PO_RETURN_IF_ERROR(impl_->damage.CheckReference(impl_->name(), id));
  return absl::NotFoundError(absl::StrCat("reference \"", id, "\" does not exist"));
}

absl::StatusOr<std::vector<ReferenceRecord>> PostgresReferenceStore::GetMany(absl::Span<const std::string> ids) const {
  std::vector<ReferenceRecord> records;
  C3PO_RETURN_IF_ERROR(impl_->database.Read([&](PostgresConnection& session) -> absl::Status {
    C3PO_ASSIGN_OR_RETURN(records, PostgresReferences(session, impl_->damage).GetMany(ids));
    return absl::OkStatus();
  }));
  return records;
}

absl::StatusOr<std::vector<ReferenceRecord>> PostgresReferenceStore::List(absl::string_view collection,
                                                                          absl::string_view after_id, int limit) const {
  if (limit < 1) return absl::InvalidArgumentError(absl::StrCat("limit: ", limit, ", must be at least 1"));
  std::vector<ReferenceRecord> records;
  C3PO_RETURN_IF_ERROR(impl_->database.Read([&](PostgresConnection& session) -> absl::Status {
    C3PO_ASSIGN_OR_RETURN(records, PostgresReferences(session, impl_->damage).List(collection, after_id, limit));
    return absl::OkStatus();
  }));
  return records;
}

absl::StatusOr<int64_t> PostgresReferenceStore::Delete(absl::Span<const std::string> ids) {
  const auto remove = [&](PostgresConnection& session,
                          int64_t generation) -> absl::StatusOr<PostgresTransactions::Changed> {
    PostgresTransactions::Changed changed;
    C3PO_ASSIGN_OR_RETURN(changed.result,
                          PostgresReferences(session, impl_->damage).Delete(ids, generation, changed.rows));
    return changed;
  };
  return impl_->Change("cannot delete references", remove);
}

absl::StatusOr<int64_t> PostgresReferenceStore::DeleteCollection(absl::string_view collection) {
  const auto remove = [&](PostgresConnection& session,
                          int64_t generation) -> absl::StatusOr<PostgresTransactions::Changed> {
    PostgresTransactions::Changed changed;
    PostgresReferences references(session, impl_->damage);
    C3PO_ASSIGN_OR_RETURN(changed.result, references.DeleteCollection(collection, generation, changed.rows));
    return changed;
  };
  return impl_->Change("cannot delete a collection", remove);
}

absl::Status PostgresReferenceStore::PutArtifacts(absl::Span<const Artifact> artifacts) {
  C3PO_RETURN_IF_ERROR(ValidateArtifacts(artifacts));
  const auto put = [&](PostgresConnection& session,
                       int64_t generation) -> absl::StatusOr<PostgresTransactions::Changed> {
    C3PO_ASSIGN_OR_RETURN(const int64_t rows, PostgresArtifacts(session, impl_->damage).Put(artifacts, generation));
    return PostgresTransactions::Changed{0, rows};
  };
  return impl_->Change("cannot store artifacts", put).status();
}

absl::StatusOr<std::vector<Artifact>> PostgresReferenceStore::Artifacts(absl::string_view collection,
                                                                        absl::string_view prefix,
                                                                        absl::string_view suffix) const {
  std::vector<Artifact> artifacts;
  C3PO_RETURN_IF_ERROR(
      impl_->database.ReadOneState("cannot read artifacts", [&](PostgresConnection& session) -> absl::Status {
        C3PO_ASSIGN_OR_RETURN(artifacts, PostgresArtifacts(session, impl_->damage).Read(collection, prefix, suffix));
        return absl::OkStatus();
      }));
  return artifacts;
}

absl::StatusOr<std::vector<std::string>> PostgresReferenceStore::CollectionsWith(
    absl::string_view artifact_name) const {
  std::vector<std::string> collections;
  C3PO_RETURN_IF_ERROR(
      impl_->database.ReadOneState("cannot list artifacts", [&](PostgresConnection& session) -> absl::Status {
        C3PO_ASSIGN_OR_RETURN(collections, PostgresArtifacts(session, impl_->damage).CollectionsWith(artifact_name));
        return absl::OkStatus();
      }));
  return collections;
}

absl::StatusOr<std::vector<CollectionStats>> PostgresReferenceStore::Stats(absl::string_view model_digest,
                                                                           absl::string_view embedder_digest) const {
  std::vector<CollectionStats> stats;
  C3PO_RETURN_IF_ERROR(
      impl_->database.ReadOneState("cannot count references", [&](PostgresConnection& session) -> absl::Status {
        C3PO_ASSIGN_OR_RETURN(stats, PostgresReferences(session, impl_->damage).Stats(model_digest, embedder_digest));
        return absl::OkStatus();
      }));
  return stats;
}

absl::Status PostgresReferenceStore::ForEach(absl::FunctionRef<absl::Status(ReferenceRecord)> callback,
                                             int64_t* generation) const {
  bool called = false;
  absl::Status of_callback;
  const auto read = [&](PostgresConnection& session) -> absl::Status {
    C3PO_ASSIGN_OR_RETURN(const PostgresState state, ReadState(session));
    impl_->database.generation().Raise(state.generation);
    if (generation != nullptr) *generation = state.generation;
    return PostgresReferences(session, impl_->damage).ForEach([&](ReferenceRecord record) {
      called = true;
      of_callback = callback(std::move(record));
      return of_callback;
    });
  };
  // What the callback has had, it cannot be given again.
  return impl_->database.ReadOneState("cannot read references", read, [&] { return called; });
}

absl::StatusOr<StoreChanges> PostgresReferenceStore::ChangesSince(int64_t generation, int limit) const {
  C3PO_RETURN_IF_ERROR(CheckChangeRequest(generation, limit));
  StoreChanges changes;
  C3PO_RETURN_IF_ERROR(
      impl_->database.ReadOneState("cannot read changes", [&](PostgresConnection& session) -> absl::Status {
        C3PO_ASSIGN_OR_RETURN(changes, ReadChanges(session, impl_->damage, generation, limit));
        return absl::OkStatus();
      }));
  impl_->database.generation().Raise(changes.generation);
  return changes;
}

int64_t PostgresReferenceStore::generation() const { return impl_->database.generation().Get(); }

absl::StatusOr<int64_t> PostgresReferenceStore::WaitForGeneration(int64_t above, absl::Duration timeout) const {
  const absl::Time deadline = SteadyNow() + timeout;
  const std::lock_guard<std::mutex> lock(impl_->listening);
  std::unique_ptr<PostgresConnection>& listener = impl_->listener;
  if (listener == nullptr || !listener->IsIdle()) {
    C3PO_ASSIGN_OR_RETURN(listener, impl_->database.pool().OpenOwn());
    const absl::Status listens =
        listener->Execute(absl::StrCat("LISTEN \"", impl_->database.location().schema, "\""), "cannot listen");
    if (!listens.ok()) {
      listener.reset();
      return listens;
    }
  }
  while (true) {
    // After LISTEN: what is committed from here on is announced.
    const absl::StatusOr<PostgresState> state = ReadState(*listener);
    if (!state.ok()) {
      listener.reset();
      return state.status();
    }
    impl_->database.generation().Raise(state->generation);
    const absl::Duration left = deadline - SteadyNow();
    if (state->generation > above || left <= absl::ZeroDuration()) return state->generation;
    const absl::StatusOr<bool> notified = listener->WaitForNotification(std::min(left, kPollEvery));
    if (!notified.ok()) {
      listener.reset();
      return notified.status();
    }
  }
}

absl::StatusOr<std::unique_ptr<StoreBackup>> PostgresReferenceStore::StartBackup(const std::string&) const {
  return absl::FailedPreconditionError(absl::StrCat("store ", impl_->name(), ": is copied by PostgreSQL's own tools: ",
                                                    "pg_dump --schema=", impl_->database.location().schema,
                                                    " for one state, pg_basebackup and the archived log for any"));
}

std::vector<DamagedRow> PostgresReferenceStore::Damaged() const { return impl_->damage.List(); }

std::string PostgresReferenceStore::empty_problem() const { return impl_->empty_problem; }

absl::Status PostgresReferenceStore::CheckPlace() {
  const int64_t met = impl_->database.generation().Get();
  C3PO_RETURN_IF_ERROR(impl_->database.Read([&](PostgresConnection& session) -> absl::Status {
    C3PO_RETURN_IF_ERROR(ProbeTables(session));
    C3PO_ASSIGN_OR_RETURN(const PostgresState state, ReadState(session));
    C3PO_RETURN_IF_ERROR(impl_->database.CheckState(state, met));
    impl_->database.generation().Raise(state.generation);
    return absl::OkStatus();
  }));
  impl_->LookAtDamagedAgain();
  return absl::OkStatus();
}

const std::string& PostgresReferenceStore::location() const { return impl_->name(); }

}  // namespace c3po
