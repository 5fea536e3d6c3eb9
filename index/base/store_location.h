#ifndef C3PO_INDEX_BASE_STORE_LOCATION_H_
#define C3PO_INDEX_BASE_STORE_LOCATION_H_

#include <string>

#include "absl/strings/string_view.h"

namespace c3po {

// Where a store is, as it may be shown and logged. Of a database, which PostgreSQL's clients name
// "postgresql://USER:PASSWORD@HOST/NAME" or "postgres://...", the password of the user part and the values of
// parameters `password` and `sslpassword` are "***". A path stays as it is. Pure and thread-safe.
std::string WithoutPassword(absl::string_view location);

}  // namespace c3po

#endif  // C3PO_INDEX_BASE_STORE_LOCATION_H_
