// a W of quantized weights, widened in registers: levels become numbers of float32 and meet a times their scales, which
// is found once for a group's 32 columns. Tiles hold the sums of M rows of a by the columns of a word, 16 lanes side by
// side for the 16 rows of a panel, over up to kSumPanels panels; only then are lanes added. Neither a tile's height nor
// its columns change the order of a sum.

#include "server/compute/cpu/compiled_targets.h"
// Compiled once for each instruction set.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "server/compute/cpu/quantized_outer.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include <algorithm>
#include <cstring>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "server/compute/cpu/quantized_panels.h"
#include "server/compute/cpu/quantized_products.h"
#include "server/compute/cpu/vectors-inl.h"

// Whether levels are made numbers by AVX-512's shuffle and its table of 16.
#undef C3PO_LEVELS_BY_TABLE
#if HWY_ARCH_X86 && HWY_TARGET == HWY_AVX3
#define C3PO_LEVELS_BY_TABLE 1
#else
#define C3PO_LEVELS_BY_TABLE 0
#endif

HWY_BEFORE_NAMESPACE();
namespace c3po::cpu::HWY_NAMESPACE {
namespace {

using DI = hn::RebindToSigned<D>;
using VI = hn::Vec<DI>;

constexpr int kParts = static_cast<int>(kPanelRows / kLanes);
constexpr int64_t kSumPanels = 32;  // Part of the order of a sum.
constexpr int kQuad = 4;            // Columns of kInt8's word, and of half of kInt4's.
constexpr int kTileRows = kLanes == 16 ? 6 : (kLanes == 1 ? 1 : 3);
constexpr int64_t kAheadBytes = 192;  // Memory is asked for a panel's words so much before they are read.
constexpr int64_t kAheadScales = 64;  // likewise

// So many quads of a word a tile of so many rows has sums for.
template <WeightLayout kLayout>
constexpr int Quads(int rows) {
  return kLayout == WeightLayout::kInt4 && kLanes == 16 && rows <= 3 ? 2 : 1;
}

HWY_INLINE VI WordsAt(const char* p, int part) {
  return hn::LoadU(DI(), reinterpret_cast<const int32_t*>(p) + part * static_cast<int>(kLanes));
}

template <int kBits>
HWY_INLINE VI Right(VI words) {
  if constexpr (kBits == 0) return words;
  return hn::ShiftRight<kBits>(words);
}
template <int kBits>
HWY_INLINE VI Left(VI words) {
  if constexpr (kBits == 0) return words;
  return hn::ShiftLeft<kBits>(words);
}

// What a level's number below is a multiple of.
template <WeightLayout kLayout>
constexpr float LevelUnit() {
  return kLayout == WeightLayout::kInt8 && C3PO_LEVELS_BY_TABLE ? 0x1p24f : 1.0f;
}

// Column kColumn of quad kOfQuad of each word, times LevelUnit.
template <WeightLayout kLayout, int kOfQuad, int kColumn>
HWY_INLINE V LevelOf(VI words) {
  if constexpr (kLayout == WeightLayout::kInt8) {
    constexpr int kByte = kColumn == 1 ? 2 : (kColumn == 2 ? 1 : kColumn);
#if C3PO_LEVELS_BY_TABLE
    // The byte as the highest of each lane, and nothing below it.
    constexpr int kOne = 0x00808080 + (kByte << 24);
    const __m512i from = _mm512_set4_epi32(kOne + 0x0C000000, kOne + 0x08000000, kOne + 0x04000000, kOne);
    return hn::ConvertTo(D(), VI{_mm512_shuffle_epi8(words.raw, from)});
#else
    return hn::ConvertTo(D(), hn::ShiftRight<24>(Left<24 - 8 * kByte>(words)));
#endif
  } else {
    const VI shifted = Right<8 * kColumn + 4 * kOfQuad>(words);
#if C3PO_LEVELS_BY_TABLE
    // A table of the 16 levels: the lookup reads the lowest four bits alone.
    const __m512 levels = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    return V{_mm512_permutexvar_ps(shifted.raw, levels)};
#else
    return hn::ConvertTo(D(), hn::Sub(hn::And(shifted, hn::Set(DI(), 15)), hn::Set(DI(), 8)));
#endif
  }
}

// The sums of M rows with columns [kColumn, 4) of a quad. Calls itself for the next one.
template <WeightLayout kLayout, int kOfQuad, int M, int kColumn = 0>
HWY_INLINE void AddColumns(VI words, const V (&scaled)[M], V (&sums)[M][kQuad]) {
  const V level = LevelOf<kLayout, kOfQuad, kColumn>(words);
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) sums[m][kColumn] = hn::MulAdd(scaled[m], level, sums[m][kColumn]);
  if constexpr (kColumn + 1 < kQuad) AddColumns<kLayout, kOfQuad, M, kColumn + 1>(words, scaled, sums);
}

// totals [M, 4 Q]: of the word at `words` in each of `panels` panels, `stride` bytes apart; of kQuad > 1 from quad
// kFirst on. scaled [M, kSumPanels, 16]: a times scales.
template <WeightLayout kLayout, int kFirst, int Q, int M>
HWY_INLINE void OuterTile(const float* scaled, const char* words, int64_t stride, int64_t panels, int64_t ahead,
                          float* totals) {
  V first[M][kQuad], second[M][kQuad];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int k = 0; k < kQuad; ++k) first[m][k] = second[m][k] = hn::Zero(D());
  }
  for (int64_t panel = 0; panel < panels; ++panel, words += stride, scaled += kPanelRows) {
    hwy::Prefetch(words + ahead);
#pragma GCC unroll 16
    for (int i = 0; i < kParts; ++i) {
      const VI own = WordsAt(words, i);
      V a[M];
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) a[m] = Load(scaled + m * kSumPanels * kPanelRows + i * static_cast<int>(kLanes));
      AddColumns<kLayout, kFirst, M>(own, a, first);
      if constexpr (Q == 2) AddColumns<kLayout, 1, M>(own, a, second);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    float* const to = totals + m * 2 * kQuad;
    SumLanesOfFour(first[m][0], first[m][1], first[m][2], first[m][3], to);
    if constexpr (Q == 2) SumLanesOfFour(second[m][0], second[m][1], second[m][2], second[m][3], to + kQuad);
  }
}

