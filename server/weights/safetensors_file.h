#ifndef C3PO_SERVER_WEIGHTS_SAFETENSORS_FILE_H_
#define C3PO_SERVER_WEIGHTS_SAFETENSORS_FILE_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/weights/mapped_file.h"

namespace c3po {

// Element types of weights' files. First those of the safetensors format, whole bytes only; then what no safetensors
// file names: the blocks of GGUF (gguf_blocks.h), and levels in words of 32 bits, whose scales lie in a tensor of their
// own (packed_tensors.h).
enum class DType {
  kBool,
  kU8,
  kI8,
  kF8E5M2,
  kF8E4M3,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kI64,
  kU64,
  kF64,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ8_0,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kInt8,
  kInt4,
};

// The formats' own spelling: "F32", "BF16", "F8_E4M3", "Q4_K", ...; "INT8" and "INT4" of packed levels.
absl::string_view DTypeName(DType dtype);
// Elements that are stored together as one block: 1, a GGUF block's 32 or 256, or a word's 4 or 8 levels.
int64_t DTypeBlock(DType dtype);
// Bytes of one block.
int64_t DTypeBytes(DType dtype);

// A tensor inside a mapped file. The bytes live as long as the SafetensorsFile (or Checkpoint) that gave the view.
struct TensorView {
  DType dtype = DType::kF32;
  // Row-major; empty for a scalar. Every dimension >= 0, the last one of whole blocks, and their product is elements().
  std::vector<int64_t> shape;
  // Little-endian elements. The format promises no alignment: memcpy elements out, or check the address first.
  absl::Span<const std::byte> bytes;
  // Of kInt8 and kInt4 alone: a bfloat16 for each `scale_columns` elements of a row, row after row.
  absl::Span<const std::byte> scales = {};
  int64_t scale_columns = 0;

  int64_t elements() const { return static_cast<int64_t>(bytes.size()) / DTypeBytes(dtype) * DTypeBlock(dtype); }
};

// Hints to the system about the view's bytes, which lie in a private read-only mapping; nothing they do can be seen but
// time and memory. ReadAhead: they are wanted soon. DropPages: this process is done with them for now; their pages
// leave its resident set, and come back from the file when they are touched.
void ReadAhead(const TensorView& view);
void DropPages(const TensorView& view);

// How messages show a name out of a file: in quotes, control and non-ASCII bytes escaped, the first 200 bytes.
std::string Quoted(absl::string_view text);

// "[4, 16]".
std::string ShapeString(absl::Span<const int64_t> shape);

// One .safetensors file, memory-mapped read-only:
//   8 bytes little-endian header length N, N bytes of JSON {"name": {"dtype", "shape", "data_offsets": [begin, end]}},
//   then the data, which the tensors tile from first to last byte without gap or overlap.
// (https://github.com/huggingface/safetensors, section "Format".)
//
// Open() checks the whole header, so that a view never reaches outside the mapping whatever the file holds; memory
// taken is bounded by the header, whose length is at most kSafetensorsHeaderBytesMax, and some 500 bytes for each of at
// most kSafetensorsTensorsMax tensors.
//
// Immutable after Open(), hence thread-safe.
inline constexpr uint64_t kSafetensorsHeaderBytesMax = 100'000'000;
inline constexpr size_t kSafetensorsRankMax = 16;
inline constexpr size_t kSafetensorsTensorsMax = 1 << 18;  // DeepSeek-V3 has 91,991.

class SafetensorsFile {
 public:
  // NotFound: no such file. DataLoss: shorter than its header says. InvalidArgument: anything else that breaks the
  // format, a dtype that is not in DType, more than kSafetensorsRankMax dimensions. Messages name the file, and the
  // tensor.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  // Sorted.
  std::vector<std::string> names() const;
  // Null when there is no such tensor. The pointer is valid as long as this object.
  const TensorView* Find(absl::string_view name) const;
  const std::string& path() const { return path_; }
  // All of the file, into which views reach.
  absl::Span<const std::byte> bytes() const { return mapping_.bytes(); }

 private:
  SafetensorsFile(std::string path, MappedFile mapping) : path_(std::move(path)), mapping_(std::move(mapping)) {}
  absl::Status ReadHeader();

  const std::string path_;
  const MappedFile mapping_;
  std::map<std::string, TensorView, std::less<>> tensors_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_WEIGHTS_SAFETENSORS_FILE_H_
