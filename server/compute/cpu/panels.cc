#include "server/compute/cpu/panels.h"

#include <algorithm>
#include <vector>

#include "server/compute/cpu/thread_pool.h"

namespace c3po::cpu {
namespace {

template <typename W>
void PackOne(W* panel, WeightLayout layout, int64_t columns, std::vector<W>& rows) {
  rows.assign(panel, panel + kPanelRows * columns);
  for (int64_t i = 0; i < kPanelRows; ++i) {
    const W* row = rows.data() + i * columns;
    for (int64_t k = 0; k < columns; ++k) panel[PanelOffset(layout, sizeof(W) == 2, i, k)] = row[k];
  }
}

template <typename W>
void Pack(W* weights, WeightLayout layout, int64_t rows, int64_t columns) {
  ParallelFor(rows / kPanelRows, std::max<int64_t>(1, (1 << 16) / (kPanelRows * columns)),
              [&](int64_t begin, int64_t end) {
                std::vector<W> scratch;
                for (int64_t p = begin; p < end; ++p) {
                  PackOne(weights + p * kPanelRows * columns, layout, columns, scratch);
                }
              });
}

template <typename W>
void CopyRow(const W* weights, WeightLayout layout, int64_t columns, int64_t row, W* out) {
  const W* panel = weights + row / kPanelRows * kPanelRows * columns;
  for (int64_t k = 0; k < columns; ++k) out[k] = panel[PanelOffset(layout, sizeof(W) == 2, row % kPanelRows, k)];
}

}  // namespace

void PackPanels(void* weights, WeightLayout layout, bool bfloat16, int64_t rows, int64_t columns) {
  if (bfloat16) {
    Pack(static_cast<uint16_t*>(weights), layout, rows, columns);
  } else {
    Pack(static_cast<float*>(weights), layout, rows, columns);
  }
}

void CopyPanelRow(const void* weights, WeightLayout layout, bool bfloat16, int64_t columns, int64_t row, void* out) {
  if (bfloat16) {
    CopyRow(static_cast<const uint16_t*>(weights), layout, columns, row, static_cast<uint16_t*>(out));
  } else {
    CopyRow(static_cast<const float*>(weights), layout, columns, row, static_cast<float*>(out));
  }
}

}  // namespace c3po::cpu
