#ifndef C3PO_SERVER_COMPUTE_CUDA_GROUP_RING_H_
#define C3PO_SERVER_COMPUTE_CUDA_GROUP_RING_H_

#include "index/base/cuda/device.h"
#include "server/compute/cuda/bfloat16_planes.h"
#include "server/compute/cuda/layout.h"

// Kernel code: weights of 8 and 4 bits on their way from memory to the tensor cores' operands. Their levels are
// integers that a bfloat16 holds, so that widening them is exact, and takes two instructions a weight and less:
//   128 + n of n in [0, 127] is the bfloat16 0x4300 | n. Subtracting 128, or 136 of the 4 bits plus 8, leaves the
//   level.
// What enters x W^T are levels alone: a group's sum is multiplied by its scale in float32, once per row and output.
// What enters x W are weights, whose scales differ from row to row: s q, which has 15 bits at most, is two planes
// exactly.
namespace c3po::cuda {

// A tile's levels of a lane as pairs of bfloat16, from its words: one of 4 bits, two of 8.
template <int kBits>
C3PO_DEVICE device::Words4 WidenLevels(const uint32_t* words) {
  device::Words4 pairs;
  C3PO_UNROLL
  for (int k = 0; k < 4; ++k) {
    const int half = k % 2, columns = k / 2;  // the row g or g + 8, columns 2t or 2t + 8
    if constexpr (kBits == 8) {
      constexpr uint32_t k128 = 0x43004300;
      const uint32_t bytes = words[columns] >> 8 * half;
      const uint32_t magnitudes = device::SubtractBFloat16Pairs((bytes & 0x007f007fu) | k128, k128);
      pairs.x[k] = magnitudes ^ ((bytes << 8) & 0x80008000u);
    } else {
      constexpr uint32_t k136 = 0x43084308;
      const uint32_t nibbles = words[0] >> (8 * half + 4 * columns);
      pairs.x[k] = device::SubtractBFloat16Pairs((nibbles & 0x000f000fu) ^ k136, k136);
    }
  }
  return pairs;
}

// Two scales: of the rows g and g + 8.
struct GroupScales {
  float of_row[2];

  C3PO_DEVICE explicit GroupScales(uint32_t word)
      : of_row{device::FloatOf(word << 16), device::FloatOf(word & 0xffff0000u)} {}
};

// The ring of tile_products.h for weights of kBits. A step of x W^T is a block of each of kBands bands; one of x W is,
// of two bands, the kBands tiles that the step's outputs are columns of. kBands is 1 or 2; two tiles are those of a
// chunk.
template <int kBits, int kBands, bool kTransposed>
class GroupRing {
 public:
  static constexpr int kStepChunks = kTransposed ? 1 : BlockChunks(kBits);
  static constexpr int kPieces = kTransposed ? 2 : kBands;
  static constexpr int kLaneLevels = kTransposed ? kBands * kBits : 16;  // bytes: a lane has kBits of them of a tile
  static constexpr int kLaneScales = 4 * kStepChunks;                    // likewise
  static constexpr int kPieceBytes = 32 * (kLaneLevels + kLaneScales);
  static constexpr int kStepBytes = kPieces * kPieceBytes;
  static constexpr int kDepth = kStepBytes > 1024 ? 3 : 4096 / kStepBytes;
  static constexpr int kWarpBytes = kDepth * kStepBytes;

  // Of this lane, in the ring of its warp.
  C3PO_DEVICE explicit GroupRing(char* warp_ring) : ring_(warp_ring) {}

  // Asks for a step: piece i is in the block at first + i * stride, its levels from byte `levels` of each lane's on,
  // its scales from byte `scales` of each row's on. Pieces from `pieces` on are zero where kTransposed, else unknown.
  C3PO_DEVICE void Ask(const char* first, int64_t stride, int levels, int scales, int pieces) {
    C3PO_UNROLL
    for (int i = 0; i < kPieces; ++i) {
      const bool valid = i < pieces;
      if (!kTransposed && !valid) continue;
      char* const to = ring_ + asked_ * kStepBytes + i * kPieceBytes;
      const char* const from = first + (valid ? i * stride : 0);
      device::CopyAsyncOrZero<kLaneLevels>(to + kLaneLevels * device::Lane(), from + levels + 16 * device::Lane(),
                                           valid);
      device::CopyAsyncOrZero<kLaneScales>(to + 32 * kLaneLevels + kLaneScales * device::Lane(),
                                           from + kLevelBytes + scales + 4 * BlockChunks(kBits) * (device::Lane() / 4),
                                           valid);
    }
    AskNothing();
  }
  // What asks for nothing: the ring goes on, with one step less under way.
  C3PO_DEVICE void AskNothing() {
    device::CommitCopies();
    asked_ = asked_ + 1 == kDepth ? 0 : asked_ + 1;
  }

  // The oldest step's weights have come.
  C3PO_DEVICE void Wait() { device::WaitCopies<kDepth - 1>(); }
  // A piece's levels, all that this lane has of them: one load, so that the lanes' banks differ.
  struct alignas(kLaneLevels) Levels {
    uint32_t words[kLaneLevels / 4];

    // Of tile `tile` of the step, in the order of chunks.
    C3PO_DEVICE device::Words4 Tile(int tile) const { return WidenLevels<kBits>(words + tile * (kBits / 4)); }
  };
  C3PO_DEVICE Levels LevelsOf(int piece) const {
    const char* const from = ring_ + read_ * kStepBytes + piece * kPieceBytes + kLaneLevels * device::Lane();
    return *reinterpret_cast<const Levels*>(from);
  }
  C3PO_DEVICE GroupScales Scales(int piece, int chunk) const {
    const char* const from =
        ring_ + read_ * kStepBytes + piece * kPieceBytes + 32 * kLaneLevels + kLaneScales * device::Lane() + 4 * chunk;
    return GroupScales(*reinterpret_cast<const uint32_t*>(from));
  }
  // Done with the oldest step: the next Ask takes its place.
  C3PO_DEVICE void Pass() { read_ = read_ + 1 == kDepth ? 0 : read_ + 1; }

 private:
  char* ring_;
  int asked_ = 0, read_ = 0;  // places in the ring
};

// A tile's weights s q, exactly, as two planes of pairs.
struct WidenedTile {
  device::Words4 plane[2];

  C3PO_DEVICE WidenedTile(const device::Words4& levels, const GroupScales& scales) {
    C3PO_UNROLL
    for (int k = 0; k < 4; ++k) {
      const float scale = scales.of_row[k % 2];
      const SplitPair<2> pair(device::Multiply(scale, device::FloatOf(levels.x[k] << 16)),
                              device::Multiply(scale, device::FloatOf(levels.x[k] & 0xffff0000u)));
      plane[0].x[k] = pair.plane[0];
      plane[1].x[k] = pair.plane[1];
    }
  }
};

}  // namespace c3po::cuda

#endif  // C3PO_SERVER_COMPUTE_CUDA_GROUP_RING_H_
