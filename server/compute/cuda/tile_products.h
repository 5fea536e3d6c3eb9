#ifndef C3PO_SERVER_COMPUTE_CUDA_TILE_PRODUCTS_H_
#define C3PO_SERVER_COMPUTE_CUDA_TILE_PRODUCTS_H_

#include <type_traits>

#include "index/base/cuda/device.h"
#include "server/compute/cuda/forms.h"
#include "server/compute/cuda/group_ring.h"
#include "server/compute/cuda/layout.h"
#include "server/compute/cuda/row_planes.h"

// Kernel code: what all products of packed weights share. A warp multiplies 16 outputs (or 2 x 16) by up to 8 kTiles
// rows of activations, over its share of the sum; steps of 32 go to the block's warps in turn.
//
// Bytes in flight. A GPU that reads B bytes/s with a latency of T has B T bytes under way: 4.3 TB/s x 0.8 us, some 26
// KiB on each of 132 multiprocessors. A warp asks for its steps ahead by cp.async into a ring of its own in shared
// memory, 4 KiB deep at least: 64 KiB with one block of 16 warps. A lane copies what it reads itself, so no barrier is
// needed, and registers are left for sums. Activations are read straight from L1 and L2: 16 bytes a lane, 64 bytes a
// row.
namespace c3po::cuda {

template <int kPlanes>
struct PlanesOf8 {  // What a lane multiplies of one activation row in one step.
  Words4 plane[kPlanes];
};

// Of weights of 16 bits. Bands is 2 where two bands share their activations (gate and up).
template <int kPlanes, int kBands>
class PlaneRing {
 public:
  static constexpr int kStepBytes = kBands * 2 * kPlanes * kTileBytes;
  static constexpr int kDepth = kStepBytes <= 1024 ? 4 : kStepBytes <= 3072 ? 3 : 2;
  static constexpr int kWarpBytes = kDepth * kStepBytes;
  static constexpr int kStepChunks = 1;

  // Of this lane, in the ring of its warp.
  C3PO_DEVICE explicit PlaneRing(char* warp_ring) : lane_(warp_ring + 16 * device::Lane()) {}

