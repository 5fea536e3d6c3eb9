#include "index/store/postgres/postgres_artifacts.h"

#include <map>
#include <utility>

#include "index/base/status_macros.h"
#include "index/store/artifact_row.h"

namespace c3po {
namespace {

constexpr size_t kChunkBytes = size_t{32} << 20;  // Of one statement; an artifact has half of that at most.

#define C3PO_NOTE_ERASED                                                                                        \
  " RETURNING artifact.collection, artifact.name) INSERT INTO erased SELECT 1, collection, name, $1 FROM gone " \
  "ON CONFLICT (kind, collection, name) DO UPDATE SET generation = excluded.generation"
constexpr char kRemove[] =
    "WITH gone AS (DELETE FROM artifact USING unnest($2::bytea[], $3::bytea[]) AS wanted (collection, name) WHERE "
    "artifact.collection = wanted.collection AND artifact.name = wanted.name" C3PO_NOTE_ERASED;
// Through the key: names from "reference/ID/" up to, not including, the next character after '/'.
constexpr char kRemoveOfReferences[] =
    "WITH gone AS (DELETE FROM artifact USING reference WHERE reference.id = ANY ($2::bytea[]) AND "
    "artifact.collection = reference.collection AND artifact.name >= 'reference/'::bytea || reference.id || '/'::bytea "
    "AND artifact.name < 'reference/'::bytea || reference.id || '0'::bytea" C3PO_NOTE_ERASED;
constexpr char kRemoveOfCollection[] = "WITH gone AS (DELETE FROM artifact WHERE collection = $2" C3PO_NOTE_ERASED;
#undef C3PO_NOTE_ERASED
constexpr char kRemember[] =
    "DELETE FROM erased USING unnest($1::bytea[], $2::bytea[]) AS put (collection, name) WHERE erased.kind = 1 AND "
    "erased.collection = put.collection AND erased.name = put.name";
constexpr char kPut[] =
    "INSERT INTO artifact (collection, name, value, checksum, generation) SELECT collection, name, value, checksum, $1 "
    "FROM unnest($2::bytea[], $3::bytea[], $4::bytea[], $5::bytea[]) AS put (collection, name, value, checksum) "
    "ON CONFLICT (collection, name) DO UPDATE SET value = excluded.value, checksum = excluded.checksum, "
    "generation = excluded.generation";
constexpr char kSelect[] =
    "SELECT collection, name, value, checksum FROM artifact WHERE collection = $1 AND name >= $2 AND "
    "substring(name FROM 1 FOR length($2)) = $2 AND "
    "substring(name FROM greatest(1, length(name) - length($3) + 1)) = $3 ORDER BY name";
constexpr char kSelectByName[] =
    "SELECT collection, name, value, checksum FROM artifact WHERE name = $1 ORDER BY collection";
constexpr char kSelectOne[] =
    "SELECT collection, name, value, checksum FROM artifact WHERE collection = $1 AND name = $2";
constexpr char kSelectChanged[] =
    "SELECT collection, name, value, checksum FROM artifact WHERE generation > $1 AND generation <= $2";

Artifact ArtifactOf(const PostgresRows& row) { return {row.Text(0, 0), row.Text(0, 1), row.Text(0, 2)}; }

}  // namespace

bool PostgresArtifacts::IsWhole(const Artifact& artifact, absl::string_view checksum) {
  if (checksum == ChecksumOf(artifact)) return true;
  damage_.Note(DamagedRow::Kind::kArtifact, artifact.collection, artifact.name, "it does not match its checksum");
  return false;
}

absl::StatusOr<int64_t> PostgresArtifacts::Put(absl::Span<const Artifact> artifacts, int64_t generation) {
  // One statement cannot write a row twice: of several for a name, the last is what is there in the end.
  std::map<std::pair<absl::string_view, absl::string_view>, const Artifact*> last;
  for (const Artifact& artifact : artifacts) last[{artifact.collection, artifact.name}] = &artifact;
  std::vector<const Artifact*> removed, chunk;
  size_t bytes = 0;
  int64_t changed = 0;
  for (const auto& [name, artifact] : last) {
    if (artifact->value.empty()) {
      removed.push_back(artifact);
      continue;
    }
    if (bytes + artifact->value.size() > kChunkBytes) {
      C3PO_RETURN_IF_ERROR(PutChunk(chunk, generation));
      chunk.clear();
      bytes = 0;
    }
    chunk.push_back(artifact);
    bytes += artifact->value.size();
    ++changed;
  }
  if (!chunk.empty()) C3PO_RETURN_IF_ERROR(PutChunk(chunk, generation));
  if (removed.empty()) return changed;
  C3PO_ASSIGN_OR_RETURN(const int64_t gone, Remove(removed, generation));
  return changed + gone;
}

absl::Status PostgresArtifacts::PutChunk(absl::Span<const Artifact* const> artifacts, int64_t generation) {
  std::vector<absl::string_view> collections, names, values;
  std::vector<std::string> checksums;
  for (const Artifact* artifact : artifacts) {
    collections.push_back(artifact->collection);
    names.push_back(artifact->name);
    values.push_back(artifact->value);
    checksums.push_back(ChecksumOf(*artifact));
  }
  constexpr absl::string_view kAction = "cannot store artifacts";
  PostgresValues all;
  all.Integer(generation).BytesArray(collections).BytesArray(names).BytesArray(values).BytesArray(checksums);
  C3PO_RETURN_IF_ERROR(session_.Run(kPut, all, kAction).status());
  return session_.Run(kRemember, PostgresValues().BytesArray(collections).BytesArray(names), kAction).status();
}

absl::StatusOr<int64_t> PostgresArtifacts::Remove(absl::Span<const Artifact* const> artifacts, int64_t generation) {
  std::vector<absl::string_view> collections, names;
  for (const Artifact* artifact : artifacts) {
    collections.push_back(artifact->collection);
    names.push_back(artifact->name);
  }
  PostgresValues all;
  all.Integer(generation).BytesArray(collections).BytesArray(names);
  C3PO_ASSIGN_OR_RETURN(const PostgresRows rows, session_.Run(kRemove, all, "cannot remove artifacts"));
  return rows.rows_changed();
}

absl::StatusOr<int64_t> PostgresArtifacts::ForgetReferences(absl::Span<const std::string> ids, int64_t generation) {
  C3PO_ASSIGN_OR_RETURN(const PostgresRows rows,
                        session_.Run(kRemoveOfReferences, PostgresValues().Integer(generation).BytesArray(ids),
                                     "cannot delete a reference's artifacts"));
  return rows.rows_changed();
}

absl::StatusOr<int64_t> PostgresArtifacts::DeleteCollection(absl::string_view collection, int64_t generation) {
  C3PO_ASSIGN_OR_RETURN(const PostgresRows rows,
                        session_.Run(kRemoveOfCollection, PostgresValues().Integer(generation).Bytes(collection),
                                     "cannot delete a collection's artifacts"));
  return rows.rows_changed();
}

absl::StatusOr<std::vector<Artifact>> PostgresArtifacts::Read(absl::string_view collection, absl::string_view prefix,
                                                              absl::string_view suffix) {
  std::vector<Artifact> artifacts;
  const PostgresValues values = PostgresValues().Bytes(collection).Bytes(prefix).Bytes(suffix);
  C3PO_RETURN_IF_ERROR(session_.Stream(kSelect, values, "cannot read artifacts", [&](const PostgresRows& row) {
    Artifact artifact = ArtifactOf(row);
    if (IsWhole(artifact, row.Bytes(0, 3))) artifacts.push_back(std::move(artifact));
    return absl::OkStatus();
  }));
  return artifacts;
}

absl::StatusOr<std::vector<std::string>> PostgresArtifacts::CollectionsWith(absl::string_view name) {
  std::vector<std::string> collections;
  const auto take = [&](const PostgresRows& row) {
    const Artifact artifact = ArtifactOf(row);
    if (IsWhole(artifact, row.Bytes(0, 3))) collections.push_back(artifact.collection);
    return absl::OkStatus();
  };
  C3PO_RETURN_IF_ERROR(session_.Stream(kSelectByName, PostgresValues().Bytes(name), "cannot list artifacts", take));
  return collections;
}

absl::Status PostgresArtifacts::ReadChanged(const ChangePage& page, StoreChanges& changes) {
  const PostgresValues values = PostgresValues().Integer(page.from_start ? -1 : page.after).Integer(page.through);
  return session_.Stream(kSelectChanged, values, "cannot read artifacts", [&](const PostgresRows& row) {
    Artifact artifact = ArtifactOf(row);
    if (IsWhole(artifact, row.Bytes(0, 3))) changes.artifacts.push_back(std::move(artifact));
    return absl::OkStatus();
  });
}

absl::Status PostgresArtifacts::LookAt(absl::string_view collection, absl::string_view name) {
  return session_.Stream(kSelectOne, PostgresValues().Bytes(collection).Bytes(name), "cannot read a damaged row",
                         [&](const PostgresRows& row) {
                           (void)IsWhole(ArtifactOf(row), row.Bytes(0, 3));
                           return absl::OkStatus();
                         });
}

}  // namespace c3po
