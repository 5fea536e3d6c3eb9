// Dot form: tiles of M rows of x by P panels, each sum in a lane of its own, in ascending k; panels go by from end to
// end as memory likes it, four at a time for one row, and all rows pass over a group of panels while it is in L2. Outer
// form: tiles of M rows by K columns, one vector accumulator per element along the rows of W, over a group of panels,
// then summed across lanes and added to y. Group by group, whatever the rows and columns beside an element.

#include "server/compute/cpu/compiled_targets.h"
// Compiled once for each instruction set.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "server/compute/cpu/panel_products.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "server/compute/cpu/panel_products.h"
#include "server/compute/cpu/panels.h"
#include "server/compute/cpu/vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace c3po::cpu::HWY_NAMESPACE {
namespace {

constexpr size_t kParts = kPanelRows / kLanes;  // vectors to the 16 weights of a column
constexpr size_t kTileRows = kLanes >= 8 ? 6 : kLanes == 4 ? 3 : 1;

// So many panels that the sums of M rows hide a multiply-add's latency and leave registers for the weights.
template <size_t M>
constexpr size_t TilePanels() {
  return std::max<size_t>(1, (kLanes == 16 ? 12 : 8) / (M * kParts));
}

// The layouts of a panel: where a column lies, counted from one that begins a pair, and part I of its 16 weights, those
// of rows [I * kLanes, (I + 1) * kLanes).
struct FloatPanel {
  using Word = float;
  static constexpr bool kInOrder = true;  // Part I of 16 numbers in a row is part I of the rows.
  static HWY_INLINE const float* Column(const float* p, size_t column) { return p + column * kPanelRows; }
  template <size_t I>
  static HWY_INLINE V Part(const float* p) {
    return Load(p + I * kLanes);
  }
};

// Of words of 32 bits, each of two weights: the first ones, or the second ones.
HWY_INLINE auto LoadWords(const uint16_t* p) {
  const hn::RebindToUnsigned<D> words;
#if HWY_TARGET == HWY_SCALAR
  uint32_t word;
  std::memcpy(&word, p, sizeof(word));
  return hn::Set(words, word);
#else
  return hn::BitCast(words, hn::LoadU(hn::Repartition<uint16_t, D>(), p));
#endif
}
template <bool kSecond>
HWY_INLINE V OfWords(const uint16_t* p) {
  const hn::RebindToUnsigned<D> words;
  if constexpr (kSecond) return hn::BitCast(D(), hn::And(LoadWords(p), hn::Set(words, 0xFFFF0000u)));
  return hn::BitCast(D(), hn::ShiftLeft<16>(LoadWords(p)));
}

// Vectors of 16 lanes take the weights as they lie.
struct Bfloat16Panel {
  using Word = uint16_t;
  static constexpr bool kInOrder = kLanes < 16;
  static HWY_INLINE const uint16_t* Column(const uint16_t* p, size_t column) { return p + column * kPanelRows; }
  template <size_t I>
  static HWY_INLINE V Part(const uint16_t* p) {
    if constexpr (kLanes == 16) return Load(p);
    return OfWords<(I >= kParts / 2)>(p + 2 * kLanes * (I % std::max<size_t>(1, kParts / 2)));
  }
};

struct Bfloat16Pairs {
  using Word = uint16_t;
  static constexpr bool kInOrder = true;
  struct Half {
    const uint16_t* pair;
    bool second;
    HWY_INLINE Half operator+(size_t words) const { return {pair + words, second}; }
  };
  static HWY_INLINE Half Column(const uint16_t* p, size_t column) {
    return {p + column / 2 * 2 * kPanelRows, column % 2 == 1};
  }
  template <size_t I>
  static HWY_INLINE V Part(Half column) {
    const uint16_t* p = column.pair + 2 * kLanes * I;
    return column.second ? OfWords<true>(p) : OfWords<false>(p);
  }
};

// 16 numbers of rows of W, part I, as the parts above hold them (PanelPosition); and back.
template <size_t I, typename Panel>
HWY_INLINE V PartOfRows(const float* p) {
  if constexpr (Panel::kInOrder) {
    return Load(p + I * kLanes);
  } else {
    alignas(64) static constexpr int32_t kRowAt[16] = {0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15};
    return hn::TableLookupLanes(Load(p), hn::SetTableIndices(D(), kRowAt));
  }
}
template <typename Panel>
HWY_INLINE void StoreRows(const V (&parts)[kParts], float* p) {
  if constexpr (Panel::kInOrder) {
#pragma GCC unroll 16
    for (size_t i = 0; i < kParts; ++i) hn::StoreU(parts[i], D(), p + i * kLanes);
  } else {
    alignas(64) static constexpr int32_t kPositionOf[16] = {0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15};
    hn::StoreU(hn::TableLookupLanes(parts[0], hn::SetTableIndices(D(), kPositionOf)), D(), p);
  }
}

// Calls f with I in [0, N), each known to the compiler.
template <size_t N, size_t I = 0, typename F>
HWY_INLINE void ForEachPart(const F& f) {
  if constexpr (I < N) {
    f(std::integral_constant<size_t, I>());
    ForEachPart<N, I + 1>(f);
  }
}

template <typename Panel>
HWY_INLINE const typename Panel::Word* PanelAt(const WeightView& w, int64_t panel) {
  return static_cast<const typename Panel::Word*>(w.data) + panel * kPanelRows * w.row_stride();
}

// --- dot form ---

constexpr size_t kAhead = 2048 / 64;        // Cache lines that memory is asked for before they are read.
constexpr int64_t kGroupBytes = 192 << 10;  // Of panels that all rows of x pass over while they are in L2.

// kFetch: each line of the panels is asked for kAhead lines before it is read; at their end, where so few rows wait for
// memory alone, the first ones of `next`.
template <size_t M, size_t P, bool kFetch, typename Panel>
HWY_INLINE void DotTile(const DotProduct& p, int64_t row, int64_t panel, const typename Panel::Word* next) {
  using W = typename Panel::Word;
  constexpr size_t kLine = 64 / (kPanelRows * sizeof(W));  // columns in a cache line
  constexpr size_t kStep = kLine * kPanelRows;
  const size_t depth = static_cast<size_t>(p.w.columns), stride = static_cast<size_t>(kPanelRows * p.w.row_stride());
  const W* w = PanelAt<Panel>(p.w, panel);
  const float* x[M];
  V sums[M][P][kParts];
#pragma GCC unroll 8
  for (size_t m = 0; m < M; ++m) {
    x[m] = RowAt(p.x, row + static_cast<int64_t>(m));
#pragma GCC unroll 8
    for (size_t q = 0; q < P; ++q) {
#pragma GCC unroll 16
      for (size_t i = 0; i < kParts; ++i) sums[m][q][i] = hn::Zero(D());
    }
  }
  // A column's place is one argument: with two GCC does not inline this, and all sums go through memory.
  const auto step = [&](size_t k, auto column) HWY_ATTR {
#pragma GCC unroll 8
    for (size_t q = 0; q < P; ++q) {
      V parts[kParts];
      ForEachPart<kParts>([&](auto i) HWY_ATTR { parts[i] = Panel::template Part<i>(column + q * stride); });
#pragma GCC unroll 8
      for (size_t m = 0; m < M; ++m) {
        const V xv = hn::Set(D(), x[m][k]);
#pragma GCC unroll 16
        for (size_t i = 0; i < kParts; ++i) sums[m][q][i] = hn::MulAdd(xv, parts[i], sums[m][q][i]);
      }
    }
  };
  size_t k = 0;
  // Two loops, for GCC keeps all sums of many rows in registers in the plain one alone.
  if constexpr (kFetch && M <= 4) {
    const size_t whole = depth / kLine * kLine;
    const W* ahead = w + kAhead * kStep;
    for (size_t end = whole - std::min(whole, kAhead * kLine); k < whole; end = whole, ahead = next) {
      for (; k < end; k += kLine, w += kStep, ahead += kStep) {
#pragma GCC unroll 8
        for (size_t q = 0; q < P; ++q) hwy::Prefetch(ahead + q * stride);
#pragma GCC unroll 2
        for (size_t j = 0; j < kLine; ++j) step(k + j, Panel::Column(w, j));
      }
    }
  } else {
    for (; k + kLine <= depth; k += kLine, w += kStep) {
      if constexpr (kFetch) {
#pragma GCC unroll 8
        for (size_t q = 0; q < P; ++q) hwy::Prefetch(w + kAhead * kStep + q * stride);
      }
#pragma GCC unroll 2
      for (size_t j = 0; j < kLine; ++j) step(k + j, Panel::Column(w, j));
    }
  }
  for (; k < depth; ++k, w += kPanelRows) step(k, Panel::Column(w, 0));
#pragma GCC unroll 8
  for (size_t m = 0; m < M; ++m) {
    float* y = RowAt(p.y, row + static_cast<int64_t>(m)) + panel * kPanelRows;
#pragma GCC unroll 8
    for (size_t q = 0; q < P; ++q) StoreRows<Panel>(sums[m][q], y + q * kPanelRows);
  }
}

// M rows over panels [begin, end), behind which are panels up to `last`.
template <size_t M, bool kFetch, typename Panel>
HWY_INLINE void DotRows(const DotProduct& p, int64_t row, int64_t begin, int64_t end, int64_t last) {
  constexpr int64_t P = TilePanels<M>();
  // Behind the last ones, those that were just read: they are in the cache.
  const auto next = [&](int64_t panel) { return PanelAt<Panel>(p.w, panel < last ? panel : begin); };
  for (; begin + P <= end; begin += P) DotTile<M, P, kFetch, Panel>(p, row, begin, next(begin + P));
  for (; begin < end; ++begin) DotTile<M, 1, kFetch, Panel>(p, row, begin, next(begin + 1));
}

template <bool kFetch, typename Panel>
HWY_INLINE void DotSomeRows(const DotProduct& p, int64_t row, int64_t rows, int64_t begin, int64_t end, int64_t last) {
  if (rows == 1) DotRows<1, kFetch, Panel>(p, row, begin, end, last);
  if constexpr (kTileRows > 1) {
    if (rows == 2) DotRows<2, kFetch, Panel>(p, row, begin, end, last);
    if (rows == 3) DotRows<3, kFetch, Panel>(p, row, begin, end, last);
  }
  if constexpr (kTileRows > 3) {
    if (rows == 4) DotRows<4, kFetch, Panel>(p, row, begin, end, last);
    if (rows == 5) DotRows<5, kFetch, Panel>(p, row, begin, end, last);
    if (rows == 6) DotRows<6, kFetch, Panel>(p, row, begin, end, last);
  }
}

// The first rows bring a group of panels into L2, the others find it there.
template <typename Panel>
void DotBlockOf(const DotProduct& p, int64_t row_begin, int64_t row_end, int64_t begin, int64_t end) {
  using W = typename Panel::Word;
  constexpr int64_t kRows = kTileRows;
  const int64_t last = end / kPanelRows;
  const int64_t fitting = kGroupBytes / (kPanelRows * p.w.columns * int64_t{sizeof(W)});
  const int64_t group = row_end - row_begin <= kRows ? last : std::max<int64_t>(4, fitting / 4 * 4);
  for (int64_t panel = begin / kPanelRows; panel < last; panel += group) {
    const int64_t panel_end = std::min(last, panel + group);
    DotSomeRows<true, Panel>(p, row_begin, std::min(kRows, row_end - row_begin), panel, panel_end, last);
    for (int64_t row = row_begin + kRows; row < row_end; row += kRows) {
      DotSomeRows<false, Panel>(p, row, std::min(kRows, row_end - row), panel, panel_end, last);
    }
  }
}

void DotBlock(const DotProduct& p, int64_t row_begin, int64_t row_end, int64_t begin, int64_t end) {
  if (p.w.layout == WeightLayout::kPairs) return DotBlockOf<Bfloat16Pairs>(p, row_begin, row_end, begin, end);
  if (p.w.bfloat16) return DotBlockOf<Bfloat16Panel>(p, row_begin, row_end, begin, end);
  DotBlockOf<FloatPanel>(p, row_begin, row_end, begin, end);
}

// --- outer form ---

// Part of the order of a sum. Lanes are added once for each: where 16 of them hold a panel, a few panels are no work
// beside that.
constexpr int64_t kGroupPanels = kLanes == 16 ? 16 : 8;

// Columns of a tile of M rows: its sums, M factors and a vector of weights fit the registers, 32 of 16 lanes or 16.
// Pairs stay together.
template <size_t M, bool kPairs>
constexpr size_t TileColumns() {
  if constexpr (kLanes == 16) return M == 4 ? 6 : 8;
  return M == 3 ? (kPairs ? 2 : 3) : 8 / M;
}

// y[row..row + M, column..column + K) += the group's share.
template <size_t M, size_t K, bool kFetch, typename Panel>
HWY_INLINE void OuterTile(const OuterProduct& p, int64_t row, int64_t begin, int64_t end, int64_t column) {
  using W = typename Panel::Word;
  constexpr size_t kLine = 64 / sizeof(W);
  const size_t stride = static_cast<size_t>(kPanelRows * p.w.row_stride());
  const float* a[M];
  V sums[M][K];
#pragma GCC unroll 8
  for (size_t m = 0; m < M; ++m) {
    a[m] = RowAt(p.a, row + static_cast<int64_t>(m)) + begin * kPanelRows;
#pragma GCC unroll 8
    for (size_t k = 0; k < K; ++k) sums[m][k] = hn::Zero(D());
  }
  const W* w = PanelAt<Panel>(p.w, begin) + column * kPanelRows;
  const W* ahead = w + (p.next_bytes > 0 ? p.next_bytes / int64_t{sizeof(W)} : int64_t{K * kPanelRows});
  for (int64_t panel = begin; panel < end; ++panel, w += stride, ahead += stride) {
    if constexpr (kFetch) {
#pragma GCC unroll 8
      for (size_t i = 0; i < K * kPanelRows; i += kLine) hwy::Prefetch(ahead + i);
    }
    ForEachPart<kParts>([&](auto i) HWY_ATTR {
      V av[M];
#pragma GCC unroll 8
      for (size_t m = 0; m < M; ++m) av[m] = PartOfRows<i, Panel>(a[m]);
#pragma GCC unroll 8
      for (size_t k = 0; k < K; ++k) {
        const V wv = Panel::template Part<i>(Panel::Column(w, k));
#pragma GCC unroll 8
        for (size_t m = 0; m < M; ++m) sums[m][k] = hn::MulAdd(av[m], wv, sums[m][k]);
      }
    });
#pragma GCC unroll 8
    for (size_t m = 0; m < M; ++m) a[m] += kPanelRows;
  }
  constexpr size_t kSums = M * K, kPadded = (kSums + 3) / 4 * 4;
  float totals[kPadded];
#pragma GCC unroll 8
  for (size_t j = 0; j < kPadded; j += 4) {
    const auto sum = [&](size_t s) HWY_ATTR { return s < kSums ? sums[s / K][s % K] : hn::Zero(D()); };
    SumLanesOfFour(sum(j), sum(j + 1), sum(j + 2), sum(j + 3), totals + j);
  }
#pragma GCC unroll 8
  for (size_t m = 0; m < M; ++m) {
    float* y = RowAt(p.y, row + static_cast<int64_t>(m)) + column;
#pragma GCC unroll 8
    for (size_t k = 0; k < K; ++k) y[k] += totals[m * K + k];
  }
}

// M rows over columns [column, column_end) of the panels of a group.
template <size_t M, bool kFetch, typename Panel>
HWY_INLINE void OuterRows(const OuterProduct& p, int64_t row, int64_t begin, int64_t end, int64_t column,
                          int64_t column_end) {
  constexpr bool kPairs = std::is_same_v<Panel, Bfloat16Pairs>;
  constexpr size_t K = TileColumns<M, kPairs>(), kLast = kPairs ? 2 : 1;
  for (; column + static_cast<int64_t>(K) <= column_end; column += K) {
    OuterTile<M, K, kFetch, Panel>(p, row, begin, end, column);
  }
  for (; column < column_end; column += kLast) OuterTile<M, kLast, kFetch, Panel>(p, row, begin, end, column);
}

template <bool kFetch, typename Panel>
HWY_INLINE void OuterRest(const OuterProduct& p, int64_t row, int64_t begin, int64_t end, int64_t column,
                          int64_t column_end) {
  switch (p.a.rows - row) {
    case 1:
      return OuterRows<1, kFetch, Panel>(p, row, begin, end, column, column_end);
    case 2:
      return OuterRows<2, kFetch, Panel>(p, row, begin, end, column, column_end);
    case 3:
      return OuterRows<3, kFetch, Panel>(p, row, begin, end, column, column_end);
    default:
      return;
  }
}

template <typename Panel>
void OuterColumnsOf(const OuterProduct& p, int64_t column_begin, int64_t column_end) {
  using W = typename Panel::Word;
  constexpr int64_t kRows = 4;
  constexpr int64_t kColumns = (128 << 10) / (kGroupPanels * kPanelRows * int64_t{sizeof(W)});  // of a group, in L2
  const int64_t panels = p.w.rows / kPanelRows;
  for (int64_t begin = 0; begin < panels; begin += kGroupPanels) {
    const int64_t end = std::min(panels, begin + kGroupPanels);
    for (int64_t column = column_begin; column < column_end; column += kColumns) {
      const int64_t part_end = std::min(column_end, column + kColumns);
      int64_t m = 0;
      if (p.a.rows >= kRows) OuterRows<kRows, true, Panel>(p, m, begin, end, column, part_end), m += kRows;
      for (; m + kRows <= p.a.rows; m += kRows) OuterRows<kRows, false, Panel>(p, m, begin, end, column, part_end);
      if (m == 0) {
        OuterRest<true, Panel>(p, m, begin, end, column, part_end);
      } else {
        OuterRest<false, Panel>(p, m, begin, end, column, part_end);
      }
    }
  }
}

void OuterColumns(const OuterProduct& p, int64_t begin, int64_t end) {
  if (p.w.layout == WeightLayout::kPairs) return OuterColumnsOf<Bfloat16Pairs>(p, begin, end);
  if (p.w.bfloat16) return OuterColumnsOf<Bfloat16Panel>(p, begin, end);
  OuterColumnsOf<FloatPanel>(p, begin, end);
}

}  // namespace
}  // namespace c3po::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace c3po::cpu {

HWY_EXPORT(DotBlock);
HWY_EXPORT(OuterColumns);

void PanelDotBlock(const DotProduct& p, int64_t row, int64_t row_end, int64_t begin, int64_t end) {
  HWY_DYNAMIC_DISPATCH(DotBlock)(p, row, row_end, begin, end);
}

void PanelOuterColumns(const OuterProduct& p, int64_t begin, int64_t end) {
  HWY_DYNAMIC_DISPATCH(OuterColumns)(p, begin, end);
}

}  // namespace c3po::cpu
#endif  // HWY_ONCE
