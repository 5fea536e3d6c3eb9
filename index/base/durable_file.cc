#include "index/base/durable_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor() {
    if (fd_ >= 0) close(fd_);
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }
  // Closes early, to see the error that close() may report.
  int Close() { return close(std::exchange(fd_, -1)); }

 private:
  int fd_;
};

absl::Status WriteAndSync(const std::string& path, absl::string_view contents) {
  // Opening what was there could wait for ever (a FIFO), or write to another file (a link).
  if (unlink(path.c_str()) != 0 && errno != ENOENT) return FileError(path, "cannot remove", errno);
  FileDescriptor file(open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
  if (file.get() < 0) return FileError(path, "cannot create", errno);
  while (!contents.empty()) {
    const ssize_t written = write(file.get(), contents.data(), contents.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return FileError(path, "cannot write", errno);
    contents.remove_prefix(static_cast<size_t>(written));
  }
  if (fsync(file.get()) != 0) return FileError(path, "cannot sync", errno);
  if (file.Close() != 0) return FileError(path, "cannot close", errno);
  return absl::OkStatus();
}

}  // namespace

absl::Status NotRegularFile(const std::string& path, mode_t mode) {
  const absl::string_view kind = S_ISDIR(mode)    ? "a folder"
                                 : S_ISFIFO(mode) ? "a FIFO"
                                 : S_ISSOCK(mode) ? "a socket"
                                                  : "a device";
  return absl::InvalidArgumentError(absl::StrCat(path, ": is ", kind, ", not a regular file"));
}

absl::Status FileError(absl::string_view path, absl::string_view action, int error_number) {
  const std::string message = absl::StrCat(path, ": ", action, ": ", strerror(error_number));
  switch (error_number) {
    case ENOENT:
      return absl::NotFoundError(message);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(message);
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return absl::ResourceExhaustedError(message);
    case EISDIR:
    case ENOTDIR:
      return absl::FailedPreconditionError(message);
    default:
      return absl::UnavailableError(message);
  }
}

absl::Status SyncFolderOf(const std::string& path) {
  const std::filesystem::path parent = std::filesystem::path(path).parent_path();
  const std::string folder = parent.empty() ? std::string(".") : parent.string();
  FileDescriptor descriptor(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (descriptor.get() < 0) return FileError(folder, "cannot open folder", errno);
  if (fsync(descriptor.get()) != 0) return FileError(folder, "cannot sync folder", errno);
  return absl::OkStatus();
}

absl::Status WriteFileDurably(const std::string& path, absl::string_view contents) {
  const std::string temporary = path + ".tmp";
  absl::Status status = WriteAndSync(temporary, contents);
  if (status.ok() && rename(temporary.c_str(), path.c_str()) != 0) status = FileError(path, "cannot replace", errno);
  if (!status.ok()) {
    unlink(temporary.c_str());
    return status;
  }
  return SyncFolderOf(path);
}

absl::StatusOr<std::string> ReadWholeFile(const std::string& path, int64_t bytes_max) {
  // O_NONBLOCK: opening a FIFO returns at once. O_NOCTTY: a terminal does not become that of the process.
  FileDescriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (file.get() < 0 && errno == ENXIO) return NotRegularFile(path, S_IFSOCK);
  if (file.get() < 0) return FileError(path, "cannot open", errno);
  struct stat info;
  if (fstat(file.get(), &info) != 0) return FileError(path, "cannot stat", errno);
  if (!S_ISREG(info.st_mode)) return NotRegularFile(path, info.st_mode);
  if (info.st_size > bytes_max) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": has ", info.st_size, " bytes, at most ", bytes_max, " are taken"));
  }
  std::string contents(static_cast<size_t>(info.st_size), '\0');
  size_t filled = 0;
  while (filled < contents.size()) {
    const ssize_t got = read(file.get(), contents.data() + filled, contents.size() - filled);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return FileError(path, "cannot read", errno);
    if (got == 0) break;  // Cut while it was read: the caller's checks see the shorter contents.
    filled += static_cast<size_t>(got);
  }
  contents.resize(filled);
  return contents;
}

}  // namespace c3po
