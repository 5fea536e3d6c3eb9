#ifndef C3PO_SERVER_WEIGHTS_GGUF_FILE_H_
#define C3PO_SERVER_WEIGHTS_GGUF_FILE_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/weights/mapped_file.h"
#include "server/weights/safetensors_file.h"

namespace c3po {

// Types of metadata, by their numbers in the file.
enum class GgufType : uint32_t {
  kUint8,
  kInt8,
  kUint16,
  kInt16,
  kUint32,
  kInt32,
  kFloat32,
  kBool,
  kString,
  kArray,
  kUint64,
  kInt64,
  kFloat64,
};

// A value of the metadata, in the mapped file.
struct GgufValue {
  GgufType type = GgufType::kUint8;  // Of an array: its elements'; never kArray.
  bool is_array = false;
  uint64_t count = 1;                 // Elements.
  absl::Span<const std::byte> bytes;  // All of them, without alignment.

  // What the value is not, such as a text, or an array where one number is asked for, gives nullopt.
  std::optional<int64_t> Integer() const;  // Of any integer type, below 2^63.
  std::optional<float> Float() const;      // kFloat32; a kFloat64 that is one
  std::optional<bool> Bool() const;
  std::optional<absl::string_view> Text() const;
  std::optional<std::vector<absl::string_view>> Texts() const;
  std::optional<std::vector<float>> Floats() const;
  std::optional<std::vector<int64_t>> Integers() const;
};

// One .gguf file of version 2 or 3, memory-mapped read-only
// (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md):
//   "GGUF", version, number of tensors, number of metadata entries; entries: key, type, value; tensors: name,
//   dimensions from the innermost to the outermost, type, offset; padding to general.alignment (32 where it is not
//   said); the data.
// Little-endian. Tensors lie at multiples of the alignment and fill the data from first to last byte, but for padding
// of less than one alignment behind each.
//
// Open() checks the whole header, so that neither a view nor a value reaches outside the mapping whatever the file
// holds. Values stay where they are; memory taken is some 500 bytes for each of at most kGgufEntriesMax entries and
// kSafetensorsTensorsMax tensors. Time is linear in the header. Immutable after Open(), hence thread-safe.
inline constexpr uint64_t kGgufEntriesMax = 1 << 16;
inline constexpr uint64_t kGgufNameBytesMax = 1 << 10;
inline constexpr uint64_t kGgufAlignmentMax = 1 << 20;
inline constexpr uint32_t kGgufRankMax = 4;

class GgufFile {
 public:
  // NotFound: no such file. DataLoss: it ends before what its header says. Unimplemented: a version, or a tensor's
  // type, that is not taken. InvalidArgument: anything else that breaks the format. Messages name the file, and the key
  // or tensor.
  static absl::StatusOr<std::unique_ptr<GgufFile>> Open(const std::string& path);
  GgufFile(const GgufFile&) = delete;
  GgufFile& operator=(const GgufFile&) = delete;

  // By key, by name. Shapes have the outermost dimension first, as of TensorView everywhere.
  const std::map<std::string, GgufValue, std::less<>>& metadata() const { return metadata_; }
  const std::map<std::string, TensorView, std::less<>>& tensors() const { return tensors_; }
  // Null where there is no such key. Valid as long as this object.
  const GgufValue* Find(absl::string_view key) const;
  const std::string& path() const { return path_; }

 private:
  friend class GgufHeader;
  GgufFile(std::string path, MappedFile mapping) : path_(std::move(path)), mapping_(std::move(mapping)) {}

  const std::string path_;
  const MappedFile mapping_;
  std::map<std::string, GgufValue, std::less<>> metadata_;
  std::map<std::string, TensorView, std::less<>> tensors_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_WEIGHTS_GGUF_FILE_H_
