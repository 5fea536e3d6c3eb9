#ifndef C3PO_SERVER_COMPUTE_CPU_BFLOAT16_TILES_H_
#define C3PO_SERVER_COMPUTE_CPU_BFLOAT16_TILES_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "server/compute/cpu/matrix_products.h"
#include "server/compute/cpu/panels.h"

// x W^T where the processor multiplies pairs of bfloat16 and adds them in float32: the walk over rows, panels and
// columns, for a `Unit` that does the arithmetic. Weights lie in panels of pairs (panels.h); x is rounded to bfloat16,
// to the nearest, ties to even. The tests put a unit of plain loops in place of the processor's.
//
// Included by bfloat16_products.cc once for each instruction set, inside its attributes, hence in a namespace without a
// name of the including file's choosing: no function here may be shared between instruction sets.

namespace c3po::cpu {
namespace C3PO_BFLOAT16_TILES_NAMESPACE {

// Some rows of x, rounded, packed.
struct RoundedRows {
  const uint16_t* data;
  int64_t columns;  // even

  const uint16_t* Row(int64_t row) const { return data + row * columns; }
};

// Where the sums of a tile go: row m of it to y[m], 16 for each panel.
struct TileTarget {
  float* y[16];
};

// A vector of 16 sums for each row and panel.
//   Unit: Sums, Words; Zero(), LoadWords(p), Pair(p) the same pair in all 16 lanes, MultiplyAdd(sums, pair, words)
//   adds to each lane the products of its two numbers, Store(sums, p).
template <typename Unit>
struct VectorTiles {
  using UnitType = Unit;
  static constexpr int64_t kRows = 6, kPanels = 4;
  static constexpr int64_t kAheadColumns = 64;  // Memory is asked for a panel's columns so much before they are read.

  template <int M, int P>
  static void Tile(const RoundedRows& x, int64_t row, const uint16_t* w, int64_t panel_stride,
                   const TileTarget& target) {
    typename Unit::Sums sums[M][P];
    for (int m = 0; m < M; ++m) {
      for (int q = 0; q < P; ++q) sums[m][q] = Unit::Zero();
    }
    // Behind the end of these panels, for the beginning of the next ones.
    const int64_t late = std::max<int64_t>(0, x.columns - kAheadColumns);
    const uint16_t* ahead = w + kAheadColumns * kPanelRows;
    for (int64_t k = 0; k < x.columns; k += 2) {
      typename Unit::Words words[P];
      // Of many rows those behind the first ones find their weights in cache, and the first ones have work meanwhile.
      if (M <= 4 && row == 0) {
        if (k == late) ahead += P * panel_stride - x.columns * kPanelRows;
#pragma GCC unroll 4
        for (int q = 0; q < P; ++q) __builtin_prefetch(ahead + q * panel_stride + k * kPanelRows);
      }
#pragma GCC unroll 4
      for (int q = 0; q < P; ++q) words[q] = Unit::LoadWords(w + q * panel_stride + k * kPanelRows);
#pragma GCC unroll 6
      for (int m = 0; m < M; ++m) {
        const typename Unit::Words pair = Unit::Pair(x.Row(row + m) + k);
#pragma GCC unroll 4
        for (int q = 0; q < P; ++q) sums[m][q] = Unit::MultiplyAdd(sums[m][q], pair, words[q]);
      }
    }
    for (int m = 0; m < M; ++m) {
      for (int q = 0; q < P; ++q) Unit::Store(sums[m][q], target.y[m] + q * kPanelRows);
    }
  }

  template <int P>
  static void Rows(const RoundedRows& x, int64_t row, int64_t rows, const uint16_t* w, int64_t panel_stride,
                   const TileTarget& target) {
    switch (rows) {
      case 1:
        return Tile<1, P>(x, row, w, panel_stride, target);
      case 2:
        return Tile<2, P>(x, row, w, panel_stride, target);
      case 3:
        return Tile<3, P>(x, row, w, panel_stride, target);
      case 4:
        return Tile<4, P>(x, row, w, panel_stride, target);
      case 5:
        return Tile<5, P>(x, row, w, panel_stride, target);
      default:
        return Tile<6, P>(x, row, w, panel_stride, target);
    }
  }
};

// Tiles of up to 16 rows by 16 sums for each panel, fed 32 columns at a time, then the columns that are left.
//   Unit: Configure(rows, columns left), Release(); ZeroSums<Q>(), LoadX<kRest>(x, bytes between rows),
//   MultiplyAdd<Q, kRest>(w) adds the products of x's columns with the same columns of panel Q, StoreSums<Q>(y, bytes
//   between rows).
template <typename Unit>
struct MatrixTiles {
  using UnitType = Unit;
  static constexpr int64_t kRows = 16, kPanels = 4, kColumns = 32;

