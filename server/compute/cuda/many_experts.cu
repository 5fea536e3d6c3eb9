// Products over experts of many rows. A kernel lists each expert's pairs in global memory; then the products' items are
// (up to 64 pairs of one expert, 256 outputs), outputs first, so that a block keeps its rows in L1, and the passes of
// one expert follow each other, so that its weights are still in L2. OLMoE, 1,024 rows: 8,192 pairs in some 150 passes;
// gate/up reads 1.3 GB from L2 and 0.5 GB from memory.

#include "server/compute/cuda/expert_kinds.h"
#include "server/compute/cuda/expert_rows.h"
#include "server/compute/cuda/many_rows.h"

namespace c3po::cuda {
namespace {

using namespace device;  // The language of kernels.

constexpr int kListThreads = 256;

// A block an expert. Each thread counts its share of the entries, and then writes them behind those of the threads
// before.
C3PO_KERNEL void C3PO_BOUNDS(kListThreads, 4) ExpertLists(ExpertListArgs args) {
  LetNextKernelStart();
  WaitForPreviousKernel();
  const int expert = Block(), entries = args.selection.rows * args.selection.k;
  const int share = (entries + kListThreads - 1) / kListThreads;
  const int begin = Thread() * share, end = begin + share < entries ? begin + share : entries;
  int own = 0;
  for (int i = begin; i < end; ++i) own += args.selection.selected[i] == expert ? 1 : 0;
  int until = own;
  C3PO_UNROLL
  for (int delta = 1; delta < 32; delta *= 2) {
    const int before = ShuffleUp(until, delta);
    if (Lane() >= delta) until += before;
  }
  int* const of_warps = static_cast<int*>(SharedMemory());
  if (Lane() == 31) of_warps[Warp()] = until;
  SyncBlock();
  for (int w = 0; w < Warp(); ++w) until += of_warps[w];
  if (Thread() == kListThreads - 1) args.counts[expert] = until;
  int* to = args.pairs + int64_t{expert} * args.selection.rows + until - own;
  for (int i = begin; i < end; ++i) {
    if (args.selection.selected[i] == expert) *to++ = i;
  }
}

// The product's name is in the type, by which the tests' model tells kernels apart.
template <class ProductKind>
struct ManyExpertArgs {
  ExpertProductArgs product;
};

// starts[e]: how many passes the experts before e have; starts[experts]: all. By the first warp.
template <int kPassRows>
C3PO_DEVICE void CountPasses(const int* counts, int experts, int* starts) {
  int base = 0;
  for (int first = 0; first < experts; first += 32) {
    const int e = first + Lane();
    const int own = e < experts ? (counts[e] + kPassRows - 1) / kPassRows : 0;
    int until = own;
    C3PO_UNROLL
    for (int delta = 1; delta < 32; delta *= 2) {
      const int before = ShuffleUp(until, delta);
      if (Lane() >= delta) until += before;
    }
    if (e < experts) starts[e] = base + until - own;
    base += Shuffle(until, 31);
  }
  if (Lane() == 0) starts[experts] = base;
}

// Where in a block's share of all items one is. Items are numbered pass by pass, what runs in every row at the end.
struct ManyPlace {
  const int* starts;
  int experts, routed_groups, shared_groups;
  int pass = 0, expert = 0, group = 0;