  // Asks for a step: band b's tile j lies at first + b * band_stride + j * tile_stride. Where not `second`, tile 1 is
  // zero; what comes of bands from `bands` on is unknown.
  C3PO_DEVICE void Ask(const char* first, int64_t band_stride, int64_t tile_stride, bool second, int bands) {
    C3PO_UNROLL
    for (int b = 0; b < kBands; ++b) {
      if (b > 0 && b >= bands) continue;
      C3PO_UNROLL
      for (int j = 0; j < 2; ++j) {
        C3PO_UNROLL
        for (int p = 0; p < kPlanes; ++p) {
          char* const to = lane_ + asked_ * kStepBytes + ((b * 2 + j) * kPlanes + p) * kTileBytes;
          const char* const from = first + b * band_stride + (j == 1 && !second ? 0 : j * tile_stride) +
                                   p * kTileBytes + 16 * device::Lane();
          if (j == 0) {
            device::CopyAsync16(to, from);
          } else {
            device::CopyAsyncOrZero16(to, from, second);
          }
        }
      }
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
  C3PO_DEVICE Words4 Tile(int band, int tile, int plane) const {
    const char* const from = lane_ + read_ * kStepBytes + ((band * 2 + tile) * kPlanes + plane) * kTileBytes;
    return *reinterpret_cast<const Words4*>(from);
  }
  // Done with the oldest step: the next Ask takes its place.
  C3PO_DEVICE void Pass() { read_ = read_ + 1 == kDepth ? 0 : read_ + 1; }

 private:
  char* lane_;
  int asked_ = 0, read_ = 0;  // places in the ring
};

template <Form kForm, int kBands, bool kTransposed>
using WeightRing = std::conditional_t<BitsOf(kForm) == 16, PlaneRing<PlanesOf(kForm), kBands>,
                                      GroupRing<BitsOf(kForm), kBands, kTransposed>>;

// Where activations lie: in global memory, or in shared.
struct Activations {
  const char* data;
  int64_t plane_stride;  // bytes
};
C3PO_DEVICE Activations ActivationsOf(const ActivationPlanes& planes) {
  return {reinterpret_cast<const char*>(planes.data), planes.plane_stride * 2};
}

// A row's entries of a chunk; `row` is the row's byte offset, or negative: the row is zero.
template <int kPlanes>
C3PO_DEVICE PlanesOf8<kPlanes> LoadChunk(const Activations& x, int64_t row, int chunk) {
  PlanesOf8<kPlanes> result;
  C3PO_UNROLL
  for (int p = 0; p < kPlanes; ++p) {
    result.plane[p] = Words4{{0, 0, 0, 0}};
    if (row >= 0) {
      const char* const from =
          x.data + p * x.plane_stride + row + chunk * (2 * kChunkColumns) + device::Lane() % 4 * 16;
      result.plane[p] = *reinterpret_cast<const Words4*>(from);
    }
  }
  return result;
}

// A chunk's weights of one band, as operands.
template <int kPlanes>
struct Operands {
  Words4 tile[2][kPlanes];
};

// The transpose has the quarters off its diagonal exchanged.
C3PO_DEVICE Words4 TransposedTile(const Words4& a) {
  return Words4{{device::Transpose8x8(a.x[0]), device::Transpose8x8(a.x[2]), device::Transpose8x8(a.x[1]),
                 device::Transpose8x8(a.x[3])}};
}

// Planes of the weights in a form's operands: of groups x W^T multiplies levels, x W two planes.
template <Form kForm, bool kTransposed>
inline constexpr int kWeightPlanes = BitsOf(kForm) == 16 ? PlanesOf(kForm)
                                     : kTransposed       ? 2
                                                         : 1;

// Of chunk `chunk` of the step's.
template <Form kForm, int kBands, bool kTransposed>
C3PO_DEVICE Operands<kWeightPlanes<kForm, kTransposed>> LoadOperands(const WeightRing<kForm, kBands, kTransposed>& ring,
                                                                     int band, int chunk) {
  Operands<kWeightPlanes<kForm, kTransposed>> result;
  C3PO_UNROLL
  for (int j = 0; j < 2; ++j) {
    if constexpr (BitsOf(kForm) == 16) {
      C3PO_UNROLL
      for (int p = 0; p < PlanesOf(kForm); ++p) {
        const Words4 a = ring.Tile(band, j, p);
        result.tile[j][p] = kTransposed ? TransposedTile(a) : a;
      }
    } else if constexpr (kTransposed) {
      const WidenedTile widened(ring.LevelsOf(j).Tile(band), ring.Scales(j, 0));
      C3PO_UNROLL
      for (int p = 0; p < 2; ++p) result.tile[j][p] = TransposedTile(widened.plane[p]);
    } else {
      result.tile[j][0] = ring.LevelsOf(band).Tile(2 * chunk + j);
    }
  }
  return result;
}

// sum += a x over a chunk, the smallest products first. Three planes of both: hi hi, hi mid, mid hi, mid mid, hi lo,
// lo hi. What is left out is below 2^-23 of the product. One or two planes of weights are fewer of these.
template <int kWeightPlanesOf, int kPlanes>
C3PO_DEVICE void MultiplyChunk(const Operands<kWeightPlanesOf>& a, const PlanesOf8<kPlanes>& x, float (&sum)[4]) {
  constexpr int kOrders = kWeightPlanesOf > kPlanes ? kWeightPlanesOf : kPlanes;
  C3PO_UNROLL
  for (int j = 0; j < 2; ++j) {
    C3PO_UNROLL
    for (int order = kOrders - 1; order >= 0; --order) {
      C3PO_UNROLL
      for (int p = 0; p <= order; ++p) {
        if (p >= kWeightPlanesOf || order - p >= kPlanes) continue;
        const uint32_t b[2] = {x.plane[order - p].x[2 * j], x.plane[order - p].x[2 * j + 1]};
        device::MultiplyAdd16x8x16(sum, a.tile[j][p].x, b);
      }
    }
  }
}

// Which output of a product the n-th (0..15) of unit `unit` is. Of x W^T a unit is a band; of x W it is 16 columns, one
// of a chunk's tiles. A lane's sums 0 and 1 are of n = g, 2 and 3 of n = g + 8; 0 and 2 of its tile's row 2t, 1 and 3
// of row 2t + 1.
template <bool kTransposed>
C3PO_DEVICE int OutputOf(int unit, int n) {
  if constexpr (!kTransposed) return unit * kBandRows + n;
  return unit / 2 * kChunkColumns + n % 8 / 2 * 8 + unit % 2 * 4 + n % 2 + n / 8 * 2;
}

// Steps that a sum has, of 32, or of 64 where a block is two chunks; and units of 16 outputs.
template <Form kForm, bool kTransposed>
C3PO_DEVICE int StepsOf(const PackedWeights& w) {
  if (kTransposed) return (Bands(w.rows) + 1) / 2;
  return BitsOf(kForm) == 16 ? Chunks(w.columns) : BlocksOfBand(w.columns, BitsOf(kForm));
}
template <bool kTransposed>
constexpr int UnitsOf(const PackedWeights& w) {
  return kTransposed ? 2 * Chunks(w.columns) : Bands(w.rows);
}

// Asks for step `step` of units [kBands * unit, kBands * (unit + 1)) of matrix `matrix` of several: of those that there
// are.
template <Form kForm, int kBands, bool kTransposed>
C3PO_DEVICE void AskStep(WeightRing<kForm, kBands, kTransposed>& ring, const PackedWeights& w, int matrix, int unit,
                         int step) {
  constexpr int kBits = BitsOf(kForm), kTilePlanes = PlanesOf(kForm) * kTileBytes;
  const char* const data = static_cast<const char*>(w.data) + matrix * w.matrix_bytes;
  const int units = UnitsOf<kTransposed>(w) - kBands * unit;
  if (step >= StepsOf<kForm, kTransposed>(w) || units <= 0) return ring.AskNothing();
  if constexpr (kBits != 16) {
    const int64_t band_bytes = int64_t{BlocksOfBand(w.columns, kBits)} * BlockBytes(kBits);
    if constexpr (kTransposed) {
      const int tile = kBands * unit, chunk = tile / 2, in_block = chunk % BlockChunks(kBits);
      const char* const first = data + 2 * step * band_bytes + chunk / BlockChunks(kBits) * BlockBytes(kBits);
      ring.Ask(first, band_bytes, (2 * in_block + tile % 2) * kBits, 4 * in_block, Bands(w.rows) - 2 * step);
    } else {
      ring.Ask(data + unit * kBands * band_bytes + step * BlockBytes(kBits), band_bytes, 0, 0, units);
    }
  } else {
    const int64_t band_bytes = int64_t{Chunks(w.columns)} * 2 * kTilePlanes;
    if constexpr (kTransposed) {
      const char* const first = data + 2 * step * band_bytes + unit * (kBands * kTilePlanes);
      ring.Ask(first, kTilePlanes, band_bytes, 2 * step + 1 < Bands(w.rows), units);
    } else {
      const char* const first = data + unit * kBands * band_bytes + step * (2 * kTilePlanes);
      ring.Ask(first, band_bytes, kTilePlanes, true, units);
    }
  }
}

struct alignas(16) Sums4 {
  float x[4];
};

// Shared memory through which a block's warps add up: kBands * tiles sums of each.
template <int kPlanes, int kBands, int kTiles>
inline constexpr int kSumBytes = kProductWarps<kPlanes>* kBands* kTiles * 32 * static_cast<int>(sizeof(Sums4));

// The total over all warps, in their order; of this lane, tile and band.
template <int kPlanes, int kBands, int kTiles>
C3PO_DEVICE Sums4 TotalOf(const Sums4* shared, int band, int tile) {
  const Sums4* const own = shared + (band * kTiles + tile) * 32 + device::Lane();
  Sums4 total = own[0];
  C3PO_UNROLL
  for (int w = 1; w < kProductWarps<kPlanes>; ++w) {
    const Sums4 part = own[w * kBands * kTiles * 32];
    C3PO_UNROLL
    for (int i = 0; i < 4; ++i) total.x[i] = device::Add(total.x[i], part.x[i]);
  }
  return total;
}

template <int kPlanes, int kBands, int kTiles>
C3PO_DEVICE void StoreSums(const float (&sums)[kBands][kTiles][4], int tiles, Sums4* shared) {
  Sums4* const own = shared + device::Warp() * (kBands * kTiles * 32) + device::Lane();
  C3PO_UNROLL
  for (int b = 0; b < kBands; ++b) {
    C3PO_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      const float(&own_sums)[4] = sums[b][tile];
      if (tile < tiles) own[(b * kTiles + tile) * 32] = Sums4{{own_sums[0], own_sums[1], own_sums[2], own_sums[3]}};
    }
  }
}

// sums += what chunk `chunk` of the step's adds, of weights that have come.
template <Form kForm, int kBands, int kTiles, bool kTransposed>
C3PO_DEVICE void MultiplyStep(const WeightRing<kForm, kBands, kTransposed>& ring, int chunk,
                              const PlanesOf8<PlanesOf(kForm)> (&rows)[kTiles], int tiles,
                              float (&sums)[kBands][kTiles][4]) {
  C3PO_UNROLL
  for (int b = 0; b < kBands; ++b) {
    const auto a = LoadOperands<kForm, kBands, kTransposed>(ring, b, chunk);
    if constexpr (BitsOf(kForm) == 16 || kTransposed) {
      C3PO_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        if (tile < tiles) MultiplyChunk(a, rows[tile], sums[b][tile]);
      }
    } else {
      const GroupScales scales = ring.Scales(b, chunk);
      C3PO_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        if (tile >= tiles) continue;
        float of_group[4] = {};
        MultiplyChunk(a, rows[tile], of_group);
        C3PO_UNROLL
        for (int i = 0; i < 4; ++i) {
          sums[b][tile][i] = device::FusedMultiplyAdd(scales.of_row[i / 2], of_group[i], sums[b][tile][i]);
        }
      }
    }
  }
}

