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

// A thread has eight neighboring columns at a time: two words in each of two tiles.
C3PO_KERNEL void C3PO_BOUNDS(128, 8) Embedding(EmbeddingArgs args) {
  LetNextKernelStart();
  WaitForPreviousKernel();
  const PackedWeights& w = args.weights;
  const int token = args.tokens[Block()];
  float* const out = args.out + Block() * args.stride;
  for (int column = 8 * Thread(); column < w.columns; column += 8 * Threads()) {
    float values[8] = {};
    if (token >= 0) {
      const int64_t tile = (int64_t{token / kBandRows} * Chunks(w.columns) + column / kChunkColumns) * 2;
      const int lane = token % 8 * 4 + column % kChunkColumns / 8;
      const char* const first =
          static_cast<const char*>(w.data) + tile * w.planes * kTileBytes + lane * 16 + token % kBandRows / 8 * 4;
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
