#ifndef C3PO_INDEX_STORE_SQLITE_STORE_TRACES_H_
#define C3PO_INDEX_STORE_SQLITE_STORE_TRACES_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace c3po {

// Before the file `path` is opened, and made where it is absent: why the new store may not be what was meant, which
// ReferenceStore::empty_problem() tells. Empty: the file holds something, or there is no trace of a store. Traces are
// its write-ahead log and `trace_folders`, where they hold something.
// DataLoss: the file has 0 bytes and there is a trace: a store was cut.
absl::StatusOr<std::string> LookForCutStore(const std::string& path, const std::vector<std::string>& trace_folders);

}  // namespace c3po

#endif  // C3PO_INDEX_STORE_SQLITE_STORE_TRACES_H_
