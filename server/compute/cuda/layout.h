#ifndef C3PO_SERVER_COMPUTE_CUDA_LAYOUT_H_
#define C3PO_SERVER_COMPUTE_CUDA_LAYOUT_H_

#include <cstdint>

// How weights and activations lie in GPU memory. Kernels and host code read this header, so it includes standard
// headers only.
//
// Weights. W [M, K], M padded to 16 rows and K to 32 columns by zeros. A band is 16 rows, a chunk 32 columns, a tile
// 16 x 16. W is one bfloat16 plane, or three whose sum is the float32 weight (packed_matrix.h). Order:
//   [M / 16 bands][K / 32 chunks][2 tiles][planes][32 lanes][8 entries]
// A lane's 8 entries are what it holds of the A operand of mma.m16n8k16, so a warp's 16-byte loads are operands as they
// are. With g = lane / 4 and t = lane % 4 they are, two by two, the tile's (row, columns)
//   (g, 2t, 2t+1)  (g + 8, 2t, 2t+1)  (g, 2t+8, 2t+9)  (g + 8, 2t+8, 2t+9).
//
// Columns within a chunk are permuted: tile j's columns (2t, 2t+1) are k = 8t + 4j + {0, 1}, its columns (2t+8, 2t+9)
// are k = 8t + 4j + {2, 3}. So what lane t needs of an activation row for both tiles is 8 neighboring entries.
//
// Activations. bfloat16 planes [planes][R][stride], stride a multiple of 8 and at least the row's length padded to 32.
// The padding is zero. Rows that enter x W^T lie in the order of k. Rows that enter x W lie in the order of
// PositionOf(m) within each 32 rows m of W: then lane t needs the same 8 neighbors there.
//
// The memory of both is 16-byte aligned.
namespace c3po::cuda {

inline constexpr int kBandRows = 16;
inline constexpr int kChunkColumns = 32;
inline constexpr int kTileBytes = 512;  // of one plane

constexpr int64_t RoundUp(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
constexpr int Bands(int rows) { return (rows + kBandRows - 1) / kBandRows; }
constexpr int Chunks(int columns) { return (columns + kChunkColumns - 1) / kChunkColumns; }

// Of 32 places of a chunk's two tiles, 16 * tile + column in it, and of 32 memory positions: each other's inverse.
constexpr int PositionOf(int place) {
  const int tile = place / 16, column = place % 16;
  return column % 8 / 2 * 8 + 4 * tile + column / 8 * 2 + column % 2;
}
constexpr int PlaceOf(int position) {
  const int t = position / 8, tile = position / 4 % 2;
  return 16 * tile + 2 * t + position % 4 / 2 * 8 + position % 2;
}

// Where neuron i's gate and up row lie in a packed gate/up matrix: tiles of gate and up rows alternate.
constexpr int64_t GateRow(int64_t i) { return i / kBandRows * 2 * kBandRows + i % kBandRows; }
constexpr int64_t UpRow(int64_t i) { return GateRow(i) + kBandRows; }

// One packed matrix in GPU memory, or the first of several that are `matrix_bytes` apart.
struct PackedWeights {
  const void* data = nullptr;
  int rows = 0, columns = 0;  // M, K, as they are without padding
  int planes = 1;             // 1 or 3
  int64_t matrix_bytes = 0;   // PackedBytes(rows, columns, planes)
};

constexpr int64_t PackedBytes(int64_t rows, int64_t columns, int planes) {
  return RoundUp(rows, kBandRows) * RoundUp(columns, kChunkColumns) * 2 * planes;
}

// bfloat16 rows in GPU memory.
struct ActivationPlanes {
  uint16_t* data = nullptr;
  int64_t plane_stride = 0;  // entries from one plane to the next; a multiple of 8
  int stride = 0;            // entries from one row to the next
};

}  // namespace c3po::cuda

#endif  // C3PO_SERVER_COMPUTE_CUDA_LAYOUT_H_