  template <int Q, int P, bool kRest>
  static void MultiplyAdd(const uint16_t* w, int64_t panel_stride) {
    if constexpr (Q < P) {
      Unit::template MultiplyAdd<Q, kRest>(w + Q * panel_stride);
      MultiplyAdd<Q + 1, P, kRest>(w, panel_stride);
    }
  }
  template <int Q, int P>
  static void Zero() {
    if constexpr (Q < P) Unit::template ZeroSums<Q>(), Zero<Q + 1, P>();
  }
  template <int Q, int P>
  static void Store(float* sums) {
    if constexpr (Q < P) {
      Unit::template StoreSums<Q>(sums + Q * kPanelRows, kPanels * kPanelRows * sizeof(float));
      Store<Q + 1, P>(sums);
    }
  }

  template <int P>
  static void Rows(const RoundedRows& x, int64_t row, int64_t rows, const uint16_t* w, int64_t panel_stride,
                   const TileTarget& target) {
    alignas(64) float sums[kRows * kPanels * kPanelRows];
    const int64_t whole = x.columns / kColumns * kColumns, stride = x.columns * int64_t{sizeof(uint16_t)};
    Unit::Configure(rows, x.columns - whole);
    Zero<0, P>();
    for (int64_t k = 0; k < whole; k += kColumns) {
      Unit::template LoadX<false>(x.Row(row) + k, stride);
      MultiplyAdd<0, P, false>(w + k * kPanelRows, panel_stride);
    }
    if (whole < x.columns) {
      Unit::template LoadX<true>(x.Row(row) + whole, stride);
      MultiplyAdd<0, P, true>(w + whole * kPanelRows, panel_stride);
    }
    Store<0, P>(sums);
    Unit::Release();
    for (int64_t m = 0; m < rows; ++m) {
      std::memcpy(target.y[m], sums + m * kPanels * kPanelRows, P * kPanelRows * sizeof(float));
    }
  }
};

// Rows [row_begin, row_end) over the panels of rows [begin, end) of W: all rows pass over four panels, then over the
// next.
template <typename Tiles>
void DotBlock(const DotProduct& p, int64_t row_begin, int64_t row_end, int64_t begin, int64_t end) {
  thread_local std::vector<uint16_t> rounded;
  const int64_t rows = row_end - row_begin, columns = p.w.columns, stride = kPanelRows * p.w.row_stride();
  rounded.resize(static_cast<size_t>(rows * columns));
  for (int64_t m = 0; m < rows; ++m) {
    const int64_t row = row_begin + m;
    const float* x = p.x.data + (p.x.index ? p.x.index[row] : row) * p.x.stride;
    Tiles::UnitType::Round(x, columns, rounded.data() + m * columns);
  }
  const RoundedRows x{rounded.data(), columns};
  const auto* w = static_cast<const uint16_t*>(p.w.data);
  const int64_t last = end / kPanelRows;
  for (int64_t panel = begin / kPanelRows; panel < last;) {
    const int64_t panels = last - panel >= Tiles::kPanels ? Tiles::kPanels : 1;
    for (int64_t m = 0; m < rows; m += Tiles::kRows) {
      const int64_t count = std::min<int64_t>(Tiles::kRows, rows - m);
      TileTarget target;
      for (int64_t i = 0; i < count; ++i) {
        const int64_t row = row_begin + m + i;
        target.y[i] = p.y.data + (p.y.index ? p.y.index[row] : row) * p.y.stride + panel * kPanelRows;
      }
      if (panels == 1) {
        Tiles::template Rows<1>(x, m, count, w + panel * stride, stride, target);
      } else {
        Tiles::template Rows<Tiles::kPanels>(x, m, count, w + panel * stride, stride, target);
      }
    }
    panel += panels;
  }
}

}  // namespace C3PO_BFLOAT16_TILES_NAMESPACE
}  // namespace c3po::cpu

#endif  // C3PO_SERVER_COMPUTE_CPU_BFLOAT16_TILES_H_
