#ifndef C3PO_INDEX_STORE_SQLITE_STORE_FILE_H_
#define C3PO_INDEX_STORE_SQLITE_STORE_FILE_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace c3po {

// The file of a store, held beside SQLite: locked, so that one process has it open, and compared with what its path
// leads to. Thread-safe, except NoteLog.
//
// The lock is flock(2) on the file itself: a hard link, another spelling of the path and a symbolic link all meet at
// it. SQLite locks ranges of the same file by fcntl(2). On Linux the two kinds do not see each other. But closing any
// descriptor of a file drops all fcntl locks that the process has on it, so this object has to outlive the connection.
// PATH.lock is locked as well: versions before this one lock nothing else.
class StoreFile {
 public:
  static constexpr size_t kStampBytes = 16;

  // Locks `path`, made if absent, and PATH.lock. FailedPrecondition: "store PATH is locked by another process".
  // InvalidArgument: one of them, or a file beside them that SQLite would open (PATH-wal, PATH-shm, PATH-journal), is a
  // folder, FIFO, socket or device.
  static absl::StatusOr<std::unique_ptr<StoreFile>> Lock(const std::string& path);
  ~StoreFile();
  StoreFile(const StoreFile&) = delete;
  StoreFile& operator=(const StoreFile&) = delete;

  // Once, when SQLite has opened its write-ahead log: from now on Check expects this very log.
  void NoteLog();

  // OK: the path leads to the locked file and its log, the file is not cut, and page `page` (from 1)
  // holds one of `stamps`, byte strings of kStampBytes; none: that is not looked at. Else DataLoss "store PATH: ...",
  // which says what was done to the file. Reads two pages at most. Where a change may be under way, it may say so of a
  // sound file: then ask again when none is.
  absl::Status Check(int64_t page, absl::Span<const std::string> stamps) const;
  // Whether page `page` holds `stamp`.
  bool Holds(int64_t page, absl::string_view stamp) const;

 private:
  struct Identity {
    uint64_t device = 0, inode = 0;
    bool operator==(const Identity&) const = default;
  };
  explicit StoreFile(std::string path) : path_(std::move(path)) {}
  static Identity IdentityOf(const std::string& path);  // Zeros: there is none.
  std::string PageBytes(int64_t page) const;            // Empty: it cannot be read.
  int64_t PageSize() const;                             // 0: the header is no store's.

  const std::string path_;
  int lock_file_ = -1, file_ = -1;
  std::string log_path_;
  Identity identity_, log_;
  mutable std::atomic<int64_t> longest_{0};  // Bytes of the file when it was last found sound.
};

}  // namespace c3po

#endif  // C3PO_INDEX_STORE_SQLITE_STORE_FILE_H_
