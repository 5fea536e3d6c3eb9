// x W^T of activations rounded to 16-bit integers with quantized weights: the walk over rows, panels and groups, for a
// `Unit` that does the arithmetic. Included once for each instruction set, inside its attributes and in a namespace of
// the including file's choosing, C3PO_QUANTIZED_TILES_NAMESPACE: no function here may be shared between instruction
// sets.
//
//   Unit: kParts vectors hold the 16 rows of a panel. Ints, Floats: a part's sums. Words: its words. Zero(),
//   All(value), LoadWords(p, part) of the 16 words at p, Pairs<layout, S>(words) pairs of columns 2 S and 2 S + 1 of
//   each word as halves of 16 bits, signed; Pair(p) the same two integers for all rows, MultiplyAdd(sums, pairs, pair)
//   adds both products of each row; Scales(p, part) of 16 scales; ZeroFloats(), AddScaled(floats, scales, factor, ints)
//   = floats + scales * (factor * ints); Store(floats, p, part). kRows: rows of x that a tile has at most;
//   Panels(rows): of how many panels a tile of so many rows is.

#if defined(C3PO_SERVER_COMPUTE_CPU_QUANTIZED_TILES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef C3PO_SERVER_COMPUTE_CPU_QUANTIZED_TILES_INL_H_
#undef C3PO_SERVER_COMPUTE_CPU_QUANTIZED_TILES_INL_H_
#else
#define C3PO_SERVER_COMPUTE_CPU_QUANTIZED_TILES_INL_H_
#endif

#include <hwy/base.h>
#include <hwy/cache_control.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "server/compute/cpu/quantized_panels.h"
#include "server/compute/cpu/quantized_products.h"

HWY_BEFORE_NAMESPACE();
namespace c3po::cpu::C3PO_QUANTIZED_TILES_NAMESPACE {

// Where some panels of a matrix lie.
struct QuantizedPanelsAt {
  const char* first;
  int64_t stride;          // bytes of a panel
  int64_t scales, quants;  // offsets of the first group's in a panel
};

constexpr int64_t kAheadBytes = 4096, kAheadScales = 512;  // Memory is asked for what is read so much later.

// Adds the products of pair S of each word at `words` with the same columns of M rows, at q. Calls itself for the pairs
// that are left of kPairs.
template <typename Unit, WeightLayout kLayout, int kPairs, int S, int M, int P>
HWY_INLINE void AddPairs(const char* words, int64_t stride, const int16_t* const* q, int64_t column,
                         typename Unit::Ints (&own)[M][P][Unit::kParts]) {
  if constexpr (S < kPairs) {
    typename Unit::Pair pair[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) pair[m] = Unit::PairAt(q[m] + column + 2 * S);
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
      for (int i = 0; i < Unit::kParts; ++i) {
        const auto pairs = Unit::template Pairs<kLayout, S>(Unit::LoadWords(words + p * stride, i));
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) own[m][p][i] = Unit::MultiplyAdd(own[m][p][i], pairs, pair[m]);
      }
    }
    AddPairs<Unit, kLayout, kPairs, S + 1, M, P>(words, stride, q, column, own);
  }
}

// Rows [row, row + M) of x with P panels, at `panel`; sums of panel q of row m to y[m] + 16 q.
template <typename Unit, WeightLayout kLayout, int M, int P>
HWY_INLINE void QuantizedTile(const RoundedActivations& x, int64_t row, const QuantizedPanelsAt& at, const char* panel,
                              float* const* y) {
  constexpr int kParts = Unit::kParts;
  constexpr int kWords = static_cast<int>(QuantBytes(kLayout) / (4 * kPanelRows));  // of a row's group
  constexpr int kPairs = kGroupColumns / 2 / kWords;                                // of a word
  typename Unit::Floats sums[M][P][kParts];
  const int16_t* q[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    q[m] = x.q + (row + m) * x.groups * kGroupColumns;
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
      for (int i = 0; i < kParts; ++i) sums[m][p][i] = Unit::ZeroFloats();
    }
  }
  const char* scales = panel + at.scales;
  const char* quants = panel + at.quants;
  // Behind the end of these panels, memory is asked for the beginning of the next ones.
  const int64_t late = std::max<int64_t>(0, x.groups - kAheadBytes / QuantBytes(kLayout));
  int64_t ahead = kAheadBytes;
  for (int64_t g = 0; g < x.groups; ++g, scales += kScaleBytes, quants += QuantBytes(kLayout)) {
    if (g == late) ahead += P * at.stride - x.groups * QuantBytes(kLayout);
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) hwy::Prefetch(scales + p * at.stride + kAheadScales);
    typename Unit::Ints own[M][P][kParts];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      // Nibbles are 8 more than their levels.
      const auto offset =
          kLayout == WeightLayout::kInt4 ? Unit::All(-8 * x.sums[(row + m) * x.groups + g]) : Unit::Zero();
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
        for (int i = 0; i < kParts; ++i) own[m][p][i] = offset;
      }
    }
