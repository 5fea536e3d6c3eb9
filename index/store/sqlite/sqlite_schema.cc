#include "index/store/sqlite/sqlite_schema.h"

#include <cstdint>
#include <vector>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr int64_t kApplicationId = 0x6333706f;  // "c3po"
constexpr int64_t kSchemaVersion = 4;

constexpr char kSchema[] = R"sql(
  CREATE TABLE reference (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    collection TEXT NOT NULL,
    prompt TEXT NOT NULL,
    answer TEXT NOT NULL,
    choices TEXT NOT NULL,
    metadata TEXT NOT NULL,
    successful INTEGER NOT NULL,
    model_digest TEXT NOT NULL,
    embedder_digest TEXT NOT NULL,
    embedding BLOB NOT NULL,
    pathway_layers INTEGER NOT NULL,
    pathway_experts INTEGER NOT NULL,
    pathway BLOB NOT NULL,
    created_unix_seconds INTEGER NOT NULL);
  CREATE INDEX reference_by_collection ON reference (collection, id);
  CREATE TABLE store_state (only_row INTEGER PRIMARY KEY CHECK (only_row = 1), generation INTEGER NOT NULL);
  INSERT INTO store_state VALUES (1, 0);
  PRAGMA application_id = 0x6333706f;
)sql";

// What version 2 adds to version 1, 3 to 2, and 4 to 3. A new file gets all of them.
constexpr char kSchemaOfVersion2[] = R"sql(
  CREATE TABLE artifact (
    collection TEXT NOT NULL,
    name TEXT NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (collection, name)) WITHOUT ROWID;
  PRAGMA user_version = 2;
)sql";

constexpr char kSchemaOfVersion3[] = R"sql(
  ALTER TABLE reference ADD COLUMN checksum BLOB;
  ALTER TABLE artifact ADD COLUMN checksum BLOB;
  ALTER TABLE store_state ADD COLUMN stamp BLOB;
  UPDATE store_state SET stamp = randomblob(16);
  PRAGMA user_version = 3;
)sql";

// Of what was erased before there was table `erased`, nothing is known.
constexpr char kSchemaOfVersion4[] = R"sql(
  ALTER TABLE reference ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
  ALTER TABLE artifact ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
  ALTER TABLE store_state ADD COLUMN remembered_from INTEGER NOT NULL DEFAULT 0;
  UPDATE reference SET generation = (SELECT generation FROM store_state);
  UPDATE artifact SET generation = (SELECT generation FROM store_state);
  UPDATE store_state SET remembered_from = generation;
  CREATE INDEX reference_by_generation ON reference (generation);
  CREATE INDEX artifact_by_generation ON artifact (generation);
  CREATE TABLE erased (
    kind INTEGER NOT NULL,
    collection TEXT NOT NULL,
    name TEXT NOT NULL,
    generation INTEGER NOT NULL,
    PRIMARY KEY (kind, collection, name)) WITHOUT ROWID;
  CREATE INDEX erased_by_generation ON erased (generation);
  PRAGMA user_version = 4;
)sql";

// wal_autocheckpoint 1: the log is folded into the file after each change. By SQLite's default of 1000 pages a small
// store would live in its log alone, and a copy of the file be empty. It costs a change one more sync of the file.
constexpr char kSetUpLog[] =
    "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA wal_autocheckpoint = 1";

constexpr char kProbeOfState[] = "SELECT generation, stamp, remembered_from FROM store_state";

// Empty: there is none.
absl::StatusOr<std::string> PageProblem(SqliteConnection& connection, const char* pragma) {
  SqliteStatement check(connection);
  C3PO_RETURN_IF_ERROR(check.Prepare(pragma));
  C3PO_ASSIGN_OR_RETURN(const bool row, check.Step("cannot check the pages"));
  return row && check.Bytes(0) == "ok" ? "" : absl::StrCat("corrupt: ", check.Bytes(0));
}

