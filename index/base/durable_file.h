#ifndef C3PO_INDEX_BASE_DURABLE_FILE_H_
#define C3PO_INDEX_BASE_DURABLE_FILE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace c3po {

// Every function here is thread-safe and names the path in its errors: NotFound, PermissionDenied, ResourceExhausted
// (disk full, quota, size limit), FailedPrecondition (a part of the path is not a folder) or Unavailable (other I/O
// errors).

// Replaces `path` as a whole: writes PATH.tmp, syncs it, renames it over `path` and syncs the folder. After a crash at
// any moment `path` holds its old contents or the new ones. One writer per path at a time; on an error PATH.tmp is
// removed.
absl::Status WriteFileDurably(const std::string& path, absl::string_view contents);

// The whole file.
absl::StatusOr<std::string> ReadWholeFile(const std::string& path);

// Makes the names in the folder that holds `path` survive a power cut.
absl::Status SyncFolderOf(const std::string& path);

// The status of a failed system call: "PATH: ACTION: strerror(error_number)".
absl::Status FileError(absl::string_view path, absl::string_view action, int error_number);

}  // namespace c3po

#endif  // C3PO_INDEX_BASE_DURABLE_FILE_H_
