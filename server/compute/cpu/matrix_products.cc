// Dot form: tiles of M rows of x by N rows of W, one vector accumulator per element along k, summed across lanes at the
// end. With 16 registers 4 x 3 keeps two multiply-adds a cycle fed from L1; one row of x takes 8 rows of W at a time,
// as many streams as memory likes. Outer form: tiles of 6 rows by 2 vectors of columns (a cache line of float32),
// looping over n, each element accumulated in ascending n; blocks of n keep the rows of W that all tiles pass over in
// L2. Both ask memory for the next block while they compute, else a product of a dozen rows would wait for memory first
// and compute then. Neither a tile's shape nor a block's border changes the order of an element's sum: tiles hold whole
// elements, and blocks of n hand the running sum on through y. Long because both forms of a product are compiled
// together, once for each instruction set.

#include "server/compute/cpu/compiled_targets.h"
// Compiled once for each instruction set.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "server/compute/cpu/matrix_products.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <type_traits>
#include <vector>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "server/compute/cpu/bfloat16_products.h"
#include "server/compute/cpu/matrix_products.h"
#include "server/compute/cpu/panel_products.h"
#include "server/compute/cpu/quantized_products.h"
#include "server/compute/cpu/thread_pool.h"
#include "server/compute/cpu/vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace c3po::cpu::HWY_NAMESPACE {
namespace {

// --- dot form ---

// `ahead`: F rows of W that a later tile will read; memory is asked for them here, a little per step.
template <size_t M, size_t N, size_t F, typename W>
HWY_INLINE void DotTile(const DotProduct& p, int64_t row, int64_t column, const W* ahead) {
  const size_t depth = static_cast<size_t>(p.w.columns), even = depth / kLanes * kLanes;
  const auto stride = static_cast<size_t>(p.w.row_stride());
  const float* x[M];
  const W* w = static_cast<const W*>(p.w.data) + static_cast<size_t>(column) * stride;
  V sums[M][N];
#pragma GCC unroll 8
  for (size_t m = 0; m < M; ++m) {
    x[m] = RowAt(p.x, row + static_cast<int64_t>(m));
#pragma GCC unroll 8
    for (size_t n = 0; n < N; ++n) sums[m][n] = hn::Zero(D());
  }
  for (size_t k = 0; k < even; k += kLanes) {
    V wv[N];
#pragma GCC unroll 8
    for (size_t n = 0; n < N; ++n) wv[n] = Load(w + n * stride + k);
#pragma GCC unroll 8
    for (size_t f = 0; f < F; ++f) hwy::Prefetch(ahead + f * stride + k);
#pragma GCC unroll 8
    for (size_t m = 0; m < M; ++m) {
      const V xv = Load(x[m] + k);
#pragma GCC unroll 8
      for (size_t n = 0; n < N; ++n) sums[m][n] = hn::MulAdd(xv, wv[n], sums[m][n]);
    }
  }
  if (even < depth) {
#pragma GCC unroll 8
    for (size_t m = 0; m < M; ++m) {
      const V xv = LoadPart(x[m] + even, depth - even);
#pragma GCC unroll 8
      for (size_t n = 0; n < N; ++n) {
        sums[m][n] = hn::MulAdd(xv, LoadPart(w + n * stride + even, depth - even), sums[m][n]);
      }
    }
  }
  constexpr size_t kSums = M * N, kGroups = (kSums + 3) / 4;
  const V zero = hn::Zero(D());
  float y[kGroups * 4];
#pragma GCC unroll 8
  for (size_t i = 0; i < kGroups * 4; i += 4) {
    const auto sum = [&](size_t j) HWY_ATTR { return j < kSums ? sums[j / N][j % N] : zero; };
    SumLanesOfFour(sum(i), sum(i + 1), sum(i + 2), sum(i + 3), y + i);
  }
#pragma GCC unroll 8
  for (size_t m = 0; m < M; ++m) {
    std::memcpy(RowAt(p.y, row + static_cast<int64_t>(m)) + column, y + m * N, N * sizeof(float));
  }
}

// M rows by [begin, end) columns. The rows of W one `ahead_rows` further down are asked for: of each tile's N, those
// from `ahead_first` on.
template <size_t M, size_t N, size_t F, typename W>
HWY_INLINE void DotRows(const DotProduct& p, int64_t row, int64_t begin, int64_t end, int64_t ahead_rows) {
  const W* w = static_cast<const W*>(p.w.data);
  int64_t n = begin;
  for (; n + static_cast<int64_t>(N) <= end; n += N) {
    DotTile<M, N, F, W>(p, row, n, F > 0 ? w + (n + ahead_rows) * p.w.row_stride() : nullptr);
  }
  for (; n < end; ++n) DotTile<M, 1, 0, W>(p, row, n, nullptr);
}

template <typename W>
void DotBlockOf(const DotProduct& p, int64_t row_begin, int64_t row_end, int64_t begin, int64_t end) {
  constexpr int64_t kColumns = 24;  // Rows of W that all rows of x pass over: some 50 KB, in L2.
  const int64_t passes = (row_end - row_begin) / 4;
  for (int64_t n = begin; n < end; n += kColumns) {
    const int64_t n_end = std::min(end, n + kColumns);
    const bool more = n_end + kColumns <= end;
    int64_t m = row_begin;
    for (int64_t pass = 0; pass < passes; ++pass, m += 4) {
      // The next block's rows are asked for during as many passes as there are, up to the three rows of a tile.
      if (!more || pass >= 3) {
        DotRows<4, 3, 0, W>(p, m, n, n_end, 0);
      } else if (passes == 1) {
        DotRows<4, 3, 3, W>(p, m, n, n_end, kColumns);
      } else if (passes == 2 && pass == 0) {
        DotRows<4, 3, 2, W>(p, m, n, n_end, kColumns);
      } else {
        DotRows<4, 3, 1, W>(p, m, n, n_end, kColumns + (passes == 2 ? 2 : pass));
      }
    }
    const bool first = m == row_begin && more;
    if (row_end - m == 3) {
      first ? DotRows<3, 4, 4, W>(p, m, n, n_end, kColumns) : DotRows<3, 4, 0, W>(p, m, n, n_end, 0);
    } else if (row_end - m == 2) {
      first ? DotRows<2, 6, 6, W>(p, m, n, n_end, kColumns) : DotRows<2, 6, 0, W>(p, m, n, n_end, 0);
    } else if (row_end - m == 1) {
      first ? DotRows<1, 8, 8, W>(p, m, n, n_end, kColumns) : DotRows<1, 8, 0, W>(p, m, n, n_end, 0);
    }
  }
}

constexpr int64_t kWidenRows = 32;  // So many rows of x pay for it.

// The same sums over W made float32 first, a block at a time that stays in L2: each of many tiles would do it again.
void WidenedDotBlock(const DotProduct& p, int64_t row_begin, int64_t row_end, int64_t begin, int64_t end) {
  constexpr int64_t kColumns = 24;
  static thread_local std::vector<float> widened;
  widened.resize(static_cast<size_t>(kColumns * p.w.columns));
  for (int64_t n = begin; n < end; n += kColumns) {
    const int64_t n_end = std::min(end, n + kColumns), size = p.w.columns, lanes = kLanes;
    for (int64_t row = n; row < n_end; ++row) {
      const uint16_t* w = static_cast<const uint16_t*>(p.w.data) + row * p.w.row_stride();
      float* out = widened.data() + (row - n) * size;
      int64_t i = 0;
      for (; i + lanes <= size; i += lanes) hn::StoreU(Load(w + i), D(), out + i);
      if (i < size) StorePart(LoadPart(w + i, static_cast<size_t>(size - i)), out + i, static_cast<size_t>(size - i));
    }
    DotProduct block = p;
    block.w = {widened.data(), false, n_end - n, p.w.columns};
    block.y.data += n;
    DotBlockOf<float>(block, row_begin, row_end, 0, n_end - n);
  }
}

void DotBlock(const DotProduct& p, int64_t row_begin, int64_t row_end, int64_t begin, int64_t end) {
  if (!p.w.bfloat16) return DotBlockOf<float>(p, row_begin, row_end, begin, end);
  if (row_end - row_begin >= kWidenRows) return WidenedDotBlock(p, row_begin, row_end, begin, end);
  DotBlockOf<uint16_t>(p, row_begin, row_end, begin, end);
}

// --- outer form ---

// Rows of W, [begin, end) of a tile's loop, during which memory is asked for the same columns `distance` rows further
// down: what the next block of n reads. Each tile of a strip takes its share of the block.
struct Ahead {
  int64_t begin = 0, end = 0, distance = 0;
};

template <size_t M, size_t N, bool kFetch, typename W>
HWY_INLINE void OuterSteps(const float* const (&a)[M], const W* w, int64_t stride, int64_t begin, int64_t end,
                           int64_t distance, V (&sums)[M][N]) {
  w += begin * stride;
  for (int64_t n = begin; n < end; ++n, w += stride) {
    V wv[N];
#pragma GCC unroll 8
    for (size_t j = 0; j < N; ++j) wv[j] = Load(w + j * kLanes);
    if constexpr (kFetch) {
#pragma GCC unroll 8
      for (size_t j = 0; j<N; j += 64 / (kLanes * sizeof(W))> 0 ? 64 / (kLanes * sizeof(W)) : 1) {
        hwy::Prefetch(w + distance * stride + j * kLanes);
      }
    }
#pragma GCC unroll 8
    for (size_t m = 0; m < M; ++m) {
      const V av = hn::Set(D(), a[m][n]);
#pragma GCC unroll 8
      for (size_t j = 0; j < N; ++j) sums[m][j] = hn::MulAdd(av, wv[j], sums[m][j]);
    }
  }
}

// y[m, column...] += sum over n in [begin, end) of a[m, n] W[n, column...], for M rows and N vectors of columns.
template <size_t M, size_t N, typename W>
HWY_INLINE void OuterTile(const OuterProduct& p, int64_t row, int64_t begin, int64_t end, int64_t column,
                          const Ahead& ahead) {
  const float* a[M];
  V sums[M][N];
#pragma GCC unroll 8
  for (size_t m = 0; m < M; ++m) {
    a[m] = RowAt(p.a, row + static_cast<int64_t>(m));
    const float* y = RowAt(p.y, row + static_cast<int64_t>(m)) + column;
#pragma GCC unroll 8
    for (size_t j = 0; j < N; ++j) sums[m][j] = Load(y + j * kLanes);
  }
  const W* w = static_cast<const W*>(p.w.data) + column;
  if (ahead.begin < ahead.end) {
    OuterSteps<M, N, false>(a, w, p.w.row_stride(), begin, ahead.begin, 0, sums);
    OuterSteps<M, N, true>(a, w, p.w.row_stride(), ahead.begin, ahead.end, ahead.distance, sums);
    OuterSteps<M, N, false>(a, w, p.w.row_stride(), ahead.end, end, 0, sums);
  } else {
    OuterSteps<M, N, false>(a, w, p.w.row_stride(), begin, end, 0, sums);
  }
#pragma GCC unroll 8
  for (size_t m = 0; m < M; ++m) {
    float* y = RowAt(p.y, row + static_cast<int64_t>(m)) + column;
#pragma GCC unroll 8
    for (size_t j = 0; j < N; ++j) hn::StoreU(sums[m][j], D(), y + j * kLanes);
  }
}

// The same for a few columns, fewer than a vector.
template <typename W>
HWY_INLINE void OuterRest(const OuterProduct& p, int64_t row, int64_t begin, int64_t end, int64_t column,
                          size_t count) {
  const float* a = RowAt(p.a, row);
  float* y = RowAt(p.y, row) + column;
  V sum = LoadPart(y, count);
  for (int64_t n = begin; n < end; ++n) {
    const W* w = static_cast<const W*>(p.w.data) + n * p.w.row_stride() + column;
    sum = hn::MulAdd(hn::Set(D(), a[n]), LoadPart(w, count), sum);
  }
  StorePart(sum, y, count);
}

template <size_t N, typename W>
HWY_INLINE void OuterStrip(const OuterProduct& p, int64_t row_begin, int64_t row_end, int64_t begin, int64_t end,
                           int64_t column, int64_t distance) {
  constexpr int64_t kRows = 6;
  const int64_t tiles = std::max<int64_t>(1, std::min<int64_t>(4, (row_end - row_begin) / kRows));
  int64_t tile = 0;
  const auto ahead = [&]() HWY_ATTR {
    if (distance == 0 || tile >= tiles) return Ahead{};
    const int64_t length = end - begin;
    const Ahead share{begin + length * tile / tiles, begin + length * (tile + 1) / tiles, distance};
    ++tile;
    return share;
  };
  int64_t m = row_begin;
  for (; m + kRows <= row_end; m += kRows) OuterTile<kRows, N, W>(p, m, begin, end, column, ahead());
  const int64_t left = row_end - m;
  if (left >= 4) OuterTile<4, N, W>(p, m, begin, end, column, ahead()), m += 4;
  if (row_end - m == 3) OuterTile<3, N, W>(p, m, begin, end, column, ahead());
  if (row_end - m == 2) OuterTile<2, N, W>(p, m, begin, end, column, ahead());
  if (row_end - m == 1) OuterTile<1, N, W>(p, m, begin, end, column, ahead());
}

// Few rows: U rows of W at a time, all their columns in one sweep, as memory likes to be read; the running sums are in
// y, which stays in L1. M * U factors, M sums and one vector of W fit the 16 registers.
template <size_t M, size_t U, typename W>
HWY_INLINE void OuterSweep(const OuterProduct& p, int64_t column, int64_t column_end) {
  constexpr int64_t kLine = 64 / sizeof(W);  // columns in a cache line
  const int64_t lanes = kLanes, stride = p.w.row_stride();
  const int64_t vectors_end = column + (column_end - column) / lanes * lanes;
  const float* a[M];
  float* y[M];
#pragma GCC unroll 8
  for (size_t m = 0; m < M; ++m) {
    a[m] = RowAt(p.a, static_cast<int64_t>(m));
    y[m] = RowAt(p.y, static_cast<int64_t>(m));
  }
  const W* w = static_cast<const W*>(p.w.data);
  int64_t n = 0;
  for (; n + static_cast<int64_t>(U) <= p.w.rows; n += U, w += U * stride) {
    V av[M][U];
#pragma GCC unroll 8
    for (size_t m = 0; m < M; ++m) {
#pragma GCC unroll 8
      for (size_t u = 0; u < U; ++u) av[m][u] = hn::Set(D(), a[m][n + u]);
    }
    for (int64_t k = column; k < vectors_end; k += lanes) {
      if ((k - column) % kLine == 0) {
#pragma GCC unroll 8
        for (size_t u = 0; u < U; ++u) hwy::Prefetch(w + (U + u) * stride + k);
      }
      V sums[M];
#pragma GCC unroll 8
      for (size_t m = 0; m < M; ++m) sums[m] = Load(y[m] + k);
#pragma GCC unroll 8
      for (size_t u = 0; u < U; ++u) {
        const V wv = Load(w + u * stride + k);
#pragma GCC unroll 8
        for (size_t m = 0; m < M; ++m) sums[m] = hn::MulAdd(av[m][u], wv, sums[m]);
      }
#pragma GCC unroll 8
      for (size_t m = 0; m < M; ++m) hn::StoreU(sums[m], D(), y[m] + k);
    }
  }
  for (; n < p.w.rows; ++n, w += stride) {
    for (size_t m = 0; m < M; ++m) {
      const V av = hn::Set(D(), a[m][n]);
      for (int64_t k = column; k < vectors_end; k += lanes) {
        hn::StoreU(hn::MulAdd(av, Load(w + k), Load(y[m] + k)), D(), y[m] + k);
      }
    }
  }
  for (size_t m = 0; m < M && vectors_end < column_end; ++m) {
    OuterRest<W>(p, static_cast<int64_t>(m), 0, p.w.rows, vectors_end, static_cast<size_t>(column_end - vectors_end));
  }
}

template <typename W>
void OuterColumnsOf(const OuterProduct& p, int64_t column, int64_t column_end) {
  switch (p.a.rows) {
    case 1:
      return OuterSweep<1, 8, W>(p, column, column_end);
    case 2:
      return OuterSweep<2, 6, W>(p, column, column_end);
    case 3:
      return OuterSweep<3, 4, W>(p, column, column_end);
    case 4:
      return OuterSweep<4, 2, W>(p, column, column_end);
    default:
      break;
  }
  const int64_t lanes = kLanes, depth = p.w.rows, rows = p.a.rows;
  const int64_t block = std::max<int64_t>(8, std::min<int64_t>(64, (160 << 10) / ((column_end - column) * 4)));
  // So many rows at once that their pages, of a and of y, stay in the first level of the TLB.
  constexpr int64_t kRowsAtOnce = 24;
  for (int64_t begin = 0; begin < depth; begin += block) {
    const int64_t end = std::min(depth, begin + block);
    for (int64_t m = 0, m_end = 0; m < rows; m = m_end) {
      m_end = rows - m < kRowsAtOnce + 6 ? rows : m + kRowsAtOnce;
      // Rows of W to the next block, if whole; asked for by the first rows.
      const int64_t ahead = m == 0 && end + block <= depth ? block : 0;
      int64_t k = column;
      for (; k + 2 * lanes <= column_end; k += 2 * lanes) OuterStrip<2, W>(p, m, m_end, begin, end, k, ahead);
      for (; k + lanes <= column_end; k += lanes) OuterStrip<1, W>(p, m, m_end, begin, end, k, ahead);
      for (int64_t row = m; k < column_end && row < m_end; ++row) {
        OuterRest<W>(p, row, begin, end, k, static_cast<size_t>(column_end - k));
      }
    }
  }
}

void OuterColumns(const OuterProduct& p, int64_t column, int64_t column_end) {
  if (p.w.bfloat16) {
    OuterColumnsOf<uint16_t>(p, column, column_end);
  } else {
    OuterColumnsOf<float>(p, column, column_end);
  }
}

}  // namespace
}  // namespace c3po::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace c3po::cpu {

