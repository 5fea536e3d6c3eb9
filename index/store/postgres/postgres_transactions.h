#ifndef C3PO_INDEX_STORE_POSTGRES_POSTGRES_TRANSACTIONS_H_
#define C3PO_INDEX_STORE_POSTGRES_POSTGRES_TRANSACTIONS_H_

#include <cstdint>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "index/store/announced_generation.h"
#include "index/store/postgres/postgres_connection.h"
#include "index/store/postgres/postgres_location.h"
#include "index/store/postgres/postgres_pool.h"
#include "index/store/postgres/postgres_schema.h"
#include "index/store/reference_store.h"

namespace c3po {

// The changes and the reads of a PostgresReferenceStore, whose header says how a change is made, and how one is told
// from a lost answer. Thread-safe. Errors: PostgresConnection's.
class PostgresTransactions {
 public:
  PostgresTransactions(PostgresLocation location, const StoreOptions& options);

  // Once, before anything is changed or checked: from now on the store is expected to be this one.
  void Learn(const PostgresState& state);

  // What the body of a change did: its result for the caller, and how many rows it changed; none: nothing is raised.
  struct Changed {
    int64_t result = 0;
    int64_t rows = 0;
  };
  using Body = absl::FunctionRef<absl::StatusOr<Changed>(PostgresConnection&, int64_t generation)>;

  // Runs `body` with the generation that the change is to have, in a transaction that nobody else's change runs beside,
  // and returns its result once it is committed. It may run several times, each as if the others had not been. `action`
  // is what cannot be done, for messages.
  absl::StatusOr<int64_t> Change(absl::string_view action, Body body);

  // Runs `body` on a session; again on another where that broke, unless `done` says that it cannot be.
  absl::Status Read(
      absl::FunctionRef<absl::Status(PostgresConnection&)> body, absl::FunctionRef<bool()> done = [] { return false; });
  // The same within a transaction that sees one state throughout.
  absl::Status ReadOneState(
      absl::string_view action, absl::FunctionRef<absl::Status(PostgresConnection&)> body,
      absl::FunctionRef<bool()> done = [] { return false; });

  // DataLoss: it is another store's, or of an earlier generation than `met`.
  absl::Status CheckState(const PostgresState& state, int64_t met) const;

  PostgresPool& pool() { return pool_; }
  const PostgresLocation& location() const { return pool_.location(); }
  // The last one that was met.
  AnnouncedGeneration& generation() { return generation_; }

 private:
  enum class TryOutcome { kDone, kFailed, kMayBeRepeated, kUnknown };
  struct Try {
    TryOutcome outcome;
    absl::Status status;
    int64_t result = 0, generation = 0;
  };
  Try TryChange(absl::string_view action, const std::string& token, Body body);
  // kDone: nothing is to be committed. kUnknown: it is to be.
  absl::StatusOr<Try> BeforeCommit(PostgresConnection& session, const std::string& token, Body body);

  // After an unknown commit. True: the change with this token is committed. False: it is not, and never will be.
  // StoreAwayError: nobody knows.
  absl::StatusOr<bool> WasCommitted(absl::string_view action, const std::string& token);
  absl::StatusOr<bool> LookForToken(const std::string& token);

  absl::Status Lost(absl::string_view what) const;

  const StoreOptions options_;
  PostgresPool pool_;
  std::string store_id_;  // Set by Learn.
  AnnouncedGeneration generation_;
};

}  // namespace c3po

#endif  // C3PO_INDEX_STORE_POSTGRES_POSTGRES_TRANSACTIONS_H_
