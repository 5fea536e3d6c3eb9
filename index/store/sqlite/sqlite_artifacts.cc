#include "index/store/sqlite/sqlite_artifacts.h"

#include <utility>

#include "index/base/status_macros.h"
#include "index/store/artifact_row.h"

namespace c3po {
namespace {

constexpr char kSelectAll[] = "SELECT collection, name, value, checksum FROM artifact";
constexpr char kSelectOne[] = "SELECT value, checksum FROM artifact WHERE collection = ?1 AND name = ?2";
constexpr char kSelectByPrefix[] =
    "SELECT name, value, checksum FROM artifact WHERE collection = ?1 AND name >= ?2 AND "
    "substr(name, 1, length(?2)) = ?2 AND substr(name, max(1, length(name) - length(?3) + 1)) = ?3 ORDER BY name";
constexpr char kSelectByName[] =
    "SELECT collection, name, value, checksum FROM artifact WHERE name = ?1 ORDER BY collection";
constexpr char kSelectChanged[] =
    "SELECT collection, name, value, checksum FROM artifact WHERE generation > ?1 AND generation <= ?2 ORDER BY "
    "collection, name";
constexpr char kPut[] =
    "INSERT OR REPLACE INTO artifact (collection, name, value, checksum, generation) VALUES (?1, ?2, ?3, ?4, ?5)";
constexpr char kDelete[] = "DELETE FROM artifact WHERE collection = ?1 AND name = ?2";
constexpr char kDeleteCollection[] = "DELETE FROM artifact WHERE collection = ?1";
constexpr char kSetChecksum[] = "UPDATE artifact SET checksum = ?1 WHERE collection = ?2 AND name = ?3";

// Through the key: names from "reference/ID/" up to, not including, the next character after '/'.
constexpr char kDeleteOfReference[] =
    "DELETE FROM artifact WHERE collection = (SELECT collection FROM reference WHERE id = ?1) AND "
    "name >= 'reference/' || ?1 || '/' AND name < 'reference/' || ?1 || '0'";

}  // namespace

const char* SqliteArtifacts::Probe() { return kPut; }

bool SqliteArtifacts::IsWhole(const Artifact& artifact, absl::string_view checksum) const {
  if (checksum == ChecksumOf(artifact)) return true;
  damaged_.Note(DamagedRow::Kind::kArtifact, artifact.collection, artifact.name, "it does not match its checksum");
  return false;
}

absl::Status SqliteArtifacts::Put(absl::Span<const Artifact> artifacts, int64_t generation) {
  SqliteStatement put(connection_), remove(connection_);
  C3PO_RETURN_IF_ERROR(put.Prepare(kPut));
  C3PO_RETURN_IF_ERROR(remove.Prepare(kDelete));
  for (const Artifact& artifact : artifacts) {
    C3PO_RETURN_IF_ERROR(artifact.value.empty() ? erasures_.NoteArtifact(artifact.collection, artifact.name, generation)
                                                : erasures_.ForgetArtifact(artifact.collection, artifact.name));
    SqliteStatement& statement = artifact.value.empty() ? remove : put;
    statement.Reset();
    statement.Bind(1, artifact.collection);
    statement.Bind(2, artifact.name);
    const std::string checksum = ChecksumOf(artifact);
    if (!artifact.value.empty()) {
      statement.BindBlob(3, artifact.value);
      statement.BindBlob(4, checksum);
      statement.Bind(5, generation);
    }
    C3PO_RETURN_IF_ERROR(statement.Step("cannot store an artifact").status());
    statement.Reset();
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Artifact>> SqliteArtifacts::Read(absl::string_view collection, absl::string_view prefix,
                                                            absl::string_view suffix) const {
  std::vector<Artifact> artifacts;
  SqliteStatement select(connection_);
  C3PO_RETURN_IF_ERROR(select.Prepare(kSelectByPrefix));
  select.Bind(1, collection);
  select.Bind(2, prefix);
  select.Bind(3, suffix);
  while (true) {
    C3PO_ASSIGN_OR_RETURN(const bool row, select.Step("cannot read artifacts"));
    if (!row) return artifacts;
    Artifact artifact{std::string(collection), select.Text(0), select.Text(1)};
    if (IsWhole(artifact, select.Bytes(2))) artifacts.push_back(std::move(artifact));
  }
}

absl::StatusOr<std::vector<std::string>> SqliteArtifacts::CollectionsWith(absl::string_view name) const {
  std::vector<std::string> collections;
  SqliteStatement select(connection_);
  C3PO_RETURN_IF_ERROR(select.Prepare(kSelectByName));
  select.Bind(1, name);
  while (true) {
    C3PO_ASSIGN_OR_RETURN(const bool row, select.Step("cannot list artifacts"));
    if (!row) return collections;
    const Artifact artifact{select.Text(0), select.Text(1), select.Text(2)};
    if (IsWhole(artifact, select.Bytes(3))) collections.push_back(artifact.collection);
  }
}

absl::Status SqliteArtifacts::ForgetReferences(absl::Span<const std::string> ids, int64_t generation) {
  SqliteStatement remove(connection_);
  C3PO_RETURN_IF_ERROR(remove.Prepare(kDeleteOfReference));
  for (const std::string& id : ids) {
    C3PO_RETURN_IF_ERROR(erasures_.NoteArtifactsOfReference(id, generation));
    remove.Reset();
    remove.Bind(1, id);
    C3PO_RETURN_IF_ERROR(remove.Step("cannot delete a reference's artifacts").status());
  }
  return absl::OkStatus();
}

absl::Status SqliteArtifacts::DeleteCollection(absl::string_view collection, int64_t generation) {
  C3PO_RETURN_IF_ERROR(erasures_.NoteArtifactsOfCollection(collection, generation));
  SqliteStatement remove(connection_);
  C3PO_RETURN_IF_ERROR(remove.Prepare(kDeleteCollection));
  remove.Bind(1, collection);
  return remove.Step("cannot delete a collection's artifacts").status();
}

absl::Status SqliteArtifacts::ReadChanged(const ChangePage& page, StoreChanges& changes) const {
  SqliteStatement select(connection_);
  C3PO_RETURN_IF_ERROR(select.Prepare(kSelectChanged));
  select.Bind(1, page.from_start ? int64_t{-1} : page.after);
  select.Bind(2, page.through);
  while (true) {
    C3PO_ASSIGN_OR_RETURN(const bool row, select.Step("cannot read artifacts"));
    if (!row) return absl::OkStatus();
    Artifact artifact{select.Text(0), select.Text(1), select.Text(2)};
    if (IsWhole(artifact, select.Bytes(3))) changes.artifacts.push_back(std::move(artifact));
  }
}

absl::Status SqliteArtifacts::LookAtAll() const {
  SqliteStatement select(connection_);
  C3PO_RETURN_IF_ERROR(select.Prepare(kSelectAll));
  while (true) {
    C3PO_ASSIGN_OR_RETURN(const bool row, select.Step("cannot read artifacts"));
    if (!row) return absl::OkStatus();
    IsWhole({select.Text(0), select.Text(1), select.Text(2)}, select.Bytes(3));
  }
}

absl::Status SqliteArtifacts::LookAt(absl::string_view collection, absl::string_view name) const {
  SqliteStatement select(connection_);
  C3PO_RETURN_IF_ERROR(select.Prepare(kSelectOne));
  select.Bind(1, collection);
  select.Bind(2, name);
  C3PO_ASSIGN_OR_RETURN(const bool row, select.Step("cannot read a damaged row"));
  if (row) IsWhole({std::string(collection), std::string(name), select.Text(0)}, select.Bytes(1));
  return absl::OkStatus();
}

absl::Status SqliteArtifacts::AddChecksums() {
  constexpr absl::string_view kAction = "cannot add checksums";
  struct Known {
    std::string collection, name, checksum;
  };
  std::vector<Known> rows;
  SqliteStatement select(connection_), update(connection_);
  C3PO_RETURN_IF_ERROR(select.Prepare(kSelectAll));
  C3PO_RETURN_IF_ERROR(update.Prepare(kSetChecksum));
  while (true) {
    C3PO_ASSIGN_OR_RETURN(const bool row, select.Step(kAction));
    if (!row) break;
    const Artifact artifact{select.Text(0), select.Text(1), select.Text(2)};
    rows.push_back({artifact.collection, artifact.name, ChecksumOf(artifact)});
  }
  for (const Known& row : rows) {
    update.Reset();
    update.BindBlob(1, row.checksum);
    update.Bind(2, row.collection);
    update.Bind(3, row.name);
    C3PO_RETURN_IF_ERROR(update.Step(kAction).status());
  }
  return absl::OkStatus();
}

}  // namespace c3po
