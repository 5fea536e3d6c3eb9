#ifndef C3PO_SERVER_RPC_DOORS_HTTP_IGNORED_FIELDS_H_
#define C3PO_SERVER_RPC_DOORS_HTTP_IGNORED_FIELDS_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace c3po {

// The log's line `fields_ignored`, for fields of a request that nobody here knows: at most one a second, with eight
// names, each cut at 64 bytes. Nothing where there are none. Thread-safe.
void LogIgnoredFields(const std::vector<std::string>& fields, absl::string_view request_id);

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_DOORS_HTTP_IGNORED_FIELDS_H_
