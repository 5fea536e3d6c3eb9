// The shape of the launch: a block owns 16 outputs of all rows and goes over the experts, its 16 warps split f. OLMoE,
// one row: 128 blocks of 8 x 32 KiB, 34 MB; 64 rows: 64 x 32 KiB, 268 MB. So each output is added up in one place, in
// one order: an expert's sum over the warps, in their order, then the experts, ascending. The warps' sums of several
// experts meet in shared memory behind one barrier, where each thread owns a few (row, output).

#include "server/compute/cuda/expert_products.h"
#include "server/compute/cuda/expert_rows.h"
#include "server/compute/cuda/tile_products.h"

namespace c3po::cuda {
namespace {

using namespace device;  // The language of kernels.

// Tiles of sums that lie in shared memory at a time: 8 KiB each (4 of three planes).
template <int kTiles>
constexpr int kTilesHeld = kTiles == 1 ? 4 : 8;
// (row, output) of a thread.
template <int kPlanes>
constexpr int kTotals = kSelectionRows* kBandRows / kProductThreads<kPlanes>;

// The sum over all warps of (row `row` of held tile `tile`, output n).
template <int kPlanes>
C3PO_DEVICE float SumOfWarps(const Sums4* held, int tile, int row, int n) {
  const int lane = n % 8 * 4 + row / 2, entry = n / 8 * 2 + row % 2;
  const Sums4* const own = held + tile * (kProductWarps<kPlanes> * 32) + lane;
  float sum = own->x[entry];
  C3PO_UNROLL
  for (int w = 1; w < kProductWarps<kPlanes>; ++w) sum = Add(sum, own[w * 32].x[entry]);
  return sum;
}

// Adds what passes [first, end) hold of this thread's (row, output).
template <int kPlanes>
C3PO_DEVICE void AddHeld(const ExpertRows& list, int first, int end, const Sums4* held,
                         float (&totals)[kTotals<kPlanes>]) {
  int tile = 0;
  for (int p = first; p < end; ++p) {
    const ExpertPass pass = list.passes[p];
    C3PO_UNROLL
    for (int i = 0; i < kTotals<kPlanes>; ++i) {
      const int at = i * kProductThreads<kPlanes> + Thread(), row = at / kBandRows;
      if (row >= list.rows) continue;
      const int place = list.PlaceOfRow(pass, row);
      if (place < 0) continue;
      totals[i] = Add(totals[i], SumOfWarps<kPlanes>(held, tile + place / 8, place % 8, at % kBandRows));
    }
    tile += (pass.count + 7) / 8;
  }
}

template <int kPlanes, bool kTransposed>
C3PO_DEVICE void StoreTotals(const ExpertMixArgs& args, const ExpertRows& list, float (&totals)[kTotals<kPlanes>]) {
  const PackedWeights& any = args.routed.data != nullptr ? args.routed : args.shared;
  const int outputs = kTransposed ? any.columns : any.rows;
  C3PO_UNROLL
  for (int i = 0; i < kTotals<kPlanes>; ++i) {
    const int at = i * kProductThreads<kPlanes> + Thread();
    const int m = OutputOf<kTransposed>(Block(), at % kBandRows);
    if (at / kBandRows >= list.rows || m >= outputs) continue;
    const int64_t row = list.first_row + at / kBandRows;
    float y = totals[i];
    if (args.factor != 1) y = Multiply(y, args.factor);
    if (args.residual != nullptr) y = Add(args.residual[row * args.residual_stride + m], y);
    args.out[row * args.out_stride + m] = y;
  }
}

template <Form kForm, int kTiles, bool kTransposed>
C3PO_KERNEL void C3PO_BOUNDS(kProductThreads<PlanesOf(kForm)>, PlanesOf(kForm) == 1 && kTiles == 1 ? 2 : 1)
    ExpertMix(ExpertMixArgs args) {
  constexpr int kPlanes = PlanesOf(kForm), kWarps = kProductWarps<kPlanes>, kPassRows = 8 * kTiles;
  using Ring = WeightRing<kForm, 1, kTransposed>;
  char* const memory = static_cast<char*>(SharedMemory());
  Sums4* const held = reinterpret_cast<Sums4*>(memory + kWarps * Ring::kWarpBytes);

  LetNextKernelStart();
  WaitForPreviousKernel();
  const ExpertRows list =
      ListExpertRows<kPassRows>(args.selection, args.shared.data != nullptr, held + kTilesHeld<kTiles> * kWarps * 32);

  Ring ring(memory + Warp() * Ring::kWarpBytes);
  int asked_pass = 0, asked_step = Warp();
  const auto ask = [&] {
    if (asked_pass >= list.all) return ring.AskNothing();
    const bool routed = asked_pass < list.routed;
    const PackedWeights& w = routed ? args.routed : args.shared;
    AskStep<kForm, 1, kTransposed>(ring, w, routed ? list.passes[asked_pass].network : 0, Block(), asked_step);
    asked_step += kWarps;
    if (asked_step - Warp() >= StepsOf<kForm, kTransposed>(w)) {
      asked_step = Warp();
      ++asked_pass;
    }
  };
  for (int i = 0; i < Ring::kDepth; ++i) ask();

  float totals[kTotals<kPlanes>] = {};
  int first = 0, held_tiles = 0;  // passes [first, pass) are held
  for (int pass = 0; pass < list.all; ++pass) {
    const ExpertPass own = list.passes[pass];
    const int tiles = (own.count + 7) / 8;
    if (held_tiles + tiles > kTilesHeld<kTiles>) {
      SyncBlock();
      AddHeld<kPlanes>(list, first, pass, held, totals);
      SyncBlock();
      first = pass;
      held_tiles = 0;
    }
    const bool routed = pass < list.routed;
    const ActivationPlanes& in = routed ? args.routed_in : args.shared_in;
    int64_t row[kTiles];
    FindPassRows(list, own, in, 1, row);
    float sums[1][kTiles][4] = {};
    MultiplyShare<kForm, 1, kTiles, kTransposed>(ring, routed ? args.routed : args.shared, ActivationsOf(in), row,
                                                 tiles, Warp(), ask, sums);
    C3PO_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      const float(&sum)[4] = sums[0][tile];
      if (tile < tiles)
        held[((held_tiles + tile) * kWarps + Warp()) * 32 + Lane()] = {{sum[0], sum[1], sum[2], sum[3]}};
    }
    held_tiles += tiles;
  }
  SyncBlock();
  AddHeld<kPlanes>(list, first, list.all, held, totals);
  StoreTotals<kPlanes, kTransposed>(args, list, totals);
}

template <Form kForm, int kTiles, bool kTransposed>
Error LaunchTiles(const ExpertMixArgs& args, Stream stream) {
  constexpr int kPlanes = PlanesOf(kForm);
  using Ring = WeightRing<kForm, 1, kTransposed>;
  const int bytes = kProductWarps<kPlanes> * (Ring::kWarpBytes + kTilesHeld<kTiles> * kTileBytes) +
                    ExpertRowsBytes(args.selection, 8 * kTiles);
  const Grid grid{UnitsOf<kTransposed>(args.routed.data != nullptr ? args.routed : args.shared),
                  RowBlocks(args.selection)};
  return LaunchEarly(ExpertMix<kForm, kTiles, kTransposed>, grid, kProductThreads<kPlanes>, bytes, stream, args);
}

template <Form kForm>
Error LaunchForm(const ExpertMixArgs& args, Stream stream) {
  const bool few = args.selection.rows <= 8;
  if (args.transposed)
    return few ? LaunchTiles<kForm, 1, true>(args, stream) : LaunchTiles<kForm, 4, true>(args, stream);
  return few ? LaunchTiles<kForm, 1, false>(args, stream) : LaunchTiles<kForm, 4, false>(args, stream);
}

constexpr int kDotWarps = 4;

C3PO_KERNEL void C3PO_BOUNDS(32 * kDotWarps, 8) DotSums(DotSumsArgs args) {
  LetNextKernelStart();
  WaitForPreviousKernel();
  const int row = Block() * kDotWarps + Warp();
  if (row >= args.rows) return;  // the whole warp
  float sum = 0;
  for (int i = Lane(); i < args.width; i += 32) sum = Add(sum, args.dots[int64_t{row} * args.width + i]);
  C3PO_UNROLL
  for (int mask = 16; mask > 0; mask /= 2) sum = Add(sum, ShuffleXor(sum, mask));
  if (Lane() == 0) args.sums[row] = sum;
}

}  // namespace

Error LaunchExpertMix(const ExpertMixArgs& args, Stream stream) {
  if (args.selection.rows == 0) return nullptr;
  return WithForm(args.routed.data != nullptr ? args.routed : args.shared,
                  [&](auto form) { return LaunchForm<form.value>(args, stream); });
}

Error LaunchDotSums(const DotSumsArgs& args, Stream stream) {
  if (args.rows == 0) return nullptr;
  return LaunchEarly(DotSums, Grid{(args.rows + kDotWarps - 1) / kDotWarps}, 32 * kDotWarps, 0, stream, args);
}

}  // namespace c3po::cuda
