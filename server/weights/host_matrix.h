#ifndef C3PO_SERVER_WEIGHTS_HOST_MATRIX_H_
#define C3PO_SERVER_WEIGHTS_HOST_MATRIX_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/types/span.h"
#include "server/weights/safetensors_file.h"

namespace c3po {

// A weight on the host as it is stored: a matrix, or a vector as a matrix of one column. A view: whoever made it keeps
// the bytes alive.
struct HostMatrix {
  DType type = DType::kF32;
  int64_t rows = 0, columns = 0;
  // Row after row, little-endian, without alignment. All rows take the same number of whole bytes.
  absl::Span<const std::byte> bytes;
  bool mapped = false;  // They lie in a file's private read-only mapping, as a Checkpoint's do.
  // As TensorView has them, of packed levels alone.
  absl::Span<const std::byte> scales = {};
  int64_t scale_columns = 0;

  // All of a mapped tensor. The rows of several matrices follow each other.
  static HostMatrix Of(const TensorView& view);

  int64_t row_bytes() const { return rows == 0 ? 0 : static_cast<int64_t>(bytes.size()) / rows; }
  int64_t row_scale_bytes() const { return rows == 0 ? 0 : static_cast<int64_t>(scales.size()) / rows; }
  HostMatrix Rows(int64_t begin, int64_t count) const;
  // The bits of the bfloat16 that scales an entry of packed levels.
  uint16_t ScaleOf(int64_t row, int64_t column) const;
};

// Row `row` as numbers, to [columns]: as ToFloat32 and ToBfloat16 of stored_elements.h, of any type of weights. Packed
// levels times their scales are exact in float32, and rounded in bfloat16. Pure and thread-safe.
void RowToFloat32(const HostMatrix& matrix, int64_t row, float* to);
void RowToBfloat16(const HostMatrix& matrix, int64_t row, uint16_t* to);

// What keeps a matrix of packed levels from being read by groups of 32 columns; empty: nothing, as of other types. A
// scale is not finite, or so large that a weight would be 2^120 or more; or 16 columns each have a scale, and two that
// belong to 32 differ. Reads all scales.
std::string ScaleProblem(const HostMatrix& matrix);

// The view's bytes will not be read again soon: as DropPages of a TensorView where they are mapped, else nothing.
void DropPages(const HostMatrix& matrix);

}  // namespace c3po

#endif  // C3PO_SERVER_WEIGHTS_HOST_MATRIX_H_
