// The shape of the launch: items are (256 outputs, 64 rows), rows first, so that blocks side by side read the same
// weights. As many blocks as multiprocessors take equal shares.

#include "server/compute/cuda/many_rows.h"
#include "server/compute/cuda/product_outputs.h"

namespace c3po::cuda {
namespace {

using namespace device;  // The language of kernels.

struct ManyProductArgs {
  ProductArgs product;
};

constexpr int kGroupUnits = kManyWarps * kManyBands;

template <bool kTransposed>
constexpr int GroupsOf(const PackedWeights& w) {
  return (UnitsOf<kTransposed>(w) + kGroupUnits - 1) / kGroupUnits;
}

template <Form kForm>
constexpr int RowPassesOf(int rows) {
  return (rows + kManyRows<kForm> - 1) / kManyRows<kForm>;
}

template <Form kForm, bool kTransposed>
C3PO_KERNEL void C3PO_BOUNDS(kManyThreads, 1) ManyProduct(ManyProductArgs kernel_args) {
  constexpr int kTiles = kManyTiles<kForm>;
  using Ring = WeightRing<kForm, kManyBands, kTransposed>;
  const ProductArgs& args = kernel_args.product;
  const int passes = RowPassesOf<kForm>(args.rows), steps = StepsOf<kForm, kTransposed>(args.weights);
  const int64_t items = int64_t{GroupsOf<kTransposed>(args.weights)} * passes;
  const auto begin = static_cast<int>(items * Block() / Blocks());
  const auto end = static_cast<int>(items * (Block() + 1) / Blocks());

  LetNextKernelStart();
  Ring ring(static_cast<char*>(SharedMemory()) + Warp() * Ring::kWarpBytes);
  int asked_item = begin;
  ShareSteps asked;
  const auto ask = [&] {
    if (asked_item >= end) return ring.AskNothing();
    AskStep<kForm, kManyBands, kTransposed>(ring, args.weights, 0, asked_item / passes * kManyWarps + Warp(),
                                            asked.step());
    if (!asked.template Advance<PlanesOf(kForm)>(steps)) ++asked_item;
  };
  for (int i = 0; i < Ring::kDepth; ++i) ask();
  WaitForPreviousKernel();

  for (int item = begin; item < end; ++item) {
    const int first_row = item % passes * kManyRows<kForm>;
    const int unit = (item / passes * kManyWarps + Warp()) * kManyBands;
    const int rows = args.rows - first_row < kManyRows<kForm> ? args.rows - first_row : kManyRows<kForm>;
    const int tiles = unit < UnitsOf<kTransposed>(args.weights) ? (rows + 7) / 8 : 0;
    int64_t row[kTiles];
    C3PO_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      const int own = 8 * tile + Lane() / 4;
      row[tile] = own < rows ? int64_t{first_row + own} * args.planes.stride * 2 : -1;
    }
    float totals[kManyBands][kTiles][4];
    MultiplyMany<kForm, kTransposed>(ring, args.weights, ActivationsOf(args.planes), row, tiles, ask, totals);
    C3PO_UNROLL
    for (int b = 0; b < kManyBands; ++b) {
      C3PO_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        if (tile >= tiles) continue;
        const float(&sum)[4] = totals[b][tile];
        StoreOutputs<kTransposed>(args, unit + b, first_row + 8 * tile, args.rows,
                                  Sums4{{sum[0], sum[1], sum[2], sum[3]}});
      }
    }
  }
}

template <Form kForm, bool kTransposed>
Error LaunchKernel(const ProductArgs& args, Stream stream) {
  const int items = GroupsOf<kTransposed>(args.weights) * RowPassesOf<kForm>(args.rows);
  const int blocks = args.multiprocessors < 1 ? 1 : args.multiprocessors < items ? args.multiprocessors : items;
  return LaunchEarly(ManyProduct<kForm, kTransposed>, Grid{blocks}, kManyThreads, kManyRingBytes<kForm, kTransposed>,
                     stream, ManyProductArgs{args});
}

}  // namespace

Error LaunchManyProduct(const ProductArgs& args, Stream stream) {
  return WithForm(args.weights, [&](auto form) {
    return args.transposed ? LaunchKernel<form.value, true>(args, stream)
                           : LaunchKernel<form.value, false>(args, stream);
  });
}

}  // namespace c3po::cuda