  C3PO_DEVICE bool routed() const { return expert < experts; }
  C3PO_DEVICE void MoveTo(int64_t item) {
    const int64_t routed_items = int64_t{starts[experts]} * routed_groups;
    const bool in_routed = item < routed_items;
    const int groups = in_routed ? routed_groups : shared_groups;
    if (groups == 0) return;
    const auto local = static_cast<int>(in_routed ? item : item - routed_items);
    pass = (in_routed ? 0 : starts[experts]) + local / groups;
    group = local % groups;
    FindExpert();
  }
  C3PO_DEVICE void Advance() {
    if (++group < (routed() ? routed_groups : shared_groups)) return;
    group = 0;
    ++pass;
    FindExpert();
  }
  C3PO_DEVICE void FindExpert() {
    while (expert < experts && pass >= starts[expert + 1]) ++expert;
  }
};

template <class ProductKind, Form kForm>
C3PO_DEVICE void StoreMany(const ExpertProductArgs& args, const ExpertNetworks& networks, const ExpertRows& list,
                           const ExpertPass& pass, int first_unit, int tiles,
                           const float (&totals)[kManyBands][kManyTiles<kForm>][4]) {
  C3PO_UNROLL
  for (int tile = 0; tile < kManyTiles<kForm>; ++tile) {
    if (tile >= tiles) continue;
    ItemSums sums;
    C3PO_UNROLL
    for (int i = 0; i < 2; ++i) sums.pair[i] = list.PairOf(pass, 8 * tile + 2 * (Lane() % 4) + i);
    C3PO_UNROLL
    for (int b = 0; b < kManyBands; ++b) {
      const float(&total)[4] = totals[b][tile];
      sums.band[b % ProductKind::kBands] = Sums4{{total[0], total[1], total[2], total[3]}};
      sums.unit = first_unit + b / ProductKind::kBands;
      const bool whole = b % ProductKind::kBands == ProductKind::kBands - 1;
      if (whole && sums.unit < ProductKind::Units(networks.weights)) {
        ProductKind::template Store<PlanesOf(kForm)>(args, networks, sums);
      }
    }
  }
}

template <class ProductKind, Form kForm>
C3PO_KERNEL void C3PO_BOUNDS(kManyThreads, 1) ManyExperts(ManyExpertArgs<ProductKind> kernel_args) {
  constexpr int kPlanes = PlanesOf(kForm), kTiles = kManyTiles<kForm>,
                kUnits = kManyBands / ProductKind::kBands;  // units that a warp owns
  constexpr bool kTransposed = ProductKind::kTransposed;
  using Ring = WeightRing<kForm, kManyBands, kTransposed>;
  const ExpertProductArgs& args = kernel_args.product;
  const ExpertSelection& selection = args.selection;
  char* const memory = static_cast<char*>(SharedMemory());
  int* const starts = reinterpret_cast<int*>(memory + kManyRingBytes<kForm, kTransposed>);

  LetNextKernelStart();
  WaitForPreviousKernel();
  const int experts = selection.k > 0 ? selection.experts : 0;
  if (Warp() == 0) CountPasses<kManyRows<kForm>>(args.list_counts, experts, starts);
  SyncBlock();
  const auto groups_of = [](const PackedWeights& w) {
    return (ProductKind::Units(w) + kManyWarps * kUnits - 1) / (kManyWarps * kUnits);
  };
  ManyPlace place{starts, experts, groups_of(args.routed.weights), groups_of(args.shared.weights)};
  const int shared_passes =
      args.shared.weights.data == nullptr ? 0 : (selection.rows + kManyRows<kForm> - 1) / kManyRows<kForm>;
  const int64_t items = int64_t{starts[experts]} * place.routed_groups + int64_t{shared_passes} * place.shared_groups;
  const int64_t begin = items * Block() / Blocks(), end = items * (Block() + 1) / Blocks();
  place.MoveTo(begin);

  Ring ring(memory + Warp() * Ring::kWarpBytes);
  ManyPlace asked = place;
  int64_t asked_item = begin;
  ShareSteps asked_step;
  const auto ask = [&] {
    if (asked_item >= end) return ring.AskNothing();
    const PackedWeights& w = asked.routed() ? args.routed.weights : args.shared.weights;
    AskStep<kForm, kManyBands, kTransposed>(ring, w, asked.routed() ? asked.expert : 0,
                                            asked.group * kManyWarps + Warp(), asked_step.step());
    if (asked_step.template Advance<kPlanes>(StepsOf<kForm, kTransposed>(w))) return;
    ++asked_item;
    asked.Advance();
  };
  for (int i = 0; i < Ring::kDepth; ++i) ask();

  const ExpertRows list{nullptr, args.list_pairs, 0, 0, experts, 0, selection.rows, nullptr, nullptr};
  for (int64_t item = begin; item < end; ++item, place.Advance()) {
    const bool routed = place.routed();
    const ExpertNetworks& networks = routed ? args.routed : args.shared;
    const int first = (place.pass - starts[place.expert]) * kManyRows<kForm>;
    const int left = (routed ? args.list_counts[place.expert] : selection.rows) - first;
    const ExpertPass pass{place.expert, (routed ? place.expert * selection.rows : 0) + first,
                          left < kManyRows<kForm> ? left : kManyRows<kForm>};
    const int unit = (place.group * kManyWarps + Warp()) * kUnits;
    const int tiles = unit < ProductKind::Units(networks.weights) ? (pass.count + 7) / 8 : 0;
    int64_t row[kTiles];
    FindPassRows(list, pass, networks.in, ProductKind::kInByPair || !routed ? 1 : selection.k, row);
    float totals[kManyBands][kTiles][4];
    MultiplyMany<kForm, kTransposed>(ring, networks.weights, ActivationsOf(networks.in), row, tiles, ask, totals);
    StoreMany<ProductKind, kForm>(args, networks, list, pass, unit, tiles, totals);
  }
}

template <class ProductKind, Form kForm>
Error LaunchMany(const ExpertProductArgs& args, Stream stream) {
  const int bytes =
      kManyRingBytes<kForm, ProductKind::kTransposed> + static_cast<int>(sizeof(int)) * (args.selection.experts + 1);
  return LaunchEarly(ManyExperts<ProductKind, kForm>, Grid{args.multiprocessors > 0 ? args.multiprocessors : 1},
                     kManyThreads, bytes, stream, ManyExpertArgs<ProductKind>{args});
}

constexpr int kSumThreads = 256;

// A block a row.
C3PO_KERNEL void C3PO_BOUNDS(kSumThreads, 4) ExpertSum(ExpertSumArgs args) {
  LetNextKernelStart();
  WaitForPreviousKernel();
  const int row = Block(), k = args.selection.k;
  int* const order = static_cast<int*>(SharedMemory());  // the row's experts, ascending; then -1
  const int* const selected = args.selection.selected + int64_t{row} * k;
  for (int j = Thread(); j < k; j += kSumThreads) order[j] = -1;
  SyncBlock();
  for (int j = Thread(); j < k; j += kSumThreads) {
    const int expert = selected[j];
    if (expert < 0 || expert >= args.selection.experts) continue;
    int before = 0;
    for (int i = 0; i < k; ++i) before += selected[i] >= 0 && selected[i] < expert ? 1 : 0;
    order[before] = j;
  }
  SyncBlock();
  for (int column = Thread(); column < args.columns; column += kSumThreads) {
    float y = 0;
    for (int i = 0; i < k && order[i] >= 0; ++i) {
      y = Add(y, args.routed[(int64_t{row} * k + order[i]) * args.stride + column]);
    }
    if (args.shared != nullptr) y = Add(y, args.shared[row * args.stride + column]);
    if (args.factor != 1) y = Multiply(y, args.factor);
    if (args.residual != nullptr) y = Add(args.residual[row * args.residual_stride + column], y);
    args.out[row * args.out_stride + column] = y;
  }
}

}  // namespace

template <class ProductKind>
Error LaunchManyExperts(const ExpertProductArgs& args, Stream stream) {
  const PackedWeights& any = args.routed.weights.data != nullptr ? args.routed.weights : args.shared.weights;
  return WithForm(any, [&](auto form) { return LaunchMany<ProductKind, form.value>(args, stream); });
}
template Error LaunchManyExperts<GateUpProduct>(const ExpertProductArgs& args, Stream stream);
template Error LaunchManyExperts<DownBackwardProduct>(const ExpertProductArgs& args, Stream stream);
template Error LaunchManyExperts<DownApartProduct>(const ExpertProductArgs& args, Stream stream);

Error LaunchExpertLists(const ExpertListArgs& args, Stream stream) {
  if (args.selection.rows == 0 || args.selection.k == 0) return nullptr;
  return LaunchEarly(ExpertLists, Grid{args.selection.experts}, kListThreads,
                     kListThreads / 32 * static_cast<int>(sizeof(int)), stream, args);
}

Error LaunchExpertSum(const ExpertSumArgs& args, Stream stream) {
  if (args.selection.rows == 0) return nullptr;
  return LaunchEarly(ExpertSum, Grid{args.selection.rows}, kSumThreads,
                     args.selection.k * static_cast<int>(sizeof(int)), stream, args);
}

}  // namespace c3po::cuda
