#ifndef C3PO_SERVER_QUANTIZE_SHARD_FILE_H_
#define C3PO_SERVER_QUANTIZE_SHARD_FILE_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/weights/safetensors_file.h"

namespace c3po {

struct ShardTensor {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;

  int64_t bytes() const;
};

// A safetensors file in the making (server/weights/safetensors_file.h has the format). Tensors lie in it by the size of
// their elements, the largest first, and then by name, so that each is aligned to its own; they may be written in any
// order. Errors name the file: those of FileError. Not thread-safe.
class ShardFile {
 public:
  // Makes the file, which must not be there, and takes its room on the disk.
  static absl::StatusOr<std::unique_ptr<ShardFile>> Create(const std::string& path, std::vector<ShardTensor> tensors);
  ~ShardFile();
  ShardFile(const ShardFile&) = delete;
  ShardFile& operator=(const ShardFile&) = delete;

  // All bytes of a tensor.
  absl::Status Write(const std::string& name, absl::Span<const std::byte> bytes);
  // After all tensors; the file survives a power cut then.
  absl::Status Finish();

 private:
  ShardFile(std::string path, int file) : path_(std::move(path)), file_(file) {}
  absl::Status WriteAt(int64_t offset, absl::Span<const std::byte> bytes);

  const std::string path_;
  int file_;
  std::map<std::string, int64_t> offsets_;  // Of tensors in the file.
};

}  // namespace c3po

#endif  // C3PO_SERVER_QUANTIZE_SHARD_FILE_H_