// A warp's share of one sum over w, for up to 8 kTiles rows: its steps are `warp`, `warp` + kWarps, ... Each step's
// weights come out of the ring, in the order in which they were asked for; `ask` then asks for one step more. `row`:
// the byte offset of this lane's row (lane / 4 of each tile), or negative.
template <Form kForm, int kBands, int kTiles, bool kTransposed, class Ask>
C3PO_DEVICE void MultiplyShare(WeightRing<kForm, kBands, kTransposed>& ring, const PackedWeights& w,
                               const Activations& x, const int64_t (&row)[kTiles], int tiles, int warp, const Ask& ask,
                               float (&sums)[kBands][kTiles][4]) {
  constexpr int kPlanes = PlanesOf(kForm), kWarps = kProductWarps<kPlanes>;
  constexpr int kChunks = WeightRing<kForm, kBands, kTransposed>::kStepChunks;
  const int steps = StepsOf<kForm, kTransposed>(w);
  for (int first = 0; first < steps; first += kWarps) {
    const int step = first + warp;
    C3PO_UNROLL
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int at = step * kChunks + chunk;
      const bool some = step < steps && (chunk == 0 || at < Chunks(w.columns));
      PlanesOf8<kPlanes> rows[kTiles];
      if (some) {
        C3PO_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
          if (tile < tiles) rows[tile] = LoadChunk<kPlanes>(x, row[tile], at);
        }
      }
      if (chunk == 0) ring.Wait();
      if (some) MultiplyStep<kForm, kBands, kTiles, kTransposed>(ring, chunk, rows, tiles, sums);
    }
    ring.Pass();
    ask();
  }
}

}  // namespace c3po::cuda

#endif  // C3PO_SERVER_COMPUTE_CUDA_TILE_PRODUCTS_H_
