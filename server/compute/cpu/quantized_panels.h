#ifndef C3PO_SERVER_COMPUTE_CPU_QUANTIZED_PANELS_H_
#define C3PO_SERVER_COMPUTE_CPU_QUANTIZED_PANELS_H_

#include <cstdint>

#include "server/compute/cpu/panels.h"

namespace c3po::cpu {

// Weights of 8 and of 4 bits. A row of W [n, k] is cut into groups of 32 columns, and
//   W[n, k] = s q[n, k],    s the group's scale, a bfloat16;    q in [-127, 127] of kInt8, in [-8, 7] of kInt4
// so a weight takes 8.5 or 4.5 bits. s q is exact in float32: 8 + 8 bits of significand at most.
//
// s minimizes sum_k a_k (w - s q)^2 over some candidates, q = round(w / s). a_k is what column k weighs: the mean
// square of the activations that meet it (activation_squares.h), or 1 where nothing is known of them. Each candidate is
// rounded to bfloat16 before q is chosen, so that its rounding costs nothing but the choice. Candidates are largest / d
// of the group's largest weight in magnitude, and the least-squares scale of the best one's q:
//   kInt8   d = 127, 126, ..., 123
//   kInt4   d = -6.5, -6.75, ..., -8.75: the largest weight gets the sign that has one level more
// With columns that weigh differently, kInt4 has d = -5, -5.25, ..., -9.25, and both formats the least-squares scale of
// each candidate's q.
// A group whose weights are all below 2^-100 is 0. The arithmetic is the same on every processor, and so are s and q.
//
// Rows lie in panels of 16 and a panel's groups side by side, its scales first:
//   panel   [scales of 16 rows, bfloat16] of each group, up to a multiple of 64 bytes; then [quants] of each group
//   quants  of kInt8 8 words, of kInt4 4 words of 32 bits for each of the 16 rows: [words, 16]. Words hold consecutive
//           columns 0 to 3, or 0 to 7, so that a mask and a shift give what meets consecutive activations: of kInt8
//           pairs of columns in halves of 16 bits, with columns 0, 2, 1, 3 in its bytes; of kInt4 four columns in
//           bytes, with columns 0, 4, 1, 5, 2, 6, 3, 7 in its nibbles, each plus 8; from the lowest bit on
// Where rows belong together in units that are no multiple of 16, or columns in units that are no multiple of 32 (the
// rows of gate and up, and the columns of down, of one expert), each unit begins a panel or a group, and what is left
// of its last one is 0.
constexpr int64_t kGroupColumns = 32;

constexpr int64_t QuantBytes(WeightLayout layout) {  // of a panel's group
  return (layout == WeightLayout::kInt8 ? 8 : 4) * 4 * kPanelRows;
}
constexpr int64_t kScaleBytes = 2 * kPanelRows;  // likewise
constexpr int64_t ScalesBytes(int64_t panel_groups) { return (panel_groups * kScaleBytes + 63) / 64 * 64; }
constexpr int64_t PanelBytes(WeightLayout layout, int64_t panel_groups) {
  return ScalesBytes(panel_groups) + panel_groups * QuantBytes(layout);
}

// Of an activation that is rounded for weights of such a layout: see RoundRow16, RoundRow8.
constexpr int64_t RoundedBytes(WeightLayout layout) { return layout == WeightLayout::kInt8 ? 2 : 1; }

// Where the panels and groups of a matrix, or of some of its rows and columns, are cut.
struct QuantizedCut {
  int64_t row_unit = 0;      // rows that belong together; all, where the units are whole panels
  int64_t column_unit = 0;   // columns that belong together; all, where the units are whole groups
  int64_t first_group = 0;   // of a panel
  int64_t panel_groups = 0;  // that a panel of the whole matrix has

  static QuantizedCut Of(int64_t rows, int64_t columns, int64_t row_unit, int64_t column_unit) {
    QuantizedCut cut{row_unit % kPanelRows == 0 ? rows : row_unit,
                     column_unit % kGroupColumns == 0 ? columns : column_unit};
    cut.panel_groups = cut.Groups(columns);
    return cut;
  }

  // The panel of a row, the group of a column. Counted from this matrix's first ones.
  int64_t PanelOf(int64_t row) const { return row / row_unit * UnitPanels() + row % row_unit / kPanelRows; }
  int64_t GroupOf(int64_t column) const {
    return column / column_unit * UnitGroups() + column % column_unit / kGroupColumns;
  }
  // A panel's first row, and how many it has; a group's columns.
  int64_t PanelRow(int64_t panel) const { return panel / UnitPanels() * row_unit + panel % UnitPanels() * kPanelRows; }
  int64_t RowsOf(int64_t panel) const {
    const int64_t left = row_unit - panel % UnitPanels() * kPanelRows;
    return left < kPanelRows ? left : kPanelRows;
  }
  int64_t GroupColumn(int64_t group) const {
    return group / UnitGroups() * column_unit + group % UnitGroups() * kGroupColumns;
  }
  int64_t ColumnsOf(int64_t group) const {
    const int64_t left = column_unit - group % UnitGroups() * kGroupColumns;
    return left < kGroupColumns ? left : kGroupColumns;
  }
  int64_t Panels(int64_t rows) const { return (rows + row_unit - 1) / row_unit * UnitPanels(); }
  int64_t Groups(int64_t columns) const { return (columns + column_unit - 1) / column_unit * UnitGroups(); }
  // Whether each panel has all its rows.
  bool whole_panels() const { return row_unit % kPanelRows == 0; }

