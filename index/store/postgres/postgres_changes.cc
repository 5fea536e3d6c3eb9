#include "index/store/postgres/postgres_changes.h"

#include <string>

#include "index/base/status_macros.h"
#include "index/store/artifact_row.h"
#include "index/store/change_page.h"
#include "index/store/postgres/postgres_artifacts.h"
#include "index/store/postgres/postgres_references.h"

namespace c3po {
namespace {

#define C3PO_CHANGES_AFTER                                           \
  "(SELECT generation FROM reference WHERE generation > $1 "         \
  "UNION ALL SELECT generation FROM artifact WHERE generation > $1 " \
  "UNION ALL SELECT generation FROM erased WHERE generation > $1) AS changes"
constexpr char kBeyond[] = "SELECT generation FROM " C3PO_CHANGES_AFTER " ORDER BY generation LIMIT 1 OFFSET $2";
constexpr char kIsAnyBefore[] = "SELECT 1 FROM " C3PO_CHANGES_AFTER " WHERE generation < $2 LIMIT 1";
#undef C3PO_CHANGES_AFTER
constexpr char kSelectErased[] =
    "SELECT kind, collection, name FROM erased WHERE generation > $1 AND generation <= $2 ORDER BY kind, collection, "
    "name";
constexpr char kFirstToForget[] = "SELECT generation FROM erased ORDER BY generation DESC LIMIT 1 OFFSET $1";
constexpr char kForget[] =
    "WITH forgotten AS (DELETE FROM erased WHERE generation <= $1) UPDATE state SET remembered_from = $1";

absl::StatusOr<ChangePage> PageAfter(PostgresConnection& session, int64_t after, int64_t latest, int limit) {
  constexpr absl::string_view kAction = "cannot look for changes";
  C3PO_ASSIGN_OR_RETURN(const PostgresRows beyond,
                        session.Run(kBeyond, PostgresValues().Integer(after).Integer(limit), kAction));
  if (beyond.rows() == 0) return PageUpTo(after, latest, 0, false);
  C3PO_ASSIGN_OR_RETURN(
      const PostgresRows before,
      session.Run(kIsAnyBefore, PostgresValues().Integer(after).Integer(beyond.Integer(0, 0)), kAction));
  return PageUpTo(after, latest, beyond.Integer(0, 0), before.rows() > 0);
}

absl::Status ReadErased(PostgresConnection& session, const ChangePage& page, StoreChanges& changes) {
  const PostgresValues values = PostgresValues().Integer(page.after).Integer(page.through);
  C3PO_ASSIGN_OR_RETURN(const PostgresRows rows, session.Run(kSelectErased, values, "cannot read what is erased"));
  for (int i = 0; i < rows.rows(); ++i) {
    if (rows.Integer(i, 0) == 0) {
      changes.erased.push_back(rows.Text(i, 2));
    } else {
      changes.artifacts.push_back({rows.Text(i, 1), rows.Text(i, 2), ""});
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<StoreChanges> ReadChanges(PostgresConnection& session, NotedDamage& damage, int64_t after, int limit) {
  C3PO_ASSIGN_OR_RETURN(const PostgresState state, ReadState(session));
  StoreChanges changes;
  changes.generation = state.generation;
  if (after >= state.generation) return changes;
  ChangePage page{after, state.generation, state.generation, /*from_start=*/true};
  if (after >= state.remembered_from) {
    C3PO_ASSIGN_OR_RETURN(page, PageAfter(session, after, state.generation, limit));
    C3PO_RETURN_IF_ERROR(ReadErased(session, page, changes));
  }
  C3PO_RETURN_IF_ERROR(PostgresReferences(session, damage).ReadChanged(page, changes));
  C3PO_RETURN_IF_ERROR(PostgresArtifacts(session, damage).ReadChanged(page, changes));
  SortArtifacts(changes.artifacts);
  changes.generation = page.through;
  changes.more = page.more();
  changes.from_start = page.from_start;
  return changes;
}

absl::Status ForgetErasuresBeyond(PostgresConnection& session, int64_t rows_max) {
  constexpr absl::string_view kAction = "cannot forget what was erased";
  C3PO_ASSIGN_OR_RETURN(const PostgresRows first,
                        session.Run(kFirstToForget, PostgresValues().Integer(rows_max), kAction));
  if (first.rows() == 0) return absl::OkStatus();
  return session.Run(kForget, PostgresValues().Integer(first.Integer(0, 0)), kAction).status();
}

}  // namespace c3po
