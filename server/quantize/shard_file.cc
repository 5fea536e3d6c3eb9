#include "server/quantize/shard_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "index/base/durable_file.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr size_t kHeaderAlignment = 8;

std::string HeaderOf(const std::vector<ShardTensor>& tensors) {
  nlohmann::ordered_json header = {{"__metadata__", {{"format", "pt"}}}};
  int64_t end = 0;
  for (const ShardTensor& tensor : tensors) {
    const int64_t begin = end;
    end += tensor.bytes();
    header[tensor.name] = {
        {"dtype", std::string(DTypeName(tensor.dtype))}, {"shape", tensor.shape}, {"data_offsets", {begin, end}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + kHeaderAlignment - 1) / kHeaderAlignment * kHeaderAlignment, ' ');
  std::string length(8, '\0');
  for (size_t i = 0; i < length.size(); ++i) length[i] = static_cast<char>(text.size() >> (8 * i));
  return length + text;
}

absl::Span<const std::byte> BytesOf(const std::string& text) {
  return absl::MakeConstSpan(reinterpret_cast<const std::byte*>(text.data()), text.size());
}

}  // namespace

int64_t ShardTensor::bytes() const {
  int64_t size = DTypeBytes(dtype);
  for (const int64_t dimension : shape) size *= dimension;
  return size;
}

absl::StatusOr<std::unique_ptr<ShardFile>> ShardFile::Create(const std::string& path,
                                                             std::vector<ShardTensor> tensors) {
  std::sort(tensors.begin(), tensors.end(), [](const ShardTensor& a, const ShardTensor& b) {
    return std::pair(-DTypeBytes(a.dtype), a.name) < std::pair(-DTypeBytes(b.dtype), b.name);
  });
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd < 0) return FileError(path, "cannot create", errno);
  std::unique_ptr<ShardFile> file(new ShardFile(path, fd));
  const std::string header = HeaderOf(tensors);
  auto size = static_cast<int64_t>(header.size());
  for (const ShardTensor& tensor : tensors) {
    file->offsets_[tensor.name] = size;
    size += tensor.bytes();
  }
  if (const int error = posix_fallocate(fd, 0, size); error != 0) {
    return FileError(path, absl::StrCat("no room for ", size, " bytes"), error);
  }
  C3PO_RETURN_IF_ERROR(file->WriteAt(0, BytesOf(header)));
  return file;
}

ShardFile::~ShardFile() {
  if (file_ >= 0) close(file_);
}

absl::Status ShardFile::Write(const std::string& name, absl::Span<const std::byte> bytes) {
  return WriteAt(offsets_.at(name), bytes);
}

absl::Status ShardFile::WriteAt(int64_t offset, absl::Span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = pwrite(file_, bytes.data(), bytes.size(), offset);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return FileError(path_, "cannot write", errno);
    bytes.remove_prefix(static_cast<size_t>(written));
    offset += written;
  }
  return absl::OkStatus();
}

absl::Status ShardFile::Finish() {
  if (fsync(file_) != 0) return FileError(path_, "cannot sync", errno);
  if (close(std::exchange(file_, -1)) != 0) return FileError(path_, "cannot close", errno);
  return absl::OkStatus();
}

}  // namespace c3po
