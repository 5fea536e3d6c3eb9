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

// Of levels and scales, of which a word holds two rows' (layout.h): bytes 0 and 2 of levels and the low half of scales
// are of row g, the others of row g + 8. A block is a band of `to`, a thread a word of each block of levels.
C3PO_KERNEL void C3PO_BOUNDS(kThreads, 1) GatherLevels(GatherRowsArgs args) {
  static_assert(kThreads == kLevelBytes / 4);
  const int bits = args.from.bits, block_words = BlockBytes(bits) / 4, scale_words = block_words - kThreads;
  const int blocks = BlocksOfBand(args.from.columns, bits), thread = device::Thread();
  uint32_t* const to = static_cast<uint32_t*>(args.to) + int64_t{device::Block()} * blocks * block_words;
  // Row g of what this thread has of levels is that of its lane, and of scales that of its word.
  const int rows[2] = {thread / 16, thread / BlockChunks(bits)};
  const int words[2] = {thread % 16, kThreads + thread % BlockChunks(bits)};
  const int words_of_row[2] = {16, BlockChunks(bits)};
  C3PO_UNROLL
  for (int kind = 0; kind < 2; ++kind) {
    if (kind == 1 && thread >= scale_words) break;
    const uint32_t low = kind == 0 ? 0x00ff00ffu : 0x0000ffffu;
    const int shift = kind == 0 ? 8 : 16;
    for (int block = 0; block < blocks; ++block) {
      uint32_t word = 0;
      C3PO_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int i = device::Block() * kBandRows + rows[kind] + 8 * half;
        if (i >= args.count) continue;
        const int source = args.indices[i], source_row = source % kBandRows;
        const uint32_t* const from =
            static_cast<const uint32_t*>(args.from.data) + (int64_t{source / kBandRows} * blocks + block) * block_words;
        const uint32_t both = from[words[kind] + source_row % 8 * words_of_row[kind]];
        word |= (both >> (source_row / 8 * shift) & low) << (half * shift);
      }
      to[int64_t{block} * block_words + kind * kThreads + thread] = word;
    }
  }
}

}  // namespace

Error LaunchGatherRows(const GatherRowsArgs& args, Stream stream) {
  if (args.from.bits != 16) {
    return device::Launch(GatherLevels, device::Grid{Bands(args.count)}, kThreads, 0, stream, args);
  }
  return device::Launch(GatherRows, device::Grid{Bands(args.count)}, kThreads, 0, stream, args);
}

}  // namespace c3po::cuda
