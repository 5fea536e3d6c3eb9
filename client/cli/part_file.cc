#include "client/cli/part_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/durable_file.h"

namespace c3po {

absl::StatusOr<PartFile> PartFile::Create(const std::string& file, mode_t mode) {
  const std::string path = absl::StrCat(file, ".part");
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
  if (fd < 0) return FileError(path, "cannot create", errno);
  return PartFile(file, path, fd);
}

PartFile::PartFile(std::string file, std::string path, int fd)
    : file_(std::move(file)), path_(std::move(path)), fd_(fd) {}

PartFile::PartFile(PartFile&& other) noexcept
    : file_(other.file_), path_(other.path_), fd_(std::exchange(other.fd_, -1)) {}

PartFile::~PartFile() {
  if (fd_ < 0) return;
  close(fd_);
  unlink(path_.c_str());
}

absl::Status PartFile::Append(absl::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = write(fd_, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return FileError(path_, "cannot write", errno);
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  return absl::OkStatus();
}

absl::Status PartFile::Finish() {
  if (fsync(fd_) != 0) return FileError(path_, "cannot sync", errno);
  if (rename(path_.c_str(), file_.c_str()) != 0) return FileError(file_, "cannot rename the finished file", errno);
  close(std::exchange(fd_, -1));
  return SyncFolderOf(file_);
}

}  // namespace c3po
