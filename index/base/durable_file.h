#ifndef C3PO_INDEX_BASE_DURABLE_FILE_H_
#define C3PO_INDEX_BASE_DURABLE_FILE_H_

#include <sys/types.h>

#include <cstdint>
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
// removed. Whatever PATH.tmp was before, such as a link or a FIFO, is removed first and never written to.
absl::Status WriteFileDurably(const std::string& path, absl::string_view contents);

// The whole of a regular file, behind a link or not. Never waits, and allocates nothing before kind and size are known:
// InvalidArgument: a folder, FIFO, socket or device, or more than `bytes_max` bytes; the message says which. A file
// that is cut while it is read gives what was left of it.
absl::StatusOr<std::string> ReadWholeFile(const std::string& path, int64_t bytes_max);

// The InvalidArgument that says what a file of this st_mode is: "PATH: is a FIFO, not a regular file".
absl::Status NotRegularFile(const std::string& path, mode_t mode);

// Makes the names in the folder that holds `path` survive a power cut.
absl::Status SyncFolderOf(const std::string& path);

// The status of a failed system call: "PATH: ACTION: strerror(error_number)".
absl::Status FileError(absl::string_view path, absl::string_view action, int error_number);

}  // namespace c3po

#endif  // C3PO_INDEX_BASE_DURABLE_FILE_H_