// Some panels' group, and the columns of y that are wanted of it.
struct OuterGroup {
  const char* quants;  // of the first panel
  int64_t stride;      // bytes from panel to panel
  int64_t panels;
  int64_t column, columns;  // the group's first one, and how many it has
  int64_t begin, end;       // wanted
  int64_t ahead;            // Memory is asked for what lies so many bytes behind.
};

// y[column + i] += totals[i] / LevelUnit, a power of 2, of the columns that are wanted.
template <WeightLayout kLayout>
HWY_INLINE void AddTotals(const OuterGroup& at, int64_t column, int64_t count, const float* totals, float* y) {
  const int64_t begin = std::max(at.begin, column), end = std::min({at.end, at.column + at.columns, column + count});
  for (int64_t k = begin; k < end; ++k) y[k] += totals[k - column] * (1 / LevelUnit<kLayout>());
}

// Rows [row, row + M) of y.
template <WeightLayout kLayout, int M>
HWY_INLINE void OuterRows(const OuterProduct& p, int64_t row, const float* scaled, const OuterGroup& at) {
  constexpr int64_t kInWord = kLayout == WeightLayout::kInt4 ? 8 : 4;
  constexpr int Q = Quads<kLayout>(M);
  float totals[M * 2 * kQuad];
  const auto add = [&](int64_t column, int64_t count) HWY_ATTR {
    for (int m = 0; m < M; ++m) AddTotals<kLayout>(at, column, count, totals + m * 2 * kQuad, RowAt(p.y, row + m));
  };
  const int64_t columns = std::min(at.columns, at.end - at.column);
  for (int64_t k = std::max<int64_t>(0, at.begin - at.column) / kInWord * kInWord; k < columns; k += kInWord) {
    const char* const words = at.quants + k / kInWord * 4 * kPanelRows;
    OuterTile<kLayout, 0, Q, M>(scaled, words, at.stride, at.panels, at.ahead, totals);
    add(at.column + k, Q * kQuad);
    if constexpr (Q * kQuad < kInWord) {
      OuterTile<kLayout, 1, 1, M>(scaled, words, at.stride, at.panels, at.ahead, totals);
      add(at.column + k + kQuad, kQuad);
    }
  }
}

