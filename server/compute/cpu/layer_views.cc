#include "server/compute/cpu/layer_views.h"

#include <cstring>

#include "server/compute/cpu/panels.h"
#include "server/compute/cpu/quantized_products.h"

namespace c3po::cpu {

void CopyRow(const WeightView& w, int64_t row, float* out) {
  if (w.quantized()) return CopyQuantizedRow(w, row, out);
  if (!w.bfloat16) {
    if (w.in_panels()) {
      CopyPanelRow(w.data, w.layout, false, w.columns, row, out);
    } else {
      std::memcpy(out, w.At(row * w.row_stride()), static_cast<size_t>(w.columns) * sizeof(float));
    }
    return;
  }
  // Into the upper half of `out`, from where each entry is widened before it is overwritten.
  auto* const narrow = reinterpret_cast<uint16_t*>(out) + w.columns;
  if (w.in_panels()) {
    CopyPanelRow(w.data, w.layout, true, w.columns, row, narrow);
  } else {
    std::memcpy(narrow, w.At(row * w.row_stride()), static_cast<size_t>(w.columns) * sizeof(uint16_t));
  }
  for (int64_t i = 0; i < w.columns; ++i) {
    uint16_t half;
    std::memcpy(&half, narrow + i, sizeof half);
    const uint32_t bits = uint32_t{half} << 16;
    std::memcpy(out + i, &bits, sizeof bits);
  }
}

}  // namespace c3po::cpu