// Indexes hold nothing that the tables do not: where only they are wrong, they are made anew, and what was wrong is
// returned. Rows are looked at when they are read.
absl::StatusOr<std::string> CheckPages(SqliteConnection& connection) {
  const auto lost = [&](absl::string_view problem) {
    return absl::DataLossError(absl::StrCat("store ", connection.path(), ": ", problem));
  };
  C3PO_ASSIGN_OR_RETURN(std::string index_problem, PageProblem(connection, "PRAGMA integrity_check(1)"));
  if (index_problem.empty()) return index_problem;
  C3PO_ASSIGN_OR_RETURN(const std::string table_problem, PageProblem(connection, "PRAGMA quick_check(1)"));
  if (!table_problem.empty()) return lost(table_problem);
  constexpr absl::string_view kAction = "cannot rebuild the indexes";
  const absl::Status rebuilt = connection.Transaction(kAction, [&] { return connection.Execute("REINDEX", kAction); });
  if (absl::IsInternal(rebuilt)) return lost(absl::StrCat(index_problem, "; ", rebuilt.message()));
  C3PO_RETURN_IF_ERROR(rebuilt);
  C3PO_ASSIGN_OR_RETURN(const std::string left, PageProblem(connection, "PRAGMA integrity_check(1)"));
  if (!left.empty()) return lost(left);
  return index_problem;
}

}  // namespace

absl::StatusOr<std::string> PrepareSchema(SqliteConnection& connection, SqliteReferences& references,
                                          SqliteArtifacts& artifacts) {
  C3PO_ASSIGN_OR_RETURN(const int64_t application_id, connection.QueryInteger("PRAGMA application_id"));
  C3PO_ASSIGN_OR_RETURN(const int64_t version, connection.QueryInteger("PRAGMA user_version"));
  C3PO_ASSIGN_OR_RETURN(const int64_t objects, connection.QueryInteger("SELECT count(*) FROM sqlite_master"));
  const bool blank = application_id == 0 && version == 0 && objects == 0;
  if (!blank && application_id != kApplicationId) {
    return absl::InvalidArgumentError(
        absl::StrCat("store ", connection.path(), ": the database of another application"));
  }
  if (!blank && (version < 1 || version > kSchemaVersion)) {
    return absl::FailedPreconditionError(absl::StrCat("store ", connection.path(), ": has schema version ", version,
                                                      ", this build reads 1 to ", kSchemaVersion));
  }
  C3PO_RETURN_IF_ERROR(connection.Execute(kSetUpLog, "cannot set up the write-ahead log"));
  // What a process that was killed left in the log. Where somebody reads the file it waits for the next change.
  connection.FoldLog();
  std::string index_problem;
  if (!blank) {
    C3PO_ASSIGN_OR_RETURN(index_problem, CheckPages(connection));
  }
  if (version == kSchemaVersion) return index_problem;
  // One transaction: a process that is killed leaves the old version or the new one.
  constexpr absl::string_view kAction = "cannot create the schema";
  C3PO_RETURN_IF_ERROR(connection.Transaction(kAction, [&]() -> absl::Status {
    if (blank) C3PO_RETURN_IF_ERROR(connection.Execute(kSchema, kAction));
    if (version < 2) C3PO_RETURN_IF_ERROR(connection.Execute(kSchemaOfVersion2, kAction));
    if (version < 3) {
      C3PO_RETURN_IF_ERROR(connection.Execute(kSchemaOfVersion3, kAction));
      C3PO_RETURN_IF_ERROR(references.AddChecksums());
      C3PO_RETURN_IF_ERROR(artifacts.AddChecksums());
    }
    return connection.Execute(kSchemaOfVersion4, kAction);
  }));
  connection.FoldAndCutLog();  // An upgrade writes every row: its log is as large as the file.
  return index_problem;
}

absl::Status ProbeTables(SqliteConnection& connection) {
  std::vector<const char*> statements(SqliteReferences::Probes().begin(), SqliteReferences::Probes().end());
  statements.insert(statements.end(), {SqliteArtifacts::Probe(), SqliteErasures::Probe(), kProbeOfState});
  for (const char* statement : statements) C3PO_RETURN_IF_ERROR(SqliteStatement(connection).Prepare(statement));
  return absl::OkStatus();
}

}  // namespace c3po
