#ifndef C3PO_SERVER_COMPUTE_CUDA_MANY_ROWS_H_
#define C3PO_SERVER_COMPUTE_CUDA_MANY_ROWS_H_

#include "index/base/cuda/device.h"
#include "server/compute/cuda/products.h"
#include "server/compute/cuda/tile_products.h"

// Products of more rows than a decode step has. There each weight that is read meets up to 64 rows, so what is scarce
// is no longer the memory's bandwidth but that of L2, and then the tensor cores. A warp does not share its sums: it
// owns 32 outputs of 64 rows, eight warps a block, so that a block's 256 outputs read each row once. Sums are still
// taken in the shares of kProductWarps warps and these added in the same order: the result is bitwise that of few rows.
//
// Bytes from L2 per block and step of 32: 16 KiB of weights, 4 KiB of rows, for 2 x 256 x 64 x 32 operations.
namespace c3po::cuda {

inline constexpr int kManyWarps = 8;
inline constexpr int kManyThreads = 32 * kManyWarps;
inline constexpr int kManyBands = 2;  // units of 16 outputs that a warp owns
// Tiles of 8 rows whose sums a warp holds. Widening takes registers too, which fewer tiles leave it.
template <Form kForm>
inline constexpr int kManyTiles = PlanesOf(kForm) == 3  ? 4
                                  : BitsOf(kForm) == 16 ? 8
                                                        : 6;
template <Form kForm>
inline constexpr int kManyRows = 8 * kManyTiles<kForm>;
template <Form kForm, bool kTransposed>
inline constexpr int kManyRingBytes = kManyWarps* WeightRing<kForm, kManyBands, kTransposed>::kWarpBytes;

// From how many rows on.
inline constexpr int kManyFrom = 65;

// Which step of which share is asked for next; the shares of one sum follow each other.
struct ShareSteps {
  int share = 0, first = 0;

  C3PO_DEVICE int step() const { return first + share; }
  // False: that was the sum's last.
  template <int kPlanes>
  C3PO_DEVICE bool Advance(int steps) {
    first += kProductWarps<kPlanes>;
    if (first < steps) return true;
    first = 0;
    if (++share < kProductWarps<kPlanes>) return true;
    share = 0;
    return false;
  }
};

// The totals of kManyBands units and up to kManyRows rows, by one warp. `ask` asks the ring for one more step.
template <Form kForm, bool kTransposed, class Ask>
C3PO_DEVICE void MultiplyMany(WeightRing<kForm, kManyBands, kTransposed>& ring, const PackedWeights& w,
                              const Activations& x, const int64_t (&row)[kManyTiles<kForm>], int tiles, const Ask& ask,
                              float (&totals)[kManyBands][kManyTiles<kForm>][4]) {
  constexpr int kPlanes = PlanesOf(kForm);
  for (int share = 0; share < kProductWarps<kPlanes>; ++share) {
    float sums[kManyBands][kManyTiles<kForm>][4] = {};
    MultiplyShare<kForm, kManyBands, kManyTiles<kForm>, kTransposed>(ring, w, x, row, tiles, share, ask, sums);
    C3PO_UNROLL
    for (int b = 0; b < kManyBands; ++b) {
      C3PO_UNROLL
      for (int tile = 0; tile < kManyTiles<kForm>; ++tile) {
        C3PO_UNROLL
        for (int i = 0; i < 4; ++i) {
          float& total = totals[b][tile][i];
          total = share == 0 ? sums[b][tile][i] : device::Add(total, sums[b][tile][i]);
        }
      }
    }
  }
}

// LaunchProduct's for rows in planes, kManyFrom of them or more.
Error LaunchManyProduct(const ProductArgs& args, Stream stream);

}  // namespace c3po::cuda

#endif  // C3PO_SERVER_COMPUTE_CUDA_MANY_ROWS_H_
