#ifndef C3PO_TESTS_SERVER_COMPUTE_CPU_QUANTIZED_MATRIX_H_
#define C3PO_TESTS_SERVER_COMPUTE_CPU_QUANTIZED_MATRIX_H_

#include <algorithm>
#include <cstdint>
#include <random>
#include <stdexcept>
#include <vector>

#include "server/compute/cpu/matrix_products.h"
#include "server/compute/cpu/quantized_panels.h"

namespace c3po::cpu {

// A quantized weight matrix, and the numbers that it holds.
struct QuantizedMatrix {
  // Of `from` [n, k]. The rows and columns of a unit belong together; 0: all do.
  QuantizedMatrix(const std::vector<float>& from, int64_t n, int64_t k, WeightLayout layout, int64_t row_unit = 0,
                  int64_t column_unit = 0)
      : values(from.size()) {
    const QuantizedCut cut = QuantizedCut::Of(n, k, row_unit > 0 ? row_unit : n, column_unit > 0 ? column_unit : k);
    const int64_t panel_bytes = PanelBytes(layout, cut.panel_groups);
    bytes.assign(cut.Panels(n) * panel_bytes + 64, 0);
    char* const data = bytes.data() + (64 - reinterpret_cast<uintptr_t>(bytes.data()) % 64) % 64;
    for (int64_t panel = 0; panel < cut.Panels(n); ++panel) {
      for (int64_t group = 0; group < cut.panel_groups; ++group) {
        float columns[kGroupColumns * kPanelRows] = {};
        for (int64_t r = 0; r < cut.RowsOf(panel); ++r) {
          for (int64_t c = 0; c < cut.ColumnsOf(group); ++c) {
            columns[c * kPanelRows + r] = from[(cut.PanelRow(panel) + r) * k + cut.GroupColumn(group) + c];
          }
        }
        QuantizedGroups groups;
        if (!QuantizeGroups(layout, columns, groups)) throw std::invalid_argument("not finite");
        for (int64_t r = 0; r < cut.RowsOf(panel); ++r) {
          StoreGroup(layout, groups, r, data + panel * panel_bytes, r, group, cut.panel_groups);
          float widened[kGroupColumns];
          WidenGroup(layout, data + panel * panel_bytes, r, group, cut.panel_groups, widened);
          std::copy_n(widened, cut.ColumnsOf(group),
                      values.begin() + (cut.PanelRow(panel) + r) * k + cut.GroupColumn(group));
        }
      }
    }
    view = {data, false, n, k, layout};
    view.cut = cut;
  }
  QuantizedMatrix(const QuantizedMatrix&) = delete;
  QuantizedMatrix& operator=(const QuantizedMatrix&) = delete;

  std::vector<float> values;  // [n, k]: scale times level
  std::vector<char> bytes;
  WeightView view;
};

}  // namespace c3po::cpu

#endif  // C3PO_TESTS_SERVER_COMPUTE_CPU_QUANTIZED_MATRIX_H_
