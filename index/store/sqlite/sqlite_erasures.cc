#include "index/store/sqlite/sqlite_erasures.h"

#include <string>

#include "index/base/status_macros.h"

namespace c3po {
namespace {

// kind: 0, a reference, whose collection is left empty, as its id is unique without; 1, an artifact.
constexpr char kNoteReference[] =
    "INSERT OR REPLACE INTO erased SELECT 0, '', id, ?1 FROM reference WHERE id = ?2 AND ?3 = ''";
constexpr char kNoteCollection[] =
    "INSERT OR REPLACE INTO erased SELECT 0, '', id, ?1 FROM reference WHERE collection = ?2 AND ?3 = ''";
constexpr char kNoteArtifact[] =
    "INSERT OR REPLACE INTO erased SELECT 1, collection, name, ?1 FROM artifact WHERE collection = ?2 AND name = ?3";
constexpr char kNoteArtifactsOfReference[] =
    "INSERT OR REPLACE INTO erased SELECT 1, collection, name, ?1 FROM artifact WHERE "
    "collection = (SELECT collection FROM reference WHERE id = ?2) AND "
    "name >= 'reference/' || ?2 || '/' AND name < 'reference/' || ?2 || '0' AND ?3 = ''";
constexpr char kNoteArtifactsOfCollection[] =
    "INSERT OR REPLACE INTO erased SELECT 1, collection, name, ?1 FROM artifact WHERE collection = ?2 AND ?3 = ''";
constexpr char kForget[] = "DELETE FROM erased WHERE kind = ?1 AND collection = ?2 AND name = ?3";
constexpr char kForgetThrough[] = "DELETE FROM erased WHERE generation <= ?1";
constexpr char kRememberFrom[] = "UPDATE store_state SET remembered_from = ?1";
constexpr char kNthOldest[] = "SELECT generation FROM erased ORDER BY generation LIMIT 1 OFFSET ?1";
constexpr char kSelect[] =
    "SELECT kind, collection, name FROM erased WHERE generation > ?1 AND generation <= ?2 ORDER BY kind, collection, "
    "name";
#define C3PO_CHANGES_AFTER                                           \
  "(SELECT generation FROM reference WHERE generation > ?1 "         \
  "UNION ALL SELECT generation FROM artifact WHERE generation > ?1 " \
  "UNION ALL SELECT generation FROM erased WHERE generation > ?1)"
constexpr char kBeyond[] = "SELECT generation FROM " C3PO_CHANGES_AFTER " ORDER BY generation LIMIT 1 OFFSET ?2";
constexpr char kIsAnyBefore[] = "SELECT 1 FROM " C3PO_CHANGES_AFTER " WHERE generation < ?2 LIMIT 1";
#undef C3PO_CHANGES_AFTER

}  // namespace

const char* SqliteErasures::Probe() { return "SELECT kind, collection, name, generation FROM erased"; }

absl::Status SqliteErasures::Run(const char* sql, int64_t generation, absl::string_view first,
                                 absl::string_view second) {
  if (!notes_) return absl::OkStatus();
  SqliteStatement statement(connection_);
  C3PO_RETURN_IF_ERROR(statement.Prepare(sql));
  statement.Bind(1, generation);
  statement.Bind(2, first);
  statement.Bind(3, second);
  return statement.Step("cannot note what is erased").status();
}

absl::Status SqliteErasures::NoteReference(absl::string_view id, int64_t generation) {
  return Run(kNoteReference, generation, id);
}

absl::Status SqliteErasures::NoteCollection(absl::string_view collection, int64_t generation) {
  return Run(kNoteCollection, generation, collection);
}

absl::Status SqliteErasures::NoteArtifact(absl::string_view collection, absl::string_view name, int64_t generation) {
  return Run(kNoteArtifact, generation, collection, name);
}

absl::Status SqliteErasures::NoteArtifactsOfReference(absl::string_view id, int64_t generation) {
  return Run(kNoteArtifactsOfReference, generation, id);
}

absl::Status SqliteErasures::NoteArtifactsOfCollection(absl::string_view collection, int64_t generation) {
  return Run(kNoteArtifactsOfCollection, generation, collection);
}

absl::Status SqliteErasures::ForgetReference(absl::string_view id) { return Run(kForget, 0, "", id); }

absl::Status SqliteErasures::ForgetArtifact(absl::string_view collection, absl::string_view name) {
  return Run(kForget, 1, collection, name);
}

absl::Status SqliteErasures::ForgetAll(int64_t generation) {
  notes_ = false;
  return ForgetThrough(generation);
}

absl::Status SqliteErasures::ForgetThrough(int64_t generation) {
  for (const char* sql : {kForgetThrough, kRememberFrom}) {
    SqliteStatement statement(connection_);
    C3PO_RETURN_IF_ERROR(statement.Prepare(sql));
    statement.Bind(1, generation);
    C3PO_RETURN_IF_ERROR(statement.Step("cannot forget what was erased").status());
  }
  return absl::OkStatus();
}

absl::Status SqliteErasures::ForgetBeyond(int64_t rows_max) {
  C3PO_ASSIGN_OR_RETURN(const int64_t rows, connection_.QueryInteger("SELECT count(*) FROM erased"));
  if (rows <= rows_max) return absl::OkStatus();
  SqliteStatement oldest(connection_);
  C3PO_RETURN_IF_ERROR(oldest.Prepare(kNthOldest));
  oldest.Bind(1, rows - rows_max - 1);
  C3PO_ASSIGN_OR_RETURN(const bool row, oldest.Step("cannot count what is erased"));
  const int64_t through = row ? oldest.Integer(0) : 0;
  oldest.Reset();
  return ForgetThrough(through);
}

absl::StatusOr<int64_t> SqliteErasures::RememberedFrom() const {
  return connection_.QueryInteger("SELECT remembered_from FROM store_state");
}

absl::StatusOr<ChangePage> SqliteErasures::PageAfter(int64_t after, int64_t latest, int limit) const {
  constexpr absl::string_view kAction = "cannot look for changes";
  SqliteStatement select(connection_), before(connection_);
  C3PO_RETURN_IF_ERROR(select.Prepare(kBeyond));
  select.Bind(1, after);
  select.Bind(2, int64_t{limit});
  C3PO_ASSIGN_OR_RETURN(const bool row, select.Step(kAction));
  if (!row) return PageUpTo(after, latest, 0, false);
  const int64_t beyond = select.Integer(0);
  C3PO_RETURN_IF_ERROR(before.Prepare(kIsAnyBefore));
  before.Bind(1, after);
  before.Bind(2, beyond);
  C3PO_ASSIGN_OR_RETURN(const bool any_before, before.Step(kAction));
  return PageUpTo(after, latest, beyond, any_before);
}

absl::Status SqliteErasures::Read(const ChangePage& page, StoreChanges& changes) const {
  SqliteStatement select(connection_);
  C3PO_RETURN_IF_ERROR(select.Prepare(kSelect));
  select.Bind(1, page.after);
  select.Bind(2, page.through);
  while (true) {
    C3PO_ASSIGN_OR_RETURN(const bool row, select.Step("cannot read what is erased"));
    if (!row) return absl::OkStatus();
    if (select.Integer(0) == 0) {
      changes.erased.push_back(select.Text(2));
    } else {
      changes.artifacts.push_back({select.Text(1), select.Text(2), ""});
    }
  }
}

}  // namespace c3po
