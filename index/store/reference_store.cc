#include "index/store/reference_store.h"

#include "absl/strings/match.h"
#include "index/store/postgres/postgres_reference_store.h"
#include "index/store/sqlite/sqlite_reference_store.h"

namespace c3po {

bool IsPostgresLocation(absl::string_view location) {
  return absl::StartsWith(location, "postgresql://") || absl::StartsWith(location, "postgres://");
}

absl::StatusOr<std::unique_ptr<ReferenceStore>> OpenReferenceStore(const std::string& location,
                                                                   const StoreOptions& options) {
  if (IsPostgresLocation(location)) return PostgresReferenceStore::Open(location, options);
  return SqliteReferenceStore::Open(location, options);
}

}  // namespace c3po
