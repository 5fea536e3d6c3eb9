#ifndef C3PO_SERVER_COMPUTE_CPU_PANELS_H_
#define C3PO_SERVER_COMPUTE_CPU_PANELS_H_

#include <cstdint>

namespace c3po::cpu {

// The layout of a weight matrix W [n, k] that products of few rows read fastest: panels of 16 rows of W, and in a panel
// the 16 weights of one column next to each other, [n / 16, k, 16]. A product reads a panel from end to end, and 16
// sums grow beside each other in registers, none of which is ever summed across lanes.
//   float32   the 16 in their order
//   bfloat16  rows 0, 8, 1, 9, ..., 7, 15: read as eight words of 32 bits, their lower halves are rows 0 to 7 and their
//             upper halves rows 8 to 15, so that widening takes one instruction for eight weights
// n is a multiple of 16. A panel takes the memory of the 16 rows that it holds.
constexpr int64_t kPanelRows = 16;

// How a weight matrix lies.
enum class WeightLayout {
  kRows,    // row by row
  kPanels,  // as above
  kPairs,   // bfloat16 alone, for units that multiply pairs (bfloat16_products.h): panels [n / 16, k / 2, 16, 2], a
            // row's weights of two columns side by side; k is even
  kInt8,    // quantized (quantized_panels.h)
  kInt4,
};

// Where row i of a panel stands among the 16, i in [0, 16).
constexpr int64_t PanelPosition(int64_t i, bool bfloat16) { return !bfloat16 ? i : i < 8 ? 2 * i : 2 * (i - 8) + 1; }

// Where the weight of row i and column k of a panel stands in it.
constexpr int64_t PanelOffset(WeightLayout layout, bool bfloat16, int64_t i, int64_t k) {
  return layout == WeightLayout::kPairs ? k / 2 * 2 * kPanelRows + 2 * i + k % 2
                                        : k * kPanelRows + PanelPosition(i, bfloat16);
}

// Rearranges W [rows, columns], row-major, where it lies. On ThreadPool::Shared(). rows: a multiple of 16; layout:
// kPanels or kPairs.
void PackPanels(void* weights, WeightLayout layout, bool bfloat16, int64_t rows, int64_t columns);
// Row `row` of a matrix in panels, to out [columns] of the same precision.
void CopyPanelRow(const void* weights, WeightLayout layout, bool bfloat16, int64_t columns, int64_t row, void* out);

}  // namespace c3po::cpu

#endif  // C3PO_SERVER_COMPUTE_CPU_PANELS_H_
