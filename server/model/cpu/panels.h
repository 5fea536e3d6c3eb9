#ifndef C3PO_SERVER_MODEL_CPU_PANELS_H_
#define C3PO_SERVER_MODEL_CPU_PANELS_H_

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

// Where row i of a panel stands among the 16, i in [0, 16).
constexpr int64_t PanelPosition(int64_t i, bool bfloat16) { return !bfloat16 ? i : i < 8 ? 2 * i : 2 * (i - 8) + 1; }

// Rearranges W [rows, columns], row-major, where it lies. On ThreadPool::Shared(). rows: a multiple of 16.
void PackPanels(void* weights, bool bfloat16, int64_t rows, int64_t columns);
// Row `row` of a matrix in panels, to out [columns] of the same precision.
void CopyPanelRow(const void* weights, bool bfloat16, int64_t columns, int64_t row, void* out);

}  // namespace c3po::cpu

#endif  // C3PO_SERVER_MODEL_CPU_PANELS_H_
