// x W^T of rounded activations with quantized weights: the walk over rows, panels and groups, for a `Unit` that does
// the arithmetic. Included once for each instruction set, inside its attributes and in a namespace of the including
// file's choosing, C3PO_QUANTIZED_TILES_NAMESPACE: no function here may be shared between instruction sets.
//
// A step multiplies levels with 4 bytes of rounded activations: 2 integers of 16 bits, or 4 of 8 bits. A word has one
// step, or two, for its first and its last columns.
//
//   Unit: kParts vectors hold the 16 rows of a panel. Words, Ints, Floats: a part's words, its sums as integers, and as
//   numbers; Activations: what a step has of them, for all rows.
//     kRows<layout>         rows of x that a tile has at most; Panels<layout>(rows): of how many panels it is then
//     kSteps<layout>        of a word; kGroupBytes<layout>: of a row's rounded group; kOffsets<layout>: its offsets
//     LoadWords(p, part)    of the 16 words at p
//     Levels<layout, S>(words)   those of step S, as integers of the activations' size
//     All(p)                the 4 bytes at p for all rows
//     Start<layout>(offsets) sums of nothing; MultiplyAdd<layout>(sums, levels, activations) adds a step's products of
//                           each row; Finish<layout>(sums) the sums and the offsets. Of a group's steps.
//     Scales(p, part)       of 16 scales
//     ZeroFloats(), AddScaled(floats, scales, factor, ints) = floats + scales * (factor * ints), Store(floats, p, part)

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

// Adds the products of step S of the words at `words` with the activations of M rows, at q. Calls itself for the next
// step.
template <typename Unit, WeightLayout kLayout, int S, int M, int P>
HWY_INLINE void AddSteps(const char* words, int64_t stride, const char* const* q, int64_t at,
                         typename Unit::Ints (&own)[M][P][Unit::kParts]) {
  typename Unit::Activations activations[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) activations[m] = Unit::All(q[m] + at + 4 * S);
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
    for (int i = 0; i < Unit::kParts; ++i) {
      const auto levels = Unit::template Levels<kLayout, S>(Unit::LoadWords(words + p * stride, i));
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        own[m][p][i] = Unit::template MultiplyAdd<kLayout>(own[m][p][i], levels, activations[m]);
      }
    }
  }
  if constexpr (S + 1 < Unit::template kSteps<kLayout>) {
    AddSteps<Unit, kLayout, S + 1, M, P>(words, stride, q, at, own);
  }
}

// Those of word w of each row of P panels, whose group begins at `quants`.
template <typename Unit, WeightLayout kLayout, int M, int P>
HWY_INLINE void AddWords(const char* quants, int64_t stride, int64_t ahead, const char* const* q, int w,
                         typename Unit::Ints (&own)[M][P][Unit::kParts]) {
  const char* const words = quants + w * 4 * kPanelRows;
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) hwy::Prefetch(words + p * stride + ahead);
  AddSteps<Unit, kLayout, 0, M, P>(words, stride, q, w * 4 * Unit::template kSteps<kLayout>, own);
}

