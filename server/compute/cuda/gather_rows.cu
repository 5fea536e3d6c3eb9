#include "index/base/cuda/device.h"
#include "server/compute/cuda/gather_rows.h"

namespace c3po::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kTileWords = kTileBytes / 4;  // a word is two neighboring columns of a row

// A block is a band of `to`, a thread one word of each of its tiles: lane thread / 4, word thread % 4 of its four.
C3PO_KERNEL void C3PO_BOUNDS(kThreads, 1) GatherRows(GatherRowsArgs args) {
  static_assert(kThreads == kTileWords);
  const int lane = device::Thread() / 4, word = device::Thread() % 4;
  const int row = lane / 4 + word % 2 * 8;  // in the band
  const int i = device::Block() * kBandRows + row;
  const int tiles = Chunks(args.from.columns) * 2 * args.from.planes;  // of a band
  uint32_t* const to = static_cast<uint32_t*>(args.to) + int64_t{device::Block()} * tiles * kTileWords;
  const bool padding = i >= args.count;
  const int source = padding ? 0 : args.indices[i];
  const int source_row = source % kBandRows;
  const uint32_t* const from = static_cast<const uint32_t*>(args.from.data) +
                               int64_t{source / kBandRows} * tiles * kTileWords + (source_row % 8 * 4 + lane % 4) * 4 +
                               word / 2 * 2 + source_row / 8;
  for (int tile = 0; tile < tiles; ++tile) {
    to[tile * kTileWords + device::Thread()] = padding ? 0 : from[int64_t{tile} * kTileWords];
  }
}

}  // namespace

Error LaunchGatherRows(const GatherRowsArgs& args, Stream stream) {
  return device::Launch(GatherRows, device::Grid{Bands(args.count)}, kThreads, 0, stream, args);
}

}  // namespace c3po::cuda
