#include "server/compute/cuda/group_ring.h"
#include "server/compute/cuda/row_planes.h"
#include "server/compute/cuda/rows.h"

namespace c3po::cuda {
namespace {

using namespace device;  // The language of kernels.

template <int kPlanes>
C3PO_KERNEL void C3PO_BOUNDS(kProductThreads<kPlanes>, 2) RowPlanes(RowPlanesArgs args) {
  LetNextKernelStart();
  WaitForPreviousKernel();
  MakePlanes<kPlanes>(args.source, Block(), 1, args.columns, args.for_transposed, static_cast<float*>(SharedMemory()),
                      PlaceOfPlanes(args.out, Block()));
}

// Eight neighboring columns of a row, from a multiple of eight on: two words in each of two tiles.
C3PO_DEVICE void LoadEight(const PackedWeights& w, int row, int column, float (&values)[8]) {
  const int64_t tile = (int64_t{row / kBandRows} * Chunks(w.columns) + column / kChunkColumns) * 2;
  const int lane = row % 8 * 4 + column % kChunkColumns / 8;
  const char* const first =
      static_cast<const char*>(w.data) + tile * w.planes * kTileBytes + lane * 16 + row % kBandRows / 8 * 4;
  // The smallest plane first: their sum is then the weight exactly.
  for (int p = w.planes - 1; p >= 0; --p) {
    C3PO_UNROLL
    for (int i = 0; i < 4; ++i) {
      const char* const from = first + (i / 2 * w.planes + p) * kTileBytes + i % 2 * 8;
      const uint32_t word = *reinterpret_cast<const uint32_t*>(from);
      values[2 * i] = Add(values[2 * i], FloatOf(word << 16));
      values[2 * i + 1] = Add(values[2 * i + 1], FloatOf(word & 0xffff0000u));
    }
  }
}

// The same of levels and scales.
template <int kBits>
C3PO_DEVICE void LoadEightLevels(const PackedWeights& w, int row, int column, float (&values)[8]) {
  const int chunk = column / kChunkColumns, in_block = chunk % BlockChunks(kBits), half = row % kBandRows / 8;
  const int64_t block = int64_t{row / kBandRows} * BlocksOfBand(w.columns, kBits) + chunk / BlockChunks(kBits);
  const char* const first = static_cast<const char*>(w.data) + block * BlockBytes(kBits);
  const char* const scales = first + kLevelBytes + 4 * (row % 8 * BlockChunks(kBits) + in_block);
  const GroupScales both(*reinterpret_cast<const uint32_t*>(scales));
  const float scale = half == 0 ? both.of_row[0] : both.of_row[1];
  const int lane = row % 8 * 4 + column % kChunkColumns / 8;
  C3PO_UNROLL
  for (int j = 0; j < 2; ++j) {
    const char* const levels = first + lane * 16 + (2 * in_block + j) * kBits;
    const Words4 pairs = WidenLevels<kBits>(reinterpret_cast<const uint32_t*>(levels));
    C3PO_UNROLL
    for (int i = 0; i < 2; ++i) {
      const uint32_t pair = half == 0 ? pairs.x[2 * i] : pairs.x[2 * i + 1];
      values[4 * j + 2 * i] = Multiply(scale, FloatOf(pair << 16));
      values[4 * j + 2 * i + 1] = Multiply(scale, FloatOf(pair & 0xffff0000u));
    }
  }
}

// A thread has eight neighboring columns at a time.
C3PO_KERNEL void C3PO_BOUNDS(128, 8) Embedding(EmbeddingArgs args) {
  LetNextKernelStart();
  WaitForPreviousKernel();
  const PackedWeights& w = args.weights;
  const int token = args.tokens[Block()];
  float* const out = args.out + Block() * args.stride;
  for (int column = 8 * Thread(); column < w.columns; column += 8 * Threads()) {
    float values[8] = {};
    if (token >= 0) {
      if (w.bits == 16) {
        LoadEight(w, token, column, values);
      } else if (w.bits == 8) {
        LoadEightLevels<8>(w, token, column, values);
      } else {
        LoadEightLevels<4>(w, token, column, values);
      }
    }
    C3PO_UNROLL
    for (int i = 0; i < 8; ++i) {
      if (column + i < w.columns) out[column + i] = Multiply(args.multiplier, values[i]);
    }
  }
}

template <int kPlanes>
Error LaunchPlanes(const RowPlanesArgs& args, Stream stream) {
  return LaunchEarly(RowPlanes<kPlanes>, Grid{args.rows}, kProductThreads<kPlanes>,
                     kRowsAtOnce * kProductWarps<kPlanes> * static_cast<int>(sizeof(float)), stream, args);
}

}  // namespace

Error LaunchRowPlanes(const RowPlanesArgs& args, Stream stream) {
  return args.planes == 1 ? LaunchPlanes<1>(args, stream) : LaunchPlanes<3>(args, stream);
}

Error LaunchEmbedding(const EmbeddingArgs& args, Stream stream) {
  return LaunchEarly(Embedding, Grid{args.rows}, 128, 0, stream, args);
}

}  // namespace c3po::cuda
