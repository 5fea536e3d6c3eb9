#ifndef C3PO_INDEX_STORE_POSTGRES_POSTGRES_CHANGES_H_
#define C3PO_INDEX_STORE_POSTGRES_POSTGRES_CHANGES_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "index/store/postgres/noted_damage.h"
#include "index/store/postgres/postgres_connection.h"
#include "index/store/postgres/postgres_schema.h"
#include "index/store/reference_store.h"

namespace c3po {

// What changed since a generation, from the tables `reference`, `artifact` and `erased`. Errors: PostgresConnection's.

// Within a transaction that sees one state throughout. ReferenceStore::ChangesSince says what it returns.
absl::StatusOr<StoreChanges> ReadChanges(PostgresConnection& session, NotedDamage& damage, int64_t after, int limit);

// Within the transaction of a change: forgets the oldest erasures, generation by generation, until about `rows_max` are
// left.
absl::Status ForgetErasuresBeyond(PostgresConnection& session, int64_t rows_max);

}  // namespace c3po

#endif  // C3PO_INDEX_STORE_POSTGRES_POSTGRES_CHANGES_H_