HWY_EXPORT(DotBlock);
HWY_EXPORT(OuterColumns);

namespace {

constexpr int64_t kSweepRows = 4;                       // Up to so many rows OuterColumns passes over W once.
constexpr int64_t kStripGrain = 48;                     // Columns: whole cache lines, and whole strips of any width;
constexpr int64_t kGroupStripGrain = 96;                // of quantized weights, and whole groups.
constexpr int64_t kDotGrain = 24, kPanelDotGrain = 64;  // Rows of W: whole tiles of either layout.
constexpr int64_t kChunkOperations = 1 << 16;  // Multiply-adds worth handing to another thread: some 4 microseconds.

struct Block {
  int64_t product, row, row_end, column, column_end;
};

// Rows of W that a dot product is cut at multiples of.
int64_t DotGrain(const WeightView& w) {
  const int64_t step = w.row_step(), wanted = w.in_panels() ? kPanelDotGrain : kDotGrain;
  return (wanted + step - 1) / step * step;
}

// Columns of W that an outer product is cut at multiples of.
int64_t OuterGrain(const WeightView& w) { return w.quantized() ? kGroupStripGrain : kStripGrain; }

// Ceiling of size / parts, as a multiple of `grain`.
int64_t PartOf(int64_t size, int64_t parts, int64_t grain) {
  return std::max<int64_t>(1, (size + parts * grain - 1) / (parts * grain)) * grain;
}

// `job`: 0, or a number that blocks of one job have in common.
void RunDot(const DotProduct& p, int64_t row, int64_t row_end, int64_t begin, int64_t end, int64_t job) {
  if (p.w.layout == WeightLayout::kPairs) {
    const Bfloat16Unit unit = FastestBfloat16Unit();
    if (unit != Bfloat16Unit::kNone) return PairDotBlock(unit, p, row, row_end, begin, end);
  }
  if (p.w.quantized()) return QuantizedDotBlock(p, row, row_end, begin, end, job);
  if (p.w.in_panels()) return PanelDotBlock(p, row, row_end, begin, end);
  HWY_DYNAMIC_DISPATCH(DotBlock)(p, row, row_end, begin, end);
}

void RunOuter(const OuterProduct& p, int64_t begin, int64_t end) {
  if (p.w.quantized()) return QuantizedOuterColumns(p, begin, end);
  if (p.w.in_panels()) return PanelOuterColumns(p, begin, end);
  HWY_DYNAMIC_DISPATCH(OuterColumns)(p, begin, end);
}

// The calling thread's list, which keeps its memory from job to job: a product of a steady step allocates nothing.
std::vector<Block>& EmptyBlocks() {
  thread_local std::vector<Block> blocks;
  blocks.clear();
  return blocks;
}

// On the pool, unless the job is not worth more than one part.
template <typename Run>
void RunBlocks(int64_t parts, const std::vector<Block>& blocks, const Run& run) {
  if (parts > 1) {
    ThreadPool::Shared().Run(static_cast<int64_t>(blocks.size()), [&](int64_t i) { run(blocks[i]); });
  } else {
    for (const Block& block : blocks) run(block);
  }
}

}  // namespace

