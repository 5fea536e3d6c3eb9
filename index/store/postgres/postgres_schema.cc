#include "index/store/postgres/postgres_schema.h"

#include <iterator>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

// Of a schema without tables; then what each version adds to the one before. Numbers of embeddings and pathways do not
// compress, so they are not tried to be.
constexpr const char* kSteps[] = {
    R"sql(
  CREATE TABLE state (
    only_row int8 PRIMARY KEY CHECK (only_row = 1),
    schema_version int8 NOT NULL,
    store_id bytea NOT NULL,
    generation int8 NOT NULL,
    remembered_from int8 NOT NULL);
  INSERT INTO state VALUES (1, 1, decode(replace(gen_random_uuid()::text, '-', ''), 'hex'), 0, 0);
  CREATE TABLE reference (
    sequence int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id bytea NOT NULL UNIQUE,
    collection bytea NOT NULL,
    prompt bytea NOT NULL,
    answer bytea NOT NULL,
    choices bytea NOT NULL,
    metadata bytea NOT NULL,
    successful int8 NOT NULL,
    model_digest bytea NOT NULL,
    embedder_digest bytea NOT NULL,
    embedding bytea NOT NULL,
    pathway_layers int8 NOT NULL,
    pathway_experts int8 NOT NULL,
    pathway bytea NOT NULL,
    created_unix_seconds int8 NOT NULL,
    checksum bytea NOT NULL,
    generation int8 NOT NULL);
  ALTER TABLE reference ALTER COLUMN embedding SET STORAGE EXTERNAL, ALTER COLUMN pathway SET STORAGE EXTERNAL;
  CREATE INDEX reference_by_collection ON reference (collection, id);
  CREATE INDEX reference_by_generation ON reference (generation);
  CREATE TABLE artifact (
    collection bytea NOT NULL,
    name bytea NOT NULL,
    value bytea NOT NULL,
    checksum bytea NOT NULL,
    generation int8 NOT NULL,
    PRIMARY KEY (collection, name));
  ALTER TABLE artifact ALTER COLUMN value SET STORAGE EXTERNAL;
  CREATE INDEX artifact_by_name ON artifact (name);
  CREATE INDEX artifact_by_generation ON artifact (generation);
  CREATE TABLE erased (
    kind int8 NOT NULL,
    collection bytea NOT NULL,
    name bytea NOT NULL,
    generation int8 NOT NULL,
    PRIMARY KEY (kind, collection, name));
  CREATE INDEX erased_by_generation ON erased (generation);
  CREATE TABLE change (generation int8 PRIMARY KEY, token bytea NOT NULL UNIQUE);
)sql",
};
constexpr int64_t kSchemaVersion = std::size(kSteps);

constexpr char kFind[] =
    "SELECT (SELECT count(*) FROM pg_namespace WHERE nspname = $1), "
    "(SELECT count(*) FROM pg_namespace WHERE nspname = $1 AND has_schema_privilege(oid, 'USAGE')), count(*) FROM "
    "pg_class JOIN pg_namespace ON "
    "relnamespace = pg_namespace.oid WHERE nspname = $1 AND relname = 'state' AND relkind = 'r'";

// A statement over no rows that names every column that others name.
constexpr char kProbe[] =
    "SELECT (SELECT count(*) FROM (SELECT sequence, id, collection, prompt, answer, choices, metadata, successful, "
    "model_digest, embedder_digest, embedding, pathway_layers, pathway_experts, pathway, created_unix_seconds, "
    "checksum, generation FROM reference LIMIT 0) AS r), "
    "(SELECT count(*) FROM (SELECT collection, name, value, checksum, generation FROM artifact LIMIT 0) AS a), "
    "(SELECT count(*) FROM (SELECT kind, collection, name, generation FROM erased LIMIT 0) AS e), "
    "(SELECT count(*) FROM (SELECT generation, token FROM change LIMIT 0) AS c)";

struct Found {
  bool schema = false;
  int64_t version = 0;  // 0: there are no tables.
};

