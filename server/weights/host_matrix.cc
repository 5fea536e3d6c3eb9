#include "server/weights/host_matrix.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "server/weights/packed_tensors.h"
#include "server/weights/stored_elements.h"

namespace c3po {
namespace {

constexpr int64_t kGroupColumns = 32;  // That share a scale wherever weights are held quantized.

float Widened(uint16_t half) {
  float value;
  ToFloat32(DType::kBF16, reinterpret_cast<const std::byte*>(&half), 1, &value);
  return value;
}

// Calls store(column, weight) for a row of packed levels.
template <typename Store>
void WidenRow(const HostMatrix& matrix, int64_t row, const Store& store) {
  const std::byte* const levels = matrix.bytes.data() + row * matrix.row_bytes();
  for (int64_t begin = 0; begin < matrix.columns; begin += matrix.scale_columns) {
    const float scale = Widened(matrix.ScaleOf(row, begin));
    for (int64_t c = begin; c < begin + matrix.scale_columns; ++c) {
      store(c, scale * static_cast<float>(PackedLevel(matrix.type, levels, c)));
    }
  }
}

// Whether all these bfloat16 have magnitudes whose bits are below `bits`.
bool AllBelow(absl::Span<const std::byte> halves, int bits) {
  int largest = 0;
  for (size_t i = 0; i + 2 <= halves.size(); i += 2) {
    uint16_t half;
    std::memcpy(&half, halves.data() + i, sizeof(half));
    largest = std::max(largest, half & 0x7FFF);
  }
  return largest < bits;
}

}  // namespace

HostMatrix HostMatrix::Of(const TensorView& view) {
  const int64_t columns = view.shape.size() < 2 ? 1 : view.shape.back();
  HostMatrix matrix{view.dtype, columns == 0 ? 0 : view.elements() / columns, columns, view.bytes, /*mapped=*/true};
  matrix.scales = view.scales;
  matrix.scale_columns = view.scale_columns;
  return matrix;
}

HostMatrix HostMatrix::Rows(int64_t begin, int64_t count) const {
  const auto part = [&](absl::Span<const std::byte> all, int64_t row) {
    return all.subspan(static_cast<size_t>(begin * row), static_cast<size_t>(count * row));
  };
  HostMatrix some = *this;
  some.rows = count;
  some.bytes = part(bytes, row_bytes());
  some.scales = part(scales, row_scale_bytes());
  return some;
}

uint16_t HostMatrix::ScaleOf(int64_t row, int64_t column) const {
  uint16_t bits;
  std::memcpy(&bits, scales.data() + row * row_scale_bytes() + column / scale_columns * 2, sizeof(bits));
  return bits;
}

void RowToFloat32(const HostMatrix& matrix, int64_t row, float* to) {
  const std::byte* const from = matrix.bytes.data() + row * matrix.row_bytes();
  if (!IsPackedType(matrix.type)) return ToFloat32(matrix.type, from, matrix.columns, to);
  WidenRow(matrix, row, [to](int64_t c, float value) { to[c] = value; });
}

void RowToBfloat16(const HostMatrix& matrix, int64_t row, uint16_t* to) {
  const std::byte* const from = matrix.bytes.data() + row * matrix.row_bytes();
  if (!IsPackedType(matrix.type)) return ToBfloat16(matrix.type, from, matrix.columns, to);
  WidenRow(matrix, row, [to](int64_t c, float value) {
    ToBfloat16(DType::kF32, reinterpret_cast<const std::byte*>(&value), 1, to + c);
  });
}

std::string ScaleProblem(const HostMatrix& matrix) {
  if (!IsPackedType(matrix.type)) return "";
  // The bits of 2^113 and 2^117, times which the largest level is 2^120. What is no number is above them.
  const int too_large = (127 + (matrix.type == DType::kInt8 ? 113 : 117)) << 7;
  if (matrix.scale_columns % kGroupColumns == 0 && AllBelow(matrix.scales, too_large)) return "";
  for (int64_t r = 0; r < matrix.rows; ++r) {
    for (int64_t c = 0; c < matrix.columns; c += matrix.scale_columns) {
      const uint16_t scale = matrix.ScaleOf(r, c);
      if ((scale & 0x7FFF) >= too_large) {
        return absl::StrCat("the scale of row ", r, ", column ", c, " is not finite or too large");
      }
      if (c % kGroupColumns != 0 && scale != matrix.ScaleOf(r, c - 1)) {
        return absl::StrCat("row ", r, " has scales of 16 columns that differ, at column ", c,
                            "; only groups of 32 can be held");
      }
    }
  }
  return "";
}

void DropPages(const HostMatrix& matrix) {
  if (!matrix.mapped) return;
  TensorView view{matrix.type, {matrix.rows, matrix.columns}, matrix.bytes};
  view.scales = matrix.scales;
  DropPages(view);
}

}  // namespace c3po
