#ifndef C3PO_INDEX_STORE_POSTGRES_POSTGRES_SCHEMA_H_
#define C3PO_INDEX_STORE_POSTGRES_POSTGRES_SCHEMA_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "index/store/postgres/postgres_connection.h"

namespace c3po {

// The tables of a store, in one schema of a database:
//   state      one row: the version of the schema, the store's own id, the generation, and from which one on all
//              erasures are remembered. Whoever changes the store locks this row first.
//   reference  as SQLite's, with the generation of the change that wrote the row. Texts are bytes too: PostgreSQL's
//              text has no zero byte, and its order depends on the database.
//   artifact   likewise
//   erased     what is gone, and the generation that took it; kind 0: a reference, 1: an artifact
//   change     a token that each change draws, by its generation, for whoever did not hear that his was committed

// Makes the tables, or brings them to the present version, in one transaction, under an advisory lock: of servers that
// start together, one does. A schema of the present version is only read, so that a role without further rights can
// open it. Returns whether the tables were made. Errors, besides PostgresConnection's: FailedPrecondition: a schema of
// a later version; PermissionDenied: it is to be made or changed by its owner.
absl::StatusOr<bool> PrepareSchema(PostgresConnection& session, const std::string& schema);

// What `state` holds. DataLoss: it has no row. With `for_change`, in a transaction: nobody else changes the store until
// that has ended.
struct PostgresState {
  std::string store_id;
  int64_t generation = 0, remembered_from = 0;
};
absl::StatusOr<PostgresState> ReadState(PostgresConnection& session, bool for_change = false);

// DataLoss: another program has dropped or altered a table.
absl::Status ProbeTables(PostgresConnection& session);

}  // namespace c3po

#endif  // C3PO_INDEX_STORE_POSTGRES_POSTGRES_SCHEMA_H_
