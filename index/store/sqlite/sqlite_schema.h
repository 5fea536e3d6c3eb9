#ifndef C3PO_INDEX_STORE_SQLITE_SQLITE_SCHEMA_H_
#define C3PO_INDEX_STORE_SQLITE_SQLITE_SCHEMA_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "index/store/sqlite/sqlite_artifacts.h"
#include "index/store/sqlite/sqlite_connection.h"
#include "index/store/sqlite/sqlite_references.h"

namespace c3po {

// Makes an open database a store of the present schema: creates the tables of an empty file, brings those of an earlier
// version to this one in one transaction, sets up the write-ahead log, checks the pages, and makes indexes anew that
// disagree with their tables. Nothing is written before the file is known to be a store, or empty. `references` and
// `artifacts` are of this connection. Returns why indexes were made anew; empty: they were not.
// Errors, besides SqliteConnection's: InvalidArgument: the database of another application; FailedPrecondition: a
// schema of another version; DataLoss "store PATH: corrupt: ...": what no index is to blame for.
absl::StatusOr<std::string> PrepareSchema(SqliteConnection& connection, SqliteReferences& references,
                                          SqliteArtifacts& artifacts);

// DataLoss: another program has dropped or altered a table.
absl::Status ProbeTables(SqliteConnection& connection);

}  // namespace c3po

#endif  // C3PO_INDEX_STORE_SQLITE_SQLITE_SCHEMA_H_
