#ifndef C3PO_INDEX_SEARCH_CUDA_ROW_DISTANCE_H_
#define C3PO_INDEX_SEARCH_CUDA_ROW_DISTANCE_H_

#include "index/base/cuda/device.h"

// Kernel code: distances between queries in shared memory and rows in global memory, eight lanes to a row.
namespace c3po::device {

inline constexpr int kRowLanes = 8;
inline constexpr int kRowsOfWarp = 32 / kRowLanes;

C3PO_DEVICE int RowLane() { return Lane() % kRowLanes; }
C3PO_DEVICE int RowGroup() { return Lane() / kRowLanes; }  // in its warp

// Warp. SquaredDistance (index/search/distance.h) of kQueries queries and kRows rows, bit for bit, in all eight lanes
// of each row's group. A lane has the partial sums 4i..4i+3 of the 32; scan.h says why the result is the same. kAhead:
// how many steps of 32 floats are loaded before the first is used. `dimension` is the same in the whole warp.
template <int kQueries, int kRows, int kAhead>
C3PO_DEVICE void SquaredDistances(const float* queries, int query_stride, const float* const (&rows)[kRows],
                                  int dimension, float (&squared)[kQueries][kRows]) {
  float partial[kQueries][kRows][4] = {};
  const int whole = dimension / 32 * 32;
  for (int first = 4 * RowLane(); first < whole; first += 32 * kAhead) {
    Words4 x[kAhead][kRows];
    C3PO_UNROLL for (int step = 0; step < kAhead; ++step) {
      if (first + 32 * step >= whole) continue;
      C3PO_UNROLL for (int r = 0; r < kRows; ++r) {
        x[step][r] = LoadOnce(reinterpret_cast<const Words4*>(rows[r] + first + 32 * step));
      }
    }
    C3PO_UNROLL for (int step = 0; step < kAhead; ++step) {
      if (first + 32 * step >= whole) continue;
      C3PO_UNROLL for (int q = 0; q < kQueries; ++q) {
        const Words4 y = *reinterpret_cast<const Words4*>(queries + q * query_stride + first + 32 * step);
        C3PO_UNROLL for (int r = 0; r < kRows; ++r) {
          C3PO_UNROLL for (int j = 0; j < 4; ++j) {
            const float difference = Subtract(FloatOf(y.x[j]), FloatOf(x[step][r].x[j]));
            partial[q][r][j] = Add(partial[q][r][j], Multiply(difference, difference));
          }
        }
      }
    }
  }
  C3PO_UNROLL for (int q = 0; q < kQueries; ++q) {
    C3PO_UNROLL for (int r = 0; r < kRows; ++r) {
      float(&sums)[4] = partial[q][r];
      C3PO_UNROLL for (int j = 0; j < 4; ++j) {
        sums[j] = Add(sums[j], ShuffleXor(sums[j], 2));
        sums[j] = Add(sums[j], ShuffleXor(sums[j], 4));
      }
      const float half = Add(Add(sums[0], sums[1]), Add(sums[2], sums[3]));
      squared[q][r] = Add(half, ShuffleXor(half, 1));
    }
  }
  for (int first = whole; first < dimension; first += 4) {
    C3PO_UNROLL for (int r = 0; r < kRows; ++r) {
      const Words4 x = LoadOnce(reinterpret_cast<const Words4*>(rows[r] + first));
      C3PO_UNROLL for (int q = 0; q < kQueries; ++q) {
        const Words4 y = *reinterpret_cast<const Words4*>(queries + q * query_stride + first);
        C3PO_UNROLL for (int j = 0; j < 4; ++j) {
          if (first + j >= dimension) continue;
          const float difference = Subtract(FloatOf(y.x[j]), FloatOf(x.x[j]));
          squared[q][r] = Add(squared[q][r], Multiply(difference, difference));
        }
      }
    }
  }
}

// Warp. The same roughly, from rows of float16 (scan.h's s(x)): one chain of fused sums a lane, then three exchanges.
// stride: floats and halves of a query and a row, a multiple of 64.
template <int kQueries, int kRows, int kAhead>
C3PO_DEVICE void HalfDistances(const float* queries, const uint16_t* const (&rows)[kRows], int stride,
                               float (&squared)[kQueries][kRows]) {
  C3PO_UNROLL for (int q = 0; q < kQueries; ++q) { C3PO_UNROLL for (int r = 0; r < kRows; ++r) squared[q][r] = 0; }
  for (int first = 8 * RowLane(); first < stride; first += 64 * kAhead) {
    Words4 x[kAhead][kRows];
    C3PO_UNROLL for (int step = 0; step < kAhead; ++step) {
      if (first + 64 * step >= stride) continue;
      C3PO_UNROLL for (int r = 0; r < kRows; ++r) {
        x[step][r] = LoadOnce(reinterpret_cast<const Words4*>(rows[r] + first + 64 * step));
      }
    }
    C3PO_UNROLL for (int step = 0; step < kAhead; ++step) {
      if (first + 64 * step >= stride) continue;
      float halves[kRows][8];
      C3PO_UNROLL for (int r = 0; r < kRows; ++r) {
        C3PO_UNROLL for (int j = 0; j < 8; ++j) {
          halves[r][j] = ToFloat(Float16{static_cast<uint16_t>(x[step][r].x[j / 2] >> (16 * (j % 2)))});
        }
      }
      C3PO_UNROLL for (int q = 0; q < kQueries; ++q) {
        const Words4* const y = reinterpret_cast<const Words4*>(queries + q * stride + first + 64 * step);
        const Words4 four[2] = {y[0], y[1]};
        C3PO_UNROLL for (int r = 0; r < kRows; ++r) {
          C3PO_UNROLL for (int j = 0; j < 8; ++j) {
            const float difference = Subtract(FloatOf(four[j / 4].x[j % 4]), halves[r][j]);
            squared[q][r] = FusedMultiplyAdd(difference, difference, squared[q][r]);
          }
        }
      }
    }
  }
  C3PO_UNROLL for (int q = 0; q < kQueries; ++q) {
    C3PO_UNROLL for (int r = 0; r < kRows; ++r) {
      C3PO_UNROLL for (int mask = 1; mask < kRowLanes; mask *= 2) {
        squared[q][r] = Add(squared[q][r], ShuffleXor(squared[q][r], mask));
      }
    }
  }
}

}  // namespace c3po::device

#endif  // C3PO_INDEX_SEARCH_CUDA_ROW_DISTANCE_H_
