#include "server/model/cpu/panels.h"

#include <algorithm>
#include <vector>

#include "server/model/cpu/thread_pool.h"

namespace c3po::cpu {
namespace {

template <typename W>
void PackOne(W* panel, int64_t columns, std::vector<W>& rows) {
  rows.assign(panel, panel + kPanelRows * columns);
  for (int64_t i = 0; i < kPanelRows; ++i) {
    const W* row = rows.data() + i * columns;
    W* out = panel + PanelPosition(i, sizeof(W) == 2);
    for (int64_t k = 0; k < columns; ++k) out[k * kPanelRows] = row[k];
  }
}

template <typename W>
void Pack(W* weights, int64_t rows, int64_t columns) {
  ParallelFor(rows / kPanelRows, std::max<int64_t>(1, (1 << 16) / (kPanelRows * columns)),
              [&](int64_t begin, int64_t end) {
                std::vector<W> scratch;
                for (int64_t p = begin; p < end; ++p) PackOne(weights + p * kPanelRows * columns, columns, scratch);
              });
}

template <typename W>
void CopyRow(const W* weights, int64_t columns, int64_t row, W* out) {
  const W* panel = weights + row / kPanelRows * kPanelRows * columns;
  panel += PanelPosition(row % kPanelRows, sizeof(W) == 2);
  for (int64_t k = 0; k < columns; ++k) out[k] = panel[k * kPanelRows];
}

}  // namespace

void PackPanels(void* weights, bool bfloat16, int64_t rows, int64_t columns) {
  if (bfloat16) {
    Pack(static_cast<uint16_t*>(weights), rows, columns);
  } else {
    Pack(static_cast<float*>(weights), rows, columns);
  }
}

void CopyPanelRow(const void* weights, bool bfloat16, int64_t columns, int64_t row, void* out) {
  if (bfloat16) {
    CopyRow(static_cast<const uint16_t*>(weights), columns, row, static_cast<uint16_t*>(out));
  } else {
    CopyRow(static_cast<const float*>(weights), columns, row, static_cast<float*>(out));
  }
}

}  // namespace c3po::cpu