// Rows [row, row + M) of x with P panels, at `panel`; sums of panel q of row m to y[m] + 16 q.
template <typename Unit, WeightLayout kLayout, int M, int P>
HWY_INLINE void QuantizedTile(const RoundedActivations& x, int64_t row, const QuantizedPanelsAt& at, const char* panel,
                              float* const* y) {
  constexpr int kParts = Unit::kParts;
  constexpr int kWords = static_cast<int>(QuantBytes(kLayout) / (4 * kPanelRows));  // of a row's group
  constexpr int64_t kRounded = Unit::template kGroupBytes<kLayout>, kOffsets = Unit::template kOffsets<kLayout>;
  typename Unit::Floats sums[M][P][kParts];
  const char* q[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    q[m] = static_cast<const char*>(x.q) + (row + m) * x.groups * kRounded;
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
      const auto start =
          Unit::template Start<kLayout>(kOffsets > 0 ? x.offsets + ((row + m) * x.groups + g) * kOffsets : nullptr);
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
        for (int i = 0; i < kParts; ++i) own[m][p][i] = start;
      }
    }
    // Few rows wait for memory, which likes its requests spread; of many, a loop would move all sums at each turn.
    if constexpr (M <= 2) {
#pragma GCC unroll 1
      for (int w = 0; w < kWords; ++w) AddWords<Unit, kLayout, M, P>(quants, at.stride, ahead, q, w, own);
    } else {
#pragma GCC unroll 8
      for (int w = 0; w < kWords; ++w) AddWords<Unit, kLayout, M, P>(quants, at.stride, ahead, q, w, own);
    }
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
      for (int i = 0; i < kParts; ++i) {
        const auto scale = Unit::Scales(reinterpret_cast<const uint16_t*>(scales + p * at.stride), i);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
          sums[m][p][i] = Unit::AddScaled(sums[m][p][i], scale, x.scales[(row + m) * x.groups + g],
                                          Unit::template Finish<kLayout>(own[m][p][i]));
        }
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) q[m] += kRounded;
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
  constexpr int P = Unit::template Panels<kLayout>(M);
  if (count == P && InARow(w, panel, count)) return QuantizedRows<Unit, kLayout, M, P>(x, row, w, at, panel, y);
  for (int64_t i = 0; i < count; ++i) QuantizedRows<Unit, kLayout, M, 1>(x, row, w, at, panel + i, y);
}

template <typename Unit, WeightLayout kLayout, int M = Unit::template kRows<kLayout>>
HWY_INLINE void QuantizedSomeRows(const RoundedActivations& x, int64_t row, int64_t rows, const WeightView& w,
                                  const QuantizedPanelsAt& at, int64_t panel, int64_t panel_end, float* const* y) {
  if constexpr (M > 0) {
    if (rows < M) return QuantizedSomeRows<Unit, kLayout, M - 1>(x, row, rows, w, at, panel, panel_end, y);
    constexpr int64_t P = Unit::template Panels<kLayout>(M);
    for (; panel < panel_end; panel += P) {
      QuantizedTiles<Unit, kLayout, M>(x, row, w, at, panel, std::min(P, panel_end - panel), y);
    }
  }
}

// All rows pass over a few panels while these are in cache: of kInt4 in tiles of nearly the same height; of kInt8 in
// whole ones, as one or two rows that are left have tiles of more panels.
template <typename Unit, WeightLayout kLayout>
HWY_INLINE void QuantizedDotOf(const RoundedActivations& x, const WeightView& w, int64_t panel, int64_t panel_end,
                               float* const* y) {
  constexpr int64_t kInCache = 192 << 10, kRows = Unit::template kRows<kLayout>;
  const int64_t stride = PanelBytes(kLayout, w.cut.panel_groups);
  const QuantizedPanelsAt at{static_cast<const char*>(w.data), stride, w.cut.first_group * kScaleBytes,
                             ScalesBytes(w.cut.panel_groups) + w.cut.first_group * QuantBytes(kLayout)};
  const int64_t own = x.groups * (kScaleBytes + QuantBytes(kLayout));
  const int64_t together = x.rows <= kRows ? panel_end - panel : std::max<int64_t>(4, kInCache / own / 4 * 4);
  const int64_t tiles = (x.rows + kRows - 1) / kRows;
  for (; panel < panel_end; panel += together) {
    const int64_t end = std::min(panel_end, panel + together);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const bool even = kLayout == WeightLayout::kInt4;
      const int64_t row = even ? x.rows * tile / tiles : tile * kRows;
      const int64_t rows = even ? x.rows * (tile + 1) / tiles - row : std::min(kRows, x.rows - row);
      QuantizedSomeRows<Unit, kLayout>(x, row, rows, w, at, panel, end, y);
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
