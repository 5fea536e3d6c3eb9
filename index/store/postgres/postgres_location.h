#ifndef C3PO_INDEX_STORE_POSTGRES_POSTGRES_LOCATION_H_
#define C3PO_INDEX_STORE_POSTGRES_POSTGRES_LOCATION_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace c3po {

// Where a store's database lies, as a URL of libpq's says it
// (postgresql.org/docs/15/libpq-connect.html, section 34.1.1.2), with one parameter of its own:
//   postgresql://[USER[:PASSWORD]@][HOST[:PORT][,...]][/DATABASE][?PARAMETER=VALUE&...]
//   c3po_schema=NAME   the schema that holds the tables, of lower case letters, digits and _; default c3po
// What the URL leaves out, libpq takes from its environment: PGHOST, PGUSER, PGPASSWORD, PGPASSFILE, PGSSLMODE and
// others. A plain value.
struct PostgresLocation {
  // InvalidArgument: no such URL. Nothing of the URL is in the message, as it may hold a password.
  static absl::StatusOr<PostgresLocation> Parse(const std::string& url);

  std::string name;  // postgresql://HOST:PORT/DATABASE, for messages: neither user nor password.
  std::string schema = "c3po";
  std::vector<std::pair<std::string, std::string>> parameters;  // libpq's, of the URL. May hold a password.
};

}  // namespace c3po

#endif  // C3PO_INDEX_STORE_POSTGRES_POSTGRES_LOCATION_H_