void MultiplyTransposed(absl::Span<const DotProduct> products) {
  for (const DotProduct& p : products) {
    if (p.w.observer != nullptr) p.w.observer->Observe(p.x, p.w.columns, p.w.observed_unit);
  }
  const int64_t threads = ThreadPool::Shared().threads();
  int64_t operations = 0;
  for (const DotProduct& p : products) operations += p.x.rows * p.w.rows * p.w.columns;
  const int64_t parts = threads == 1 ? 1 : std::min(4 * threads, operations / kChunkOperations);
  const int64_t share = parts > 1 ? operations / parts : operations;
  std::vector<Block>& blocks = EmptyBlocks();
  for (size_t i = 0; i < products.size(); ++i) {
    const DotProduct& p = products[i];
    if (p.x.rows == 0) continue;
    // As many rows as half of L2 holds.
    const int64_t rows_max = std::max<int64_t>(4, (192 << 10) / (p.w.columns * 4) / 4 * 4);
    for (int64_t row = 0; row < p.x.rows; row += rows_max) {
      const int64_t rows = std::min(rows_max, p.x.rows - row);
      const int64_t own_parts = share > 0 ? (rows * p.w.rows * p.w.columns + share / 2) / share : 1;
      const int64_t columns = PartOf(p.w.rows, std::max<int64_t>(1, own_parts), DotGrain(p.w));
      for (int64_t column = 0; column < p.w.rows; column += columns) {
        blocks.push_back({static_cast<int64_t>(i), row, row + rows, column, std::min(p.w.rows, column + columns)});
      }
    }
  }
  const int64_t job = NewProductJob();
  const auto run = [&](const Block& b) { RunDot(products[b.product], b.row, b.row_end, b.column, b.column_end, job); };
  RunBlocks(parts, blocks, run);
}

