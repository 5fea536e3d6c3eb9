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
// Weights of 8 and of 4 bits. W = s q, a scale s for each group of 32 columns of a row: the levels q and scales of
// server/compute/cpu/quantized_panels.h, bit for bit. A group is a chunk, so what multiplies a group meets one scale.
//   [M / 16 bands][blocks: 1 chunk of 8 bits, 2 of 4 bits][32 lanes][16 bytes of levels], [8 g][scales] behind them
// A lane's 16 bytes are what it holds of the block's tiles, in their order: of 8 bits two words a tile, of 4 bits one.
// So a warp reads a block's levels in one load of 512 bytes, and 32 or 64 bytes of scales. Levels lie so that two
// shifts and masks a word give pairs of bfloat16 (group_ring.h); with h = 0 of row g and 1 of row g + 8, in the
// operand's order,
//   8 bits   columns (2t, 2t+1) in bytes h and h + 2 of the first word, (2t+8, 2t+9) in those of the second;
//            the sign in bit 7, the magnitude below
//   4 bits   columns (2t, 2t+1) in the low, (2t+8, 2t+9) in the high halves of bytes h and h + 2; two's complement
// Scales are bfloat16, of g and g + 8 side by side, of each chunk of the block. Where chunks are odd in number the last
// block's second one is padding. Padding is zero: level and scale.
//
// The memory of all is 16-byte aligned.
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

// The blocks of levels and scales.
inline constexpr int kLevelBytes = 512;  // of a block
constexpr int BlockChunks(int bits) { return 8 / bits; }
constexpr int BlockBytes(int bits) { return kLevelBytes + 4 * 8 * BlockChunks(bits); }
constexpr int BlocksOfBand(int columns, int bits) {
  return (Chunks(columns) + BlockChunks(bits) - 1) / BlockChunks(bits);
}

// One packed matrix in GPU memory, or the first of several that are `matrix_bytes` apart.
struct PackedWeights {
  const void* data = nullptr;
  int rows = 0, columns = 0;  // M, K, as they are without padding
  int planes = 1;             // 1 or 3: of the rows that it is multiplied with and, of 16 bits, its own
  int64_t matrix_bytes = 0;   // PackedBytes(rows, columns, planes, bits)
  int bits = 16;              // of a weight in a plane, or of its level: 8 or 4
};

constexpr int64_t PackedBytes(int64_t rows, int64_t columns, int planes, int bits = 16) {
  if (bits != 16) {
    return int64_t{Bands(static_cast<int>(rows))} * BlocksOfBand(static_cast<int>(columns), bits) * BlockBytes(bits);
  }
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
