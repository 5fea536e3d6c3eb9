#include "index/store/sqlite/store_file.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "index/base/durable_file.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

// Of SQLite's file format (sqlite.org/fileformat2.html, section 1.3); numbers are big-endian.
constexpr size_t kHeaderBytes = 100;
constexpr char kMagic[] = "SQLite format 3";  // With its zero, the first 16 bytes.
constexpr size_t kPageSizeAt = 16, kPagesAt = 28;

// Two spellings of one path, or a link to it, must meet at one lock file, as they do at one log.
std::string CanonicalPath(const std::string& path) {
  std::error_code error;
  const std::filesystem::path canonical = std::filesystem::weakly_canonical(path, error);
  return error ? path : canonical.string();
}

// What SQLite opens by name must not make it wait.
absl::Status CheckKinds(const std::string& path, const std::string& canonical) {
  for (const absl::string_view suffix : {"", ".lock", "-wal", "-shm", "-journal"}) {
    const std::string file = absl::StrCat(suffix.empty() ? path : canonical, suffix);
    struct stat info;
    if (stat(file.c_str(), &info) != 0 || S_ISREG(info.st_mode)) continue;
    const absl::Status wrong = NotRegularFile(file, info.st_mode);
    return absl::Status(wrong.code(), absl::StrCat("store ", wrong.message()));
  }
  return absl::OkStatus();
}

absl::StatusOr<int> OpenLocked(const std::string& file, const std::string& store) {
  const int fd = open(file.c_str(), O_RDWR | O_CREAT | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0644);
  if (fd < 0) return FileError(absl::StrCat("store ", file), "cannot open", errno);
  if (flock(fd, LOCK_EX | LOCK_NB) == 0) return fd;
  const int error = errno;
  close(fd);
  if (error == EWOULDBLOCK) {
    return absl::FailedPreconditionError(absl::StrCat("store ", store, " is locked by another process"));
  }
  return FileError(absl::StrCat("store ", file), "cannot lock", error);
}

uint32_t BigEndian(absl::string_view bytes) {
  uint32_t value = 0;
  for (const char byte : bytes) value = value << 8 | static_cast<uint8_t>(byte);
  return value;
}

std::string ReadAt(int fd, int64_t offset, size_t size) {
  std::string bytes(size, '\0');
  ssize_t got = 0;
  do {
    got = pread(fd, bytes.data(), size, offset);
  } while (got < 0 && errno == EINTR);
  bytes.resize(static_cast<size_t>(std::max<ssize_t>(got, 0)));
  return bytes;
}

}  // namespace

absl::StatusOr<std::unique_ptr<StoreFile>> StoreFile::Lock(const std::string& path) {
  const std::string canonical = CanonicalPath(path);
  C3PO_RETURN_IF_ERROR(CheckKinds(path, canonical));
  // PATH.lock first: a second opening by the same process fails here, before it has a descriptor of the store to close.
  // The lock file stays: removing it would let a third process lock a new one while a second waits for the old one.
  std::unique_ptr<StoreFile> held(new StoreFile(path));
  C3PO_ASSIGN_OR_RETURN(held->lock_file_, OpenLocked(canonical + ".lock", path));
  C3PO_ASSIGN_OR_RETURN(held->file_, OpenLocked(path, path));
  struct stat info;
  if (fstat(held->file_, &info) != 0) return FileError(absl::StrCat("store ", path), "cannot stat", errno);
  held->identity_ = {info.st_dev, info.st_ino};
  return held;
}

StoreFile::~StoreFile() {
  for (const int descriptor : {file_, lock_file_}) {
    if (descriptor >= 0) close(descriptor);
  }
}

StoreFile::Identity StoreFile::IdentityOf(const std::string& path) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) return {};
  return {info.st_dev, info.st_ino};
}

void StoreFile::NoteLog() {
  log_path_ = CanonicalPath(path_) + "-wal";
  log_ = IdentityOf(log_path_);
}

int64_t StoreFile::PageSize() const {
  const std::string header = ReadAt(file_, 0, kHeaderBytes);
  if (header.size() != kHeaderBytes || header.compare(0, sizeof(kMagic), kMagic, sizeof(kMagic)) != 0) return 0;
  const uint32_t size = BigEndian(header.substr(kPageSizeAt, 2));
  return size == 1 ? 65536 : size;
}

std::string StoreFile::PageBytes(int64_t page) const {
  const int64_t size = PageSize();
  return size == 0 || page < 1 ? "" : ReadAt(file_, (page - 1) * size, static_cast<size_t>(size));
}

bool StoreFile::Holds(int64_t page, absl::string_view stamp) const { return absl::StrContains(PageBytes(page), stamp); }

absl::Status StoreFile::Check(int64_t page, absl::Span<const std::string> stamps) const {
  constexpr absl::string_view kRestart = "; stop the server, put the store in its place, and start it again";
  const auto lost = [&](const auto&... what) {
    return absl::DataLossError(absl::StrCat("store ", path_, ": ", what..., kRestart));
  };
  struct stat info;
  if (fstat(file_, &info) != 0) return FileError(absl::StrCat("store ", path_), "cannot stat", errno);
  const Identity there = IdentityOf(path_);  // Before links: a file that was replaced has none either.
  if (there == Identity()) return lost("was deleted or moved while it was open");
  if (there != identity_) return lost("was replaced by another file while it was open");
  if (log_ != Identity() && IdentityOf(log_path_) != log_) {
    return lost("its write-ahead log ", log_path_, " was deleted or replaced while it was open");
  }
  // A file is rightly shorter than its header says while the log holds the rest, such as on a full disk; and it rightly
  // gets shorter where another program vacuums it. Not both.
  const int64_t page_size = PageSize();
  const int64_t bytes = page_size * BigEndian(ReadAt(file_, kPagesAt, 4));
  const bool shorter = info.st_size < longest_;
  if (shorter ? info.st_size < bytes || page_size == 0 : info.st_size > 0 && page_size == 0) {
    return lost("was cut or written over while it was open: it has ", info.st_size, " bytes",
                page_size == 0 ? " and no store's header" : absl::StrCat(", its header says ", bytes));
  }
  longest_ = info.st_size;
  if (stamps.empty()) return absl::OkStatus();
  const std::string held = PageBytes(page);
  const auto holds = [&](const std::string& stamp) { return absl::StrContains(held, stamp); };
  if (std::any_of(stamps.begin(), stamps.end(), holds)) return absl::OkStatus();
  return lost("was written over with other contents while it was open");
}

}  // namespace c3po
