// The shape of the launches: the block's items are (pass, 16 outputs), a pass some rows of one expert. Which passes
// there are, is known on the device only, so the grid is the multiprocessors, a block each, and each block takes an
// equal share of neighboring items. OLMoE's gate/up, one row: 512 items of 128 KiB, 3 or 4 a block, 67 MB; 64 rows:
// some 4,096 items, 31 a block, 537 MB. A block's 16 warps split the sum of each item. Weights cannot be asked for
// before the kernel before has ended, as it says which experts they are of.

#include "server/compute/cuda/expert_kinds.h"
#include "server/compute/cuda/expert_products.h"
#include "server/compute/cuda/expert_rows.h"
#include "server/compute/cuda/many_rows.h"
#include "server/compute/cuda/tile_products.h"

namespace c3po::cuda {
namespace {

using namespace device;  // The language of kernels.

// The product's name is in the type, by which the tests' model tells kernels apart.
template <class ProductKind>
struct ExpertKernelArgs {
  ExpertProductArgs product;
};

// Where in a block's share of all items one is. Items are numbered pass by pass.
struct ItemPlace {
  int pass = 0, unit = 0;
  int routed_passes, routed_units, shared_units;

  C3PO_DEVICE bool routed() const { return pass < routed_passes; }
  C3PO_DEVICE void MoveTo(int64_t item) {
    const int64_t routed_items = int64_t{routed_passes} * routed_units;
    const bool in_routed = item < routed_items;
    const int units = in_routed ? routed_units : shared_units;
    const auto local = static_cast<int>(in_routed ? item : item - routed_items);
    if (units == 0) return;
    pass = (in_routed ? 0 : routed_passes) + local / units;
    unit = local % units;
  }
  C3PO_DEVICE void Advance() {
    if (++unit < (routed() ? routed_units : shared_units)) return;
    unit = 0;
    ++pass;
  }
};

template <class ProductKind, Form kForm, int kTiles>
C3PO_KERNEL void C3PO_BOUNDS(kProductThreads<PlanesOf(kForm)>, 1)
    ExpertProduct(ExpertKernelArgs<ProductKind> kernel_args) {
  constexpr int kPlanes = PlanesOf(kForm), kBands = ProductKind::kBands, kWarps = kProductWarps<kPlanes>,
                kPassRows = 8 * kTiles;
  constexpr bool kTransposed = ProductKind::kTransposed;
  using Ring = WeightRing<kForm, kBands, kTransposed>;
  const ExpertProductArgs& args = kernel_args.product;
  char* const memory = static_cast<char*>(SharedMemory());
  Sums4* const sums_memory = reinterpret_cast<Sums4*>(memory + kWarps * Ring::kWarpBytes);

  LetNextKernelStart();
  WaitForPreviousKernel();
  const ExpertRows list =
      ListExpertRows<kPassRows>(args.selection, args.shared.weights.data != nullptr,
                                reinterpret_cast<char*>(sums_memory) + kSumBytes<kPlanes, kBands, kTiles>);
  ItemPlace place;
  place.routed_passes = list.routed;
  place.routed_units = ProductKind::Units(args.routed.weights);
  place.shared_units = ProductKind::Units(args.shared.weights);
  const int64_t all_items =
      int64_t{list.routed} * place.routed_units + int64_t{list.all - list.routed} * place.shared_units;
  const int64_t begin = all_items * Block() / Blocks(), end = all_items * (Block() + 1) / Blocks();
  place.MoveTo(begin);

  Ring ring(memory + Warp() * Ring::kWarpBytes);
  ItemPlace asked = place;
  int64_t asked_item = begin;
  int asked_step = Warp();
  const auto ask = [&] {
    if (asked_item >= end) return ring.AskNothing();
    const PackedWeights& w = asked.routed() ? args.routed.weights : args.shared.weights;
    const int network = asked.routed() ? list.passes[asked.pass].network : 0;
    AskStep<kForm, kBands, kTransposed>(ring, w, network, asked.unit, asked_step);
    asked_step += kWarps;
    if (asked_step - Warp() >= StepsOf<kForm, kTransposed>(w)) {
      asked_step = Warp();
      ++asked_item;
      asked.Advance();
    }
  };
  for (int i = 0; i < Ring::kDepth; ++i) ask();

  for (int64_t item = begin; item < end; ++item, place.Advance()) {
    const ExpertNetworks& networks = place.routed() ? args.routed : args.shared;
    const ExpertPass pass = list.passes[place.pass];
    const int tiles = (pass.count + 7) / 8;
    int64_t row[kTiles];
    FindPassRows(list, pass, networks.in, ProductKind::kInByPair || !place.routed() ? 1 : args.selection.k, row);
    float sums[kBands][kTiles][4] = {};
    MultiplyShare<kForm, kBands, kTiles, kTransposed>(ring, networks.weights, ActivationsOf(networks.in), row, tiles,
                                                      Warp(), ask, sums);
    StoreSums<kPlanes>(sums, tiles, sums_memory);
    SyncBlock();
    for (int tile = Warp(); tile < tiles; tile += kWarps) {
      ItemSums totals;
      totals.unit = place.unit;
      C3PO_UNROLL
      for (int i = 0; i < 2; ++i) totals.pair[i] = list.PairOf(pass, 8 * tile + 2 * (Lane() % 4) + i);
      C3PO_UNROLL
      for (int b = 0; b < kBands; ++b) totals.band[b] = TotalOf<kPlanes, kBands, kTiles>(sums_memory, b, tile);
      ProductKind::template Store<kPlanes>(args, networks, totals);
    }
    SyncBlock();
  }
}

template <class ProductKind, Form kForm, int kTiles>
Error LaunchTiles(const ExpertProductArgs& args, Stream stream) {
  constexpr int kPlanes = PlanesOf(kForm);
  using Ring = WeightRing<kForm, ProductKind::kBands, ProductKind::kTransposed>;
  const int bytes = kProductWarps<kPlanes> * Ring::kWarpBytes + kSumBytes<kPlanes, ProductKind::kBands, kTiles> +
                    ExpertRowsBytes(args.selection, 8 * kTiles);
  const Grid grid{args.multiprocessors > 0 ? args.multiprocessors : 1, RowBlocks(args.selection)};
  return LaunchEarly(ExpertProduct<ProductKind, kForm, kTiles>, grid, kProductThreads<kPlanes>, bytes, stream,
                     ExpertKernelArgs<ProductKind>{args});
}

template <class ProductKind>
Error LaunchExperts(const ExpertProductArgs& args, Stream stream) {
  if (args.selection.rows == 0) return nullptr;
  const bool listed = args.list_counts != nullptr || (args.selection.k == 0 && args.selection.rows >= kManyFrom);
  if (listed) return LaunchManyExperts<ProductKind>(args, stream);
  const PackedWeights& any = args.routed.weights.data != nullptr ? args.routed.weights : args.shared.weights;
  return WithForm(any, [&](auto form) {
    return args.selection.rows <= 8 ? LaunchTiles<ProductKind, form.value, 1>(args, stream)
                                    : LaunchTiles<ProductKind, form.value, 4>(args, stream);
  });
}

}  // namespace

Error LaunchGateUp(const ExpertProductArgs& args, Stream stream) { return LaunchExperts<GateUpProduct>(args, stream); }

Error LaunchDownBackward(const ExpertProductArgs& args, Stream stream) {
  return LaunchExperts<DownBackwardProduct>(args, stream);
}

Error LaunchDownApart(const ExpertProductArgs& args, Stream stream) {
  return LaunchExperts<DownApartProduct>(args, stream);
}

}  // namespace c3po::cuda