 private:
  int64_t UnitPanels() const { return (row_unit + kPanelRows - 1) / kPanelRows; }
  int64_t UnitGroups() const { return (column_unit + kGroupColumns - 1) / kGroupColumns; }
};

// A group of each of 16 rows, as the panels hold it.
struct QuantizedGroups {
  uint16_t scales[kPanelRows];
  uint32_t words[8 * kPanelRows];  // [8, 16] of kInt8, [4, 16] of kInt4
};
// From w [32, 16], the 16 weights of a column side by side. False where a weight is not finite, or 2^120 or more;
// then `to` means nothing. layout: kInt8 or kInt4, as everywhere here. Pure and thread-safe, as are all functions here.
//
// `roots` [32]: the square roots of what columns weigh, a_k, finite and at least 0; only their proportions count. Null,
// or all 0: columns weigh the same.
bool QuantizeGroups(WeightLayout layout, const float* w, QuantizedGroups& to, const float* roots = nullptr);
// The same by vectors of 4, 8 or 16 lanes, of which this processor has up to so many. Tests: all give the same bits.
int WidestLanes();
bool QuantizeGroupsBy(int lanes, WeightLayout layout, const float* w, QuantizedGroups& to,
                      const float* roots = nullptr);

// Levels of consecutive columns as safetensors files pack them (server/weights/packed_tensors.h): plus 8 or 128, from
// the lowest bit on; and the word of a group's quants that holds the same levels.
constexpr uint32_t QuantsOfPacked(WeightLayout layout, uint32_t packed);
uint32_t PackedOfQuants(WeightLayout layout, uint32_t quants);

// q of row `row` of these 16, [32].
void LevelsOf(WeightLayout layout, const QuantizedGroups& groups, int64_t row, int8_t* q);

// Puts row `row` of these 16 where it lies in a panel: row `place` of the panel's 16, group `group`.
void StoreGroup(WeightLayout layout, const QuantizedGroups& from, int64_t row, void* panel, int64_t place,
                int64_t group, int64_t panel_groups);
// The same for all 16 rows, row i in place i.
void StorePanelGroup(WeightLayout layout, const QuantizedGroups& from, void* panel, int64_t group,
                     int64_t panel_groups);
// s q of that row and group, [32].
void WidenGroup(WeightLayout layout, const void* panel, int64_t place, int64_t group, int64_t panel_groups, float* out);

// A row of activations x [columns], cut into groups as the columns of `cut` are, as integers of 16 or of 8 bits:
//   x[k] ~ scale q[k],    scale = max |x[k]| of the group / d,    q = round(x / scale), ties to even,    d = 32767, 127
// so an entry is off by half of scale at most. A group whose entries are all below 2^-100 is 0; of one with an entry
// that is not finite the scale is none, and neither is any product with it. q [groups * 32], padded with 0; scales
// [groups]. The same on every processor.
//
// Weights of kInt8 meet 16 bits, as 8 would cost what these weights themselves do. Those of kInt4 meet 8 bits: of
// Gaussian weights the outputs are off by 9 % (root mean squares), and rounding adds 0.6 % for Gaussian activations and
// 1.2 % for heavy tails (Student's t of 2 degrees) or entries that are 50 times as large (rounded_activations_test.cc).
void RoundRow16(const float* x, const QuantizedCut& cut, int64_t columns, int16_t* q, float* scales);
// offsets [groups]: -8 times the sum of a group's q, which takes back the 8 that is added to levels of kInt4.
void RoundRow8(const float* x, const QuantizedCut& cut, int64_t columns, int8_t* q, float* scales, int32_t* offsets);
// The same by vectors of 4, 8 or 16 lanes, as QuantizeGroupsBy.
void RoundRow8By(int lanes, const float* x, const QuantizedCut& cut, int64_t columns, int8_t* q, float* scales,
                 int32_t* offsets);

// Levels of 8 bits are signed in the panels, and plus 128 in files.
inline constexpr uint32_t kPackedOffsets = 0x80808080;
// Bytes 0, 2, 1, 3.
constexpr uint32_t SwappedBytes(uint32_t x) { return (x & 0xFF0000FF) | (x & 0xFF00) << 8 | (x >> 8 & 0xFF00); }
// The lowest four nibbles, each in a byte.
constexpr uint32_t SpreadNibbles(uint32_t x) {
  x = (x | x << 8) & 0x00FF00FF;
  return (x | x << 4) & 0x0F0F0F0F;
}
constexpr uint32_t QuantsOfPacked(WeightLayout layout, uint32_t packed) {
  if (layout == WeightLayout::kInt8) return SwappedBytes(packed ^ kPackedOffsets);
  return SpreadNibbles(packed & 0xFFFF) | SpreadNibbles(packed >> 16) << 4;
}

}  // namespace c3po::cpu

#endif  // C3PO_SERVER_COMPUTE_CPU_QUANTIZED_PANELS_H_
