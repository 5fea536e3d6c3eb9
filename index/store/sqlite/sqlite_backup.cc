#include "index/store/sqlite/sqlite_backup.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "index/base/durable_file.h"
#include "index/base/status_macros.h"
#include "index/store/sqlite/sqlite_connection.h"

namespace c3po {

struct SqliteBackup::Impl {
  Impl(SqliteConnection* from, Mutex& guard, std::atomic<bool>& place, std::string to)
      : mutex(guard), source(from), under_way(place), path(std::move(to)) {}
  ~Impl() {
    Close();
    if (created && !whole) unlink(path.c_str());
    under_way = false;
  }

  void Close() {
    if (copy == nullptr) return;
    {
      const MutexLock held(mutex);
      copy->Finish();
    }
    copy.reset();
  }

  Mutex& mutex;
  SqliteConnection* const source ABSL_PT_GUARDED_BY(mutex);
  std::atomic<bool>& under_way;  // The store's one place for a copy, which this holds.
  const std::string path;
  std::unique_ptr<SqliteCopy> copy;
  bool created = false, whole = false;
};

SqliteBackup::SqliteBackup(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

SqliteBackup::~SqliteBackup() = default;

absl::StatusOr<std::unique_ptr<StoreBackup>> SqliteBackup::Start(SqliteConnection* source, Mutex& mutex,
                                                                 std::atomic<bool>& under_way,
                                                                 const std::string& path) {
  if (under_way.exchange(true)) {
    return absl::ResourceExhaustedError("another backup is being made; ask again when it is done");
  }
  auto impl = std::make_unique<Impl>(source, mutex, under_way, path);
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0 && errno == EEXIST) {
    return absl::AlreadyExistsError(
        absl::StrCat("backup ", path, ": a file is there that no backup under way has made; move it away"));
  }
  if (fd < 0) return FileError(path, "cannot create", errno);
  close(fd);
  impl->created = true;
  C3PO_ASSIGN_OR_RETURN(impl->copy, SqliteCopy::Open(path));
  {
    const MutexLock held(impl->mutex);
    C3PO_RETURN_IF_ERROR(impl->copy->Begin(*impl->source));
  }
  return std::unique_ptr<StoreBackup>(new SqliteBackup(std::move(impl)));
}

absl::StatusOr<bool> SqliteBackup::Step(int pages) {
  {
    const MutexLock held(impl_->mutex);
    C3PO_ASSIGN_OR_RETURN(const bool copied, impl_->copy->Step(pages));
    if (!copied) return false;
    impl_->copy->Finish();
  }
  C3PO_RETURN_IF_ERROR(impl_->copy->MakeOneFile());
  impl_->Close();
  const int fd = open(impl_->path.c_str(), O_RDONLY | O_CLOEXEC);
  const bool synced = fd >= 0 && fsync(fd) == 0;
  const int error = errno;
  if (fd >= 0) close(fd);
  if (!synced) return FileError(impl_->path, "cannot sync", error);
  C3PO_RETURN_IF_ERROR(SyncFolderOf(impl_->path));
  impl_->whole = true;
  return true;
}

}  // namespace c3po