absl::StatusOr<Found> Find(PostgresConnection& session, const std::string& schema) {
  constexpr absl::string_view kAction = "cannot read the schema";
  C3PO_ASSIGN_OR_RETURN(const PostgresRows rows, session.Run(kFind, PostgresValues().Text(schema), kAction));
  Found found = {rows.Integer(0, 0) > 0, 0};
  if (found.schema && rows.Integer(0, 1) == 0) {
    return absl::PermissionDeniedError(
        absl::StrCat("store ", session.name(), ": the user has no right to use schema ", schema));
  }
  if (rows.Integer(0, 2) == 0) return found;
  C3PO_ASSIGN_OR_RETURN(const PostgresRows state,
                        session.Run("SELECT schema_version FROM state", PostgresValues(), kAction));
  if (state.rows() != 1) {
    return absl::DataLossError(absl::StrCat("store ", session.name(), ": table state has ", state.rows(), " rows"));
  }
  found.version = state.Integer(0, 0);
  return found;
}

// Returns whether there were no tables.
absl::StatusOr<bool> MakeOrUpgrade(PostgresConnection& session, const std::string& schema) {
  constexpr absl::string_view kAction = "cannot make the schema";
  C3PO_RETURN_IF_ERROR(session
                           .Run("SELECT pg_advisory_xact_lock(hashtextextended('c3po store ' || $1, 0))",
                                PostgresValues().Text(schema), kAction)
                           .status());
  C3PO_ASSIGN_OR_RETURN(const Found found, Find(session, schema));  // Another server may have been first.
  if (!found.schema) C3PO_RETURN_IF_ERROR(session.Execute(absl::StrCat("CREATE SCHEMA \"", schema, "\""), kAction));
  for (int64_t version = found.version; version < kSchemaVersion; ++version) {
    C3PO_RETURN_IF_ERROR(session.Execute(kSteps[version], kAction));
    C3PO_RETURN_IF_ERROR(session.Execute(absl::StrCat("UPDATE state SET schema_version = ", version + 1), kAction));
  }
  return found.version == 0;
}

}  // namespace

absl::StatusOr<bool> PrepareSchema(PostgresConnection& session, const std::string& schema) {
  constexpr absl::string_view kAction = "cannot make the schema";
  C3PO_ASSIGN_OR_RETURN(const Found found, Find(session, schema));
  if (found.version > kSchemaVersion) {
    return absl::FailedPreconditionError(absl::StrCat("store ", session.name(), ": schema ", schema, " has version ",
                                                      found.version, ", this build reads 1 to ", kSchemaVersion));
  }
  if (found.version == kSchemaVersion) return false;
  C3PO_RETURN_IF_ERROR(session.Execute("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE", kAction));
  const absl::StatusOr<bool> made = MakeOrUpgrade(session, schema);
  if (absl::IsPermissionDenied(made.status())) {
    return absl::PermissionDeniedError(absl::StrCat(made.status().message(), "; let the owner of schema ", schema,
                                                    " open the store once (c3pod prepare-store URL)"));
  }
  C3PO_RETURN_IF_ERROR(made.status());
  C3PO_RETURN_IF_ERROR(session.CommitTransaction(kAction).status);
  return *made;
}

absl::StatusOr<PostgresState> ReadState(PostgresConnection& session, bool for_change) {
  const char* sql = for_change ? "SELECT store_id, generation, remembered_from FROM state FOR UPDATE"
                               : "SELECT store_id, generation, remembered_from FROM state";
  C3PO_ASSIGN_OR_RETURN(const PostgresRows rows, session.Run(sql, PostgresValues(), "cannot read the state"));
  if (rows.rows() != 1) {
    return absl::DataLossError(absl::StrCat("store ", session.name(), ": table state has ", rows.rows(), " rows"));
  }
  return PostgresState{rows.Text(0, 0), rows.Integer(0, 1), rows.Integer(0, 2)};
}

absl::Status ProbeTables(PostgresConnection& session) {
  return session.Run(kProbe, PostgresValues(), "cannot look at the tables").status();
}

}  // namespace c3po