void Multiply(absl::Span<const OuterProduct> products) {
  const int64_t threads = ThreadPool::Shared().threads();
  int64_t operations = 0, rows = 0;
  for (const OuterProduct& p : products) {
    operations += p.a.rows * p.w.rows * p.w.columns;
    rows = std::max(rows, p.a.rows);
  }
  if (operations == 0) return;
  // A product of few rows waits for memory, which likes whole rows of W better than many equal parts.
  const int64_t wanted = rows <= kSweepRows ? 2 * threads : 4 * threads;
  const int64_t parts = threads == 1 ? 1 : std::min(wanted, operations / kChunkOperations);
  const int64_t share = parts > 1 ? operations / parts : operations;
  std::vector<Block>& blocks = EmptyBlocks();
  for (size_t i = 0; i < products.size(); ++i) {
    const OuterProduct& p = products[i];
    if (p.a.rows == 0) continue;
    const int64_t own_parts = (p.a.rows * p.w.rows * p.w.columns + share / 2) / share;
    const int64_t width = PartOf(p.w.columns, std::max<int64_t>(1, own_parts), OuterGrain(p.w));
    for (int64_t column = 0; column < p.w.columns; column += width) {
      blocks.push_back({static_cast<int64_t>(i), 0, p.a.rows, column, std::min(p.w.columns, column + width)});
    }
  }
  const auto run = [&](const Block& b) {
    const OuterProduct& p = products[b.product];
    for (int64_t row = 0; row < b.row_end; ++row) {
      float* y = p.y.data + (p.y.index ? p.y.index[row] : row) * p.y.stride;
      std::fill(y + b.column, y + b.column_end, 0.0f);
    }
    RunOuter(p, b.column, b.column_end);
  };
  RunBlocks(parts, blocks, run);
}

