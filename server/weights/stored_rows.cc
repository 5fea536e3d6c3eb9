#include "server/weights/stored_rows.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "index/base/durable_file.h"
#include "index/base/status_macros.h"
#include "server/weights/stored_elements.h"

namespace c3po {
namespace {

// All of `to`, from `offset` on. 0, or errno; EIO where the file ends before.
int ReadAt(int file, int64_t offset, absl::Span<std::byte> to) {
  while (!to.empty()) {
    const ssize_t read = pread(file, to.data(), to.size(), offset);
    if (read < 0 && errno == EINTR) continue;
    if (read <= 0) return read < 0 ? errno : EIO;
    to.remove_prefix(static_cast<size_t>(read));
    offset += read;
  }
  return 0;
}

}  // namespace

absl::StatusOr<std::unique_ptr<StoredRows>> StoredRows::Open(const Checkpoint& checkpoint, absl::string_view name) {
  C3PO_ASSIGN_OR_RETURN(const TensorView view, checkpoint.Find(name));
  const bool plain = view.dtype == DType::kF32 || view.dtype == DType::kF16 || view.dtype == DType::kBF16;
  if (!plain || view.shape.size() != 2) {
    return absl::InvalidArgumentError(absl::StrCat(checkpoint.folder(), ": tensor ", Quoted(name), " is ",
                                                   DTypeName(view.dtype), ShapeString(view.shape),
                                                   "; a matrix of F32, F16 or BF16 is supported"));
  }
  C3PO_ASSIGN_OR_RETURN(const Checkpoint::Place place, checkpoint.PlaceOf(name));
  const int file = open(place.path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return absl::ErrnoToStatus(errno, place.path);
  std::unique_ptr<StoredRows> rows(new StoredRows(place.path, file));
  if (fstat(file, &rows->opened_) != 0) return absl::ErrnoToStatus(errno, place.path);
  rows->type_ = view.dtype;
  rows->offset_ = place.offset;
  rows->rows_ = view.shape[0];
  rows->columns_ = view.shape[1];
  return rows;
}

StoredRows::~StoredRows() { close(file_); }

absl::Status StoredRows::Read(absl::Span<const int64_t> rows, float* out) const {
  const int64_t row_bytes = columns_ * DTypeBytes(type_);
  std::vector<std::byte> stored(static_cast<size_t>(row_bytes));
  for (const int64_t row : rows) {
    if (const int error = ReadAt(file_, offset_ + row * row_bytes, absl::MakeSpan(stored)); error != 0) {
      return absl::InternalError(FileError(path_, "cannot read", error).message());
    }
    ToFloat32(type_, stored.data(), columns_, out);
    out += columns_;
  }
  return CheckUnchanged();  // Last: what was written before it was read is seen.
}

absl::Status StoredRows::CheckUnchanged() const {
  struct stat now;
  if (fstat(file_, &now) != 0) return absl::InternalError(FileError(path_, "cannot read", errno).message());
  if (now.st_size == opened_.st_size && now.st_mtim.tv_sec == opened_.st_mtim.tv_sec &&
      now.st_mtim.tv_nsec == opened_.st_mtim.tv_nsec) {
    return absl::OkStatus();
  }
  return absl::InternalError(absl::StrCat(path_, ": was written to since it was loaded: load it again"));
}

}  // namespace c3po
