#ifndef C3PO_SERVER_WEIGHTS_HOST_MATRIX_H_
#define C3PO_SERVER_WEIGHTS_HOST_MATRIX_H_

#include <cstddef>
#include <cstdint>

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

  // All of a mapped tensor. The rows of several matrices follow each other.
  static HostMatrix Of(const TensorView& view);

  int64_t row_bytes() const { return rows == 0 ? 0 : static_cast<int64_t>(bytes.size()) / rows; }
  HostMatrix Rows(int64_t begin, int64_t count) const;
};

// The view's bytes will not be read again soon: as DropPages of a TensorView where they are mapped, else nothing.
void DropPages(const HostMatrix& matrix);

}  // namespace c3po

#endif  // C3PO_SERVER_WEIGHTS_HOST_MATRIX_H_