void MultiplyAdd(absl::Span<const OuterProduct> products) {
  const int64_t threads = ThreadPool::Shared().threads();
  int64_t operations = 0, columns = 0, grain = kStripGrain;
  for (const OuterProduct& p : products) {
    operations += p.a.rows * p.w.rows * p.w.columns;
    columns = p.w.columns;
    grain = std::max(grain, OuterGrain(p.w));
  }
  if (operations == 0) return;
  const int64_t parts = threads == 1 ? 1 : std::min(4 * threads, operations / kChunkOperations);
  const int64_t width = parts > 1 ? PartOf(columns, parts, grain) : columns;
  const int64_t strips = (columns + width - 1) / width;
  const auto run = [&](int64_t i) {
    for (const OuterProduct& p : products) {
      if (p.a.rows > 0) RunOuter(p, i * width, std::min(columns, (i + 1) * width));
    }
  };
  if (strips == 1) return run(0);
  ThreadPool::Shared().Run(strips, run);
}

void MultiplyTransposedHere(const DotProduct& p, int64_t job) { RunDot(p, 0, p.x.rows, 0, p.w.rows, job); }

int64_t NewProductJob() {
  static std::atomic<int64_t> jobs = 0;
  return jobs.fetch_add(1, std::memory_order_relaxed) + 1;
}

void MultiplyAddHere(const OuterProduct& p) { RunOuter(p, 0, p.w.columns); }

}  // namespace c3po::cpu
#endif  // HWY_ONCE