template <WeightLayout kLayout, int M = kTileRows>
HWY_INLINE void OuterSomeRows(const OuterProduct& p, int64_t row, int64_t rows, const float* scaled,
                              const OuterGroup& at) {
  if constexpr (M > 0) {
    if (rows < M) return OuterSomeRows<kLayout, M - 1>(p, row, rows, scaled, at);
    OuterRows<kLayout, M>(p, row, scaled, at);
  }
}

// scaled [rows, kSumPanels, 16]: a times the scales of group `group` of panels [panel, panel + count); rows of W that
// only fill up a panel are 0.
void ScaleRows(const OuterProduct& p, int64_t row, int64_t rows, int64_t panel, int64_t count, int64_t group,
               float* scaled) {
  const QuantizedCut& cut = p.w.cut;
  const char* scales = static_cast<const char*>(p.w.data) + panel * PanelBytes(p.w.layout, cut.panel_groups) +
                       (cut.first_group + group) * kScaleBytes;
  const int64_t ahead = p.next_bytes > 0 ? p.next_bytes : kAheadScales;
  for (int64_t i = 0; i < count; ++i, scales += PanelBytes(p.w.layout, cut.panel_groups)) {
    const int64_t first = cut.PanelRow(panel + i), own = cut.RowsOf(panel + i);
    hwy::Prefetch(scales + ahead);
    for (int64_t m = 0; m < rows; ++m) {
      const float* a = RowAt(p.a, row + m) + first;
      float part[kPanelRows] = {};
      if (own < kPanelRows) {
        std::copy_n(a, own, part);
        a = part;
      }
      float* const to = scaled + (m * kSumPanels + i) * kPanelRows;
#pragma GCC unroll 16
      for (int k = 0; k < kParts; ++k) {
        const int lanes = k * static_cast<int>(kLanes);
        hn::StoreU(hn::Mul(Load(a + lanes), Load(reinterpret_cast<const uint16_t*>(scales) + lanes)), D(), to + lanes);
      }
    }
  }
}

template <WeightLayout kLayout>
void OuterColumnsOf(const OuterProduct& p, int64_t begin, int64_t end) {
  const QuantizedCut& cut = p.w.cut;
  const int64_t panels = cut.Panels(p.w.rows), stride = PanelBytes(kLayout, cut.panel_groups);
  const int64_t group_end = cut.GroupOf(end - 1) + 1;
  alignas(64) float scaled[kTileRows * kSumPanels * kPanelRows];
  for (int64_t panel = 0; panel < panels; panel += kSumPanels) {
    const int64_t count = std::min(kSumPanels, panels - panel);
    const int64_t ahead = p.next_bytes > 0 ? p.next_bytes : kAheadBytes;
    const char* const quants = static_cast<const char*>(p.w.data) + panel * stride + ScalesBytes(cut.panel_groups) +
                               cut.first_group * QuantBytes(kLayout);
    for (int64_t group = cut.GroupOf(begin); group < group_end; ++group) {
      const OuterGroup at{quants + group * QuantBytes(kLayout),
                          stride,
                          count,
                          cut.GroupColumn(group),
                          cut.ColumnsOf(group),
                          begin,
                          end,
                          ahead};
      for (int64_t row = 0; row < p.a.rows; row += kTileRows) {
        const int64_t rows = std::min<int64_t>(kTileRows, p.a.rows - row);
        ScaleRows(p, row, rows, panel, count, group, scaled);
        OuterSomeRows<kLayout>(p, row, rows, scaled, at);
      }
    }
  }
}

void QuantizedOuter(const OuterProduct& p, int64_t begin, int64_t end) {
  if (p.w.layout == WeightLayout::kInt8) {
    OuterColumnsOf<WeightLayout::kInt8>(p, begin, end);
  } else {
    OuterColumnsOf<WeightLayout::kInt4>(p, begin, end);
  }
}

}  // namespace
}  // namespace c3po::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace c3po::cpu {

HWY_EXPORT(QuantizedOuter);

void QuantizedOuterColumns(const OuterProduct& p, int64_t begin, int64_t end) {
  HWY_DYNAMIC_DISPATCH(QuantizedOuter)(p, begin, end);
}

}  // namespace c3po::cpu
#endif  // HWY_ONCE