#pragma GCC unroll 1
    for (int w = 0; w < kWords; ++w) {
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) hwy::Prefetch(quants + p * at.stride + w * 4 * kPanelRows + ahead);
      AddPairs<Unit, kLayout, kPairs, 0, M, P>(quants + w * 4 * kPanelRows, at.stride, q, w * kPairs * 2, own);
    }
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
      for (int i = 0; i < kParts; ++i) {
        const auto scale = Unit::Scales(reinterpret_cast<const uint16_t*>(scales + p * at.stride), i);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
          sums[m][p][i] = Unit::AddScaled(sums[m][p][i], scale, x.scales[(row + m) * x.groups + g], own[m][p][i]);
        }
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) q[m] += kGroupColumns;
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
      for (int i = 0; i < kParts; ++i) Unit::Store(sums[m][p][i], y[m] + p * kPanelRows, i);
    }
  }
}

// M rows with `panels` panels, which is P or 1. Rows of a last panel that is not whole go through a buffer.
template <typename Unit, WeightLayout kLayout, int M, int P>
HWY_INLINE void QuantizedRows(const RoundedActivations& x, int64_t row, const WeightView& w,
                              const QuantizedPanelsAt& at, int64_t panel, float* const* y) {
  const int64_t first = w.cut.PanelRow(panel), count = w.cut.RowsOf(panel + P - 1);
  float last[M][kPanelRows * P];
  float* to[M];
  for (int m = 0; m < M; ++m) to[m] = count < kPanelRows ? last[m] : y[row + m] + first;
  QuantizedTile<Unit, kLayout, M, P>(x, row, at, at.first + panel * at.stride, to);
  if (count == kPanelRows) return;
  for (int m = 0; m < M; ++m) {
    for (int p = 0; p < P; ++p) {
      std::memcpy(y[row + m] + w.cut.PanelRow(panel + p), last[m] + p * kPanelRows,
                  static_cast<size_t>(w.cut.RowsOf(panel + p)) * sizeof(float));
    }
  }
}

// Whether panels follow each other row by row, but for the last one's end.
inline bool InARow(const WeightView& w, int64_t panel, int64_t count) {
  return w.cut.PanelRow(panel + count - 1) == w.cut.PanelRow(panel) + (count - 1) * kPanelRows;
}

template <typename Unit, WeightLayout kLayout, int M>
HWY_INLINE void QuantizedTiles(const RoundedActivations& x, int64_t row, const WeightView& w,
                               const QuantizedPanelsAt& at, int64_t panel, int64_t count, float* const* y) {
  constexpr int P = Unit::Panels(M);
  if (count == P && InARow(w, panel, count)) return QuantizedRows<Unit, kLayout, M, P>(x, row, w, at, panel, y);
  for (int64_t i = 0; i < count; ++i) QuantizedRows<Unit, kLayout, M, 1>(x, row, w, at, panel + i, y);
}

template <typename Unit, WeightLayout kLayout, int M = Unit::kRows>
HWY_INLINE void QuantizedSomeRows(const RoundedActivations& x, int64_t row, int64_t rows, const WeightView& w,
                                  const QuantizedPanelsAt& at, int64_t panel, int64_t panel_end, float* const* y) {
  if constexpr (M > 0) {
    if (rows < M) return QuantizedSomeRows<Unit, kLayout, M - 1>(x, row, rows, w, at, panel, panel_end, y);
    constexpr int64_t P = Unit::Panels(M);
    for (; panel < panel_end; panel += P) {
      QuantizedTiles<Unit, kLayout, M>(x, row, w, at, panel, std::min(P, panel_end - panel), y);
    }
  }
}

// All rows pass over a few panels while these are in cache.
template <typename Unit, WeightLayout kLayout>
HWY_INLINE void QuantizedDotOf(const RoundedActivations& x, const WeightView& w, int64_t panel, int64_t panel_end,
                               float* const* y) {
  constexpr int64_t kInCache = 192 << 10;
  const int64_t stride = PanelBytes(kLayout, w.cut.panel_groups);
  const QuantizedPanelsAt at{static_cast<const char*>(w.data), stride, w.cut.first_group * kScaleBytes,
                             ScalesBytes(w.cut.panel_groups) + w.cut.first_group * QuantBytes(kLayout)};
  const int64_t own = x.groups * (kScaleBytes + QuantBytes(kLayout));
  const int64_t together = x.rows <= Unit::kRows ? panel_end - panel : std::max<int64_t>(4, kInCache / own / 4 * 4);
  for (; panel < panel_end; panel += together) {
    const int64_t end = std::min(panel_end, panel + together);
    for (int64_t row = 0; row < x.rows; row += Unit::kRows) {
      QuantizedSomeRows<Unit, kLayout>(x, row, std::min<int64_t>(Unit::kRows, x.rows - row), w, at, panel, end, y);
    }
  }
}

template <typename Unit>
HWY_INLINE void QuantizedDotWith(const RoundedActivations& x, const WeightView& w, int64_t panel, int64_t panel_end,
                                 float* const* y) {
  if (w.layout == WeightLayout::kInt8) {
    QuantizedDotOf<Unit, WeightLayout::kInt8>(x, w, panel, panel_end, y);
  } else {
    QuantizedDotOf<Unit, WeightLayout::kInt4>(x, w, panel, panel_end, y);
  }
}

}  // namespace c3po::cpu::C3PO_QUANTIZED_TILES_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
