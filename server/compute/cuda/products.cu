// The shape of the launch. A block has 16 warps (8 of three planes), owns units of 16 outputs one behind the other, and
// its warps split the sum of each. There are as many blocks as multiprocessors, or as units if these are fewer: each
// multiprocessor has at most one block, so that all start at once and end together, and a block turns its rows into
// planes once for all of its units. OLMoE's QKV [6144, 2048]: 384 units on 128 blocks of 3, 192 KiB each, 25 MB in all.
// Its output product: 128 blocks of 1, 64 KiB, 8.4 MB. Its head: 3144 units on 131 blocks of 24, 206 MB.
//
// Up to 8 rows a block takes half of a multiprocessor's registers and, with d = 2048, of its shared memory, so the next
// kernel's blocks can already ask for their weights beside it.

#include "server/compute/cuda/many_rows.h"
#include "server/compute/cuda/product_outputs.h"
#include "server/compute/cuda/products.h"
#include "server/compute/cuda/row_planes.h"
#include "server/compute/cuda/tile_products.h"

namespace c3po::cuda {
namespace {

using namespace device;  // The language of kernels.

// Shared memory that the rows of one product may take.
constexpr int kSharedRowsMax = 100 * 1024;

struct ProductKernelArgs {
  ProductArgs product;
  int units_per_block = 0;
  int shared_row_bytes = 0;  // of a row in shared memory; 0: rows are read from `planes`
};

// Rows are 64 bytes apart modulo 128: two rows' 64-byte pieces fall into different banks.
constexpr int SharedRowBytes(int columns) { return static_cast<int>(RoundUp(columns * 2, 128)) + 64; }

template <Form kForm, int kTiles, bool kTransposed>
constexpr int SharedBytes(int shared_row_bytes) {
  constexpr int kPlanes = PlanesOf(kForm);
  const int rows = kPlanes * kRowsAtOnce * shared_row_bytes;
  const int scratch = kRowsAtOnce * kProductWarps<kPlanes> * static_cast<int>(sizeof(float));
  return kProductWarps<kPlanes> * WeightRing<kForm, 1, kTransposed>::kWarpBytes + kSumBytes<kPlanes, 1, kTiles> +
         (rows > 0 ? rows + scratch : 0);
}

// The block's own planes of all rows, in shared memory.
template <int kPlanes, bool kTransposed>
C3PO_DEVICE Activations MakeRows(const ProductKernelArgs& args, char* memory) {
  const PackedWeights& w = args.product.weights;
  const PlanesPlace place{memory, int64_t{kRowsAtOnce} * args.shared_row_bytes, args.shared_row_bytes};
  float* const scratch = reinterpret_cast<float*>(memory + kPlanes * place.plane_stride);
  MakePlanes<kPlanes>(args.product.source, 0, args.product.rows, kTransposed ? w.rows : w.columns, kTransposed, scratch,
                      place);
  SyncBlock();
  return {memory, place.plane_stride};
}

template <Form kForm, int kTiles, bool kTransposed>
C3PO_KERNEL void C3PO_BOUNDS(kProductThreads<PlanesOf(kForm)>, PlanesOf(kForm) == 1 && kTiles == 1 ? 2 : 1)
    Product(ProductKernelArgs kernel_args) {
  const ProductArgs& args = kernel_args.product;
  using Ring = WeightRing<kForm, 1, kTransposed>;
  constexpr int kPlanes = PlanesOf(kForm), kWarps = kProductWarps<kPlanes>;
  char* const memory = static_cast<char*>(SharedMemory());
  Sums4* const sums_memory = reinterpret_cast<Sums4*>(memory + kWarps * Ring::kWarpBytes);

  const int first_unit = Block() * kernel_args.units_per_block;
  const int units_left = UnitsOf<kTransposed>(args.weights) - first_unit;
  const int units = units_left < kernel_args.units_per_block ? units_left : kernel_args.units_per_block;
  const int steps = StepsOf<kForm, kTransposed>(args.weights);

  LetNextKernelStart();
  Ring ring(memory + Warp() * Ring::kWarpBytes);
  int asked_unit = 0, asked_step = Warp();
  const auto ask = [&] {
    if (asked_unit >= units) return ring.AskNothing();
    AskStep<kForm, 1, kTransposed>(ring, args.weights, 0, first_unit + asked_unit, asked_step);
    asked_step += kWarps;
    if (asked_step - Warp() >= steps) {
      asked_step = Warp();
      ++asked_unit;
    }
  };
  for (int i = 0; i < Ring::kDepth; ++i) ask();
  WaitForPreviousKernel();

  const int tiles = (args.rows + 7) / 8;
  Activations x = ActivationsOf(args.planes);
  int64_t row_bytes = int64_t{args.planes.stride} * 2;
  if constexpr (kTiles == 1) {  // 8 rows: kRowsAtOnce
    if (kernel_args.shared_row_bytes > 0) {
      char* const rows_memory = reinterpret_cast<char*>(sums_memory) + kSumBytes<kPlanes, 1, kTiles>;
      x = MakeRows<kPlanes, kTransposed>(kernel_args, rows_memory);
      row_bytes = kernel_args.shared_row_bytes;
    }
  }
  int64_t row[kTiles];
  C3PO_UNROLL
  for (int tile = 0; tile < kTiles; ++tile) {
    const int own = tile * 8 + Lane() / 4;
    row[tile] = own < args.rows ? own * row_bytes : -1;
  }
  for (int unit = 0; unit < units; ++unit) {
    float sums[1][kTiles][4] = {};
    MultiplyShare<kForm, 1, kTiles, kTransposed>(ring, args.weights, x, row, tiles, Warp(), ask, sums);
    StoreSums<kPlanes>(sums, tiles, sums_memory);
    SyncBlock();
    for (int tile = Warp(); tile < tiles; tile += kWarps) {
      const Sums4 total = TotalOf<kPlanes, 1, kTiles>(sums_memory, 0, tile);
      StoreOutputs<kTransposed>(args, first_unit + unit, 8 * tile, args.rows, total);
    }
    SyncBlock();
  }
}

// Whether each block makes the planes of its rows. Of attention's splits every block reads all, heads * splits *
// value_dim floats a row: with OLMoE's 128 blocks 1 MB from L2 for each split of a row, 0.2 us. So beyond some of them
// a kernel of its own merges them once; its start takes 2 us or so.
bool BlocksMakeRows(const ProductArgs& args) {
  constexpr int kMergedSplitsMax = 16;
  const RowSource& source = args.source;
  if (source.kind == RowSource::kPlanes || args.rows > kRowsAtOnce) return false;
  if (source.kind == RowSource::kMerged && args.rows > 1 && args.rows * source.splits > kMergedSplitsMax) return false;
  const int columns = args.transposed ? args.weights.rows : args.weights.columns;
  return args.weights.planes * kRowsAtOnce * SharedRowBytes(columns) <= kSharedRowsMax;
}

template <Form kForm, int kTiles, bool kTransposed>
Error LaunchTiles(const ProductArgs& args, Stream stream) {
  ProductKernelArgs kernel_args{args, 0, 0};
  if (BlocksMakeRows(args)) {
    kernel_args.shared_row_bytes = SharedRowBytes(kTransposed ? args.weights.rows : args.weights.columns);
  }
  const int units = UnitsOf<kTransposed>(args.weights);
  const int blocks_max = args.multiprocessors > 0 ? args.multiprocessors : 1;
  kernel_args.units_per_block = (units + blocks_max - 1) / blocks_max;
  const Grid grid{(units + kernel_args.units_per_block - 1) / kernel_args.units_per_block};
  return LaunchEarly(Product<kForm, kTiles, kTransposed>, grid, kProductThreads<PlanesOf(kForm)>,
                     SharedBytes<kForm, kTiles, kTransposed>(kernel_args.shared_row_bytes), stream, kernel_args);
}

template <Form kForm, bool kTransposed>
Error LaunchRows(const ProductArgs& args, Stream stream) {
  if (args.rows <= 8) return LaunchTiles<kForm, 1, kTransposed>(args, stream);
  if (args.rows <= 32) return LaunchTiles<kForm, 4, kTransposed>(args, stream);
  return LaunchTiles<kForm, 8, kTransposed>(args, stream);
}

}  // namespace

bool ProductNeedsPlanes(const ProductArgs& args) {
  return args.source.kind != RowSource::kPlanes && !BlocksMakeRows(args);
}

Error LaunchProduct(const ProductArgs& args, Stream stream) {
  if (args.rows == 0) return nullptr;
  ProductArgs product = args;
  if (ProductNeedsPlanes(args)) {
    RowPlanesArgs planes;
    planes.source = args.source;
    planes.rows = args.rows;
    planes.columns = args.transposed ? args.weights.rows : args.weights.columns;
    planes.planes = args.weights.planes;
    planes.for_transposed = args.transposed;
    planes.out = args.planes;
    if (const Error error = LaunchRowPlanes(planes, stream); error != nullptr) return error;
    product.source.kind = RowSource::kPlanes;
  }
  if (args.rows >= kManyFrom) return LaunchManyProduct(product, stream);
  return WithForm(args.weights, [&](auto form) {
    return args.transposed ? LaunchRows<form.value, true>(product, stream)
                           : LaunchRows<form.value, false>(product, stream);
  });
}

}  // namespace c3po::cuda
