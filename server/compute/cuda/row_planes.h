#ifndef C3PO_SERVER_COMPUTE_CUDA_ROW_PLANES_H_
#define C3PO_SERVER_COMPUTE_CUDA_ROW_PLANES_H_

#include "index/base/cuda/device.h"
#include "server/compute/cuda/layout.h"
#include "server/compute/cuda/rows.h"
#include "server/compute/cuda/split_merge.h"

// Kernel code: rows of RowSource, rounded to planes in shared or global memory.
namespace c3po::cuda {

using device::Words4;

// A kernel that multiplies has so many warps, which split each sum among them in fixed shares. So the shares, and with
// them every bit of a result, depend on the matrix alone. Three planes take more registers and shared memory a warp.
template <int kPlanes>
inline constexpr int kProductWarps = kPlanes == 1 ? 16 : 8;
template <int kPlanes>
inline constexpr int kProductThreads = 32 * kProductWarps<kPlanes>;

// Rows that a block turns into planes at a time.
inline constexpr int kRowsAtOnce = 8;

// As PlanesOfFloat of packed_matrix.h.
template <int kPlanes>
C3PO_DEVICE void Split(float x, uint16_t (&planes)[kPlanes]) {
  uint16_t hi = device::ToBFloat16(x).bits;
  if constexpr (kPlanes == 1) {
    planes[0] = hi;
  } else {
    constexpr uint32_t kExponent = 0x7f800000;
    const bool finite = (device::BitsOf(x) & kExponent) != kExponent;
    if (finite && (hi & 0x7f80) == 0x7f80) hi = static_cast<uint16_t>(device::BitsOf(x) >> 16);
    const float rest = finite ? device::Subtract(x, device::ToFloat(device::BFloat16{hi})) : 0.0f;
    const device::BFloat16 mid = device::ToBFloat16(rest);
    planes[0] = hi;
    planes[1] = mid.bits;
    planes[2] = device::ToBFloat16(device::Subtract(rest, device::ToFloat(mid))).bits;
  }
}

// Where a block's rows of planes lie, in bytes.
struct PlanesPlace {
  char* data;  // row 0
  int64_t plane_stride, row_stride;
};

C3PO_DEVICE PlanesPlace PlaceOfPlanes(const ActivationPlanes& planes, int64_t first_row) {
  return {reinterpret_cast<char*>(planes.data + first_row * planes.stride), planes.plane_stride * 2,
          int64_t{planes.stride} * 2};
}

// Columns [column, column + 4), a multiple of 4.
template <int kPlanes>
C3PO_DEVICE void StoreFour(const PlanesPlace& to, int row, int column, bool for_transposed, const float (&x)[4]) {
  uint16_t planes[4][kPlanes];
  C3PO_UNROLL
  for (int i = 0; i < 4; ++i) Split<kPlanes>(x[i], planes[i]);
  int first = column, second = column + 2;
  if (for_transposed) {
    const int chunk = column / kChunkColumns * kChunkColumns;
    first = chunk + PositionOf(column % kChunkColumns);
    second = chunk + PositionOf(column % kChunkColumns + 2);
  }
  C3PO_UNROLL
  for (int p = 0; p < kPlanes; ++p) {
    char* const plane = to.data + p * to.plane_stride + row * to.row_stride;
    *reinterpret_cast<uint32_t*>(plane + first * 2) = planes[0][p] | uint32_t{planes[1][p]} << 16;
    *reinterpret_cast<uint32_t*>(plane + second * 2) = planes[2][p] | uint32_t{planes[3][p]} << 16;
  }
}

// x[column, column + 4), zero from `columns` on.
C3PO_DEVICE void LoadFour(const float* x, int column, int columns, bool aligned, float (&four)[4]) {
  if (aligned && column + 4 <= columns) {
    const Words4 words = *reinterpret_cast<const Words4*>(x + column);
    C3PO_UNROLL
    for (int i = 0; i < 4; ++i) four[i] = device::FloatOf(words.x[i]);
    return;
  }
  C3PO_UNROLL
  for (int i = 0; i < 4; ++i) four[i] = column + i < columns ? x[column + i] : 0.0f;
}

// Entries of head `head`'s merged attention from `first` on, `count` of them. Loads of four splits are under way at
// once.
C3PO_DEVICE void MergeSplits(const RowSource& source, int row, int head, int first, int count, float (&merged)[4]) {
  constexpr int kAtOnce = 4;
  const int splits = (source.lengths[row] + source.split_length - 1) / source.split_length;
  const int64_t at = (int64_t{row} * source.heads + head) * source.splits;
  const bool aligned = count == 4 && reinterpret_cast<uintptr_t>(source.partial) % 16 == 0;
  MergedSplits sums;
  float total[4] = {0, 0, 0, 0};
  for (int s = 0; s < splits; s += kAtOnce) {
    float top[kAtOnce], sum[kAtOnce], o[kAtOnce][4];
    C3PO_UNROLL
    for (int j = 0; j < kAtOnce; ++j) {
      if (s + j >= splits) continue;
      top[j] = source.tops[at + s + j];
      sum[j] = source.sums[at + s + j];
      LoadFour(source.partial + (at + s + j) * source.value_dim, first, first + count, aligned, o[j]);
    }
    C3PO_UNROLL
    for (int j = 0; j < kAtOnce; ++j) {
      if (s + j >= splits) continue;
      sums.Add(top[j], sum[j]);
      C3PO_UNROLL
      for (int i = 0; i < 4; ++i) {
        total[i] = device::FusedMultiplyAdd(total[i], sums.kept, device::Multiply(o[j][i], sums.added));
      }
    }
  }
  C3PO_UNROLL
  for (int i = 0; i < 4; ++i) merged[i] = splits > 0 && i < count ? device::Divide(total[i], sums.l) : 0.0f;
}

// Columns [column, column + 4) of a merged row.
C3PO_DEVICE void MergeFour(const RowSource& source, int row, int column, int columns, float (&four)[4]) {
  const int dim = source.value_dim;
  if (dim % 4 == 0 && column + 4 <= columns) {
    MergeSplits(source, row, column / dim, column % dim, 4, four);
    return;
  }
  C3PO_UNROLL
  for (int i = 0; i < 4; ++i) {
    float one[4] = {0, 0, 0, 0};
    if (column + i < columns) MergeSplits(source, row, (column + i) / dim, (column + i) % dim, 1, one);
    four[i] = one[0];
  }
}

// Rows whose loads are under way at once.
inline constexpr int kRowsLoaded = 4;

// Rows [first, first + kRowsLoaded) of a block's `rows` that x has: their index there, or -1.
C3PO_DEVICE void FindRows(const RowSource& source, int first_row, int first, int rows, int (&index)[kRowsLoaded]) {
  C3PO_UNROLL
  for (int r = 0; r < kRowsLoaded; ++r) {
    const int row = first_row + first + r;
    index[r] = first + r >= rows ? -1 : source.row_index != nullptr ? source.row_index[row] : row;
  }
}

C3PO_DEVICE void LoadRows(const RowSource& source, const int (&index)[kRowsLoaded], int column, int columns,
                          bool aligned, float (&four)[kRowsLoaded][4]) {
  C3PO_UNROLL
  for (int r = 0; r < kRowsLoaded; ++r) {
    C3PO_UNROLL
    for (int i = 0; i < 4; ++i) four[r][i] = 0;
    if (index[r] >= 0) LoadFour(source.x + index[r] * source.stride, column, columns, aligned, four[r]);
  }
}

// Each row's sum of squares, in parts: a warp's is scratch[row * kProductWarps + warp].
template <int kPlanes>
C3PO_DEVICE void SumSquares(const RowSource& source, int first_row, int rows, int columns, bool aligned,
                            float* scratch) {
  for (int first = 0; first < rows; first += kRowsLoaded) {
    int index[kRowsLoaded];
    FindRows(source, first_row, first, rows, index);
    float sum[kRowsLoaded] = {};
    for (int column = 4 * device::Thread(); column < columns; column += 4 * kProductThreads<kPlanes>) {
      float four[kRowsLoaded][4];
      LoadRows(source, index, column, columns, aligned, four);
      C3PO_UNROLL
      for (int r = 0; r < kRowsLoaded; ++r) {
        C3PO_UNROLL
        for (int i = 0; i < 4; ++i) sum[r] = device::FusedMultiplyAdd(four[r][i], four[r][i], sum[r]);
      }
    }
    C3PO_UNROLL
    for (int r = 0; r < kRowsLoaded; ++r) {
      C3PO_UNROLL
      for (int mask = 16; mask > 0; mask /= 2) sum[r] = device::Add(sum[r], device::ShuffleXor(sum[r], mask));
      if (device::Lane() == 0 && first + r < rows)
        scratch[(first + r) * kProductWarps<kPlanes> + device::Warp()] = sum[r];
    }
  }
}

// 1 / sqrt(mean of squares + eps) of a row.
template <int kPlanes>
C3PO_DEVICE float InverseNorm(const float* scratch, int row, int columns, float eps) {
  const Words4* const parts = reinterpret_cast<const Words4*>(scratch + row * kProductWarps<kPlanes>);
  float sum = 0;
  C3PO_UNROLL
  for (int w = 0; w < kProductWarps<kPlanes> / 4; ++w) {
    const Words4 four = parts[w];
    C3PO_UNROLL
    for (int i = 0; i < 4; ++i) sum = device::Add(sum, device::FloatOf(four.x[i]));
  }
  const float mean = device::Divide(sum, static_cast<float>(columns));
  return device::Divide(1.0f, device::SquareRoot(device::Add(mean, eps)));
}

// By all threads of a block of kProductThreads: rows [first_row, first_row + rows), rows at most kRowsAtOnce, to row 0
// of `to` and on. `scratch`: kRowsAtOnce * kProductWarps floats of shared memory, 16-byte aligned, which are free again
// only after a barrier. A thread's columns, and so the order of a row's sum of squares, depend on `columns` alone.
template <int kPlanes>
C3PO_DEVICE void MakePlanes(const RowSource& source, int first_row, int rows, int columns, bool for_transposed,
                            float* scratch, const PlanesPlace& to) {
  constexpr int kThreads = kProductThreads<kPlanes>;
  const int padded = static_cast<int>(RoundUp(columns, kChunkColumns));
  if (source.kind == RowSource::kMerged) {
    for (int row = 0; row < rows; ++row) {
      for (int column = 4 * device::Thread(); column < padded; column += 4 * kThreads) {
        float four[4];
        MergeFour(source, first_row + row, column, columns, four);
        StoreFour<kPlanes>(to, row, column, for_transposed, four);
      }
    }
    return;
  }
  const bool aligned = reinterpret_cast<uintptr_t>(source.x) % 16 == 0 && source.stride % 4 == 0;
  const bool normed = source.kind == RowSource::kNormed;
  if (normed) {
    SumSquares<kPlanes>(source, first_row, rows, columns, aligned, scratch);
    device::SyncBlock();
  }
  for (int first = 0; first < rows; first += kRowsLoaded) {
    int index[kRowsLoaded];
    FindRows(source, first_row, first, rows, index);
    float factor[kRowsLoaded];
    C3PO_UNROLL
    for (int r = 0; r < kRowsLoaded; ++r) {
      factor[r] = source.scale;
      if (normed && index[r] >= 0) factor[r] = InverseNorm<kPlanes>(scratch, first + r, columns, source.eps);
    }
    for (int column = 4 * device::Thread(); column < padded; column += 4 * kThreads) {
      float norm[4] = {1, 1, 1, 1}, four[kRowsLoaded][4];
      if (normed) {
        C3PO_UNROLL
        for (int i = 0; i < 4; ++i) norm[i] = column + i < columns ? source.norm[column + i] : 0.0f;
      }
      LoadRows(source, index, column, columns, aligned, four);
      C3PO_UNROLL
      for (int r = 0; r < kRowsLoaded; ++r) {
        if (first + r >= rows) continue;
        C3PO_UNROLL
        for (int i = 0; i < 4; ++i) four[r][i] = device::Multiply(device::Multiply(four[r][i], factor[r]), norm[i]);
        StoreFour<kPlanes>(to, first + r, column, for_transposed, four[r]);
      }
    }
  }
}

}  // namespace c3po::cuda

#endif  // C3PO_SERVER_COMPUTE_CUDA_ROW_PLANES_H_
