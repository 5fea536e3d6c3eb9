#include "server/compute/cpu/stored_groups.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace c3po::cpu {
namespace {

// Columns of a group: where it begins, how many it has.
struct GroupColumns {
  int64_t begin, count;
};
GroupColumns ColumnsOf(const QuantizedCut& cut, int64_t group, int64_t columns) {
  const int64_t begin = cut.GroupColumn(group);
  return {begin, std::min(cut.ColumnsOf(group), columns - begin)};
}

QuantizedCut CutOf(const HostMatrix& from, int64_t column_unit) {
  return QuantizedCut::Of(from.rows, from.columns, from.rows, std::min(column_unit, from.columns));
}

// Row `row` of the matrix as row i of the group.
void CopyGroup(WeightLayout layout, const HostMatrix& from, int64_t row, GroupColumns columns, int64_t i,
               QuantizedGroups& to) {
  const int64_t in_word = layout == WeightLayout::kInt8 ? 4 : 8, words = kGroupColumns / in_word;
  const uint32_t zeros = layout == WeightLayout::kInt8 ? 0x80808080 : 0x88888888;  // Levels of 0.
  const std::byte* const levels = from.bytes.data() + row * from.row_bytes();
  to.scales[i] = from.ScaleOf(row, columns.begin);
  for (int64_t w = 0; w < words; ++w) {
    uint32_t packed = zeros;
    const int64_t word = columns.begin / in_word + w;
    if (w * in_word < columns.count) std::memcpy(&packed, levels + word * sizeof(packed), sizeof(packed));
    to.words[w * kPanelRows + i] = QuantsOfPacked(layout, packed);
  }
}

// By the scales and levels that are stored.
void CopyGroups(WeightLayout layout, const HostMatrix& from, int64_t begin, int64_t end, int64_t column_unit,
                TakeGroups take) {
  const QuantizedCut cut = CutOf(from, column_unit);
  QuantizedGroups groups;
  for (int64_t g = 0; g < cut.panel_groups; ++g) {
    const GroupColumns columns = ColumnsOf(cut, g, from.columns);
    for (int64_t r = begin; r < end; ++r) CopyGroup(layout, from, r, columns, r - begin, groups);
    take(g, groups);
  }
}

}  // namespace

bool QuantizeRows(WeightLayout layout, const HostMatrix& from, int64_t begin, int64_t end, int64_t column_unit,
                  const float* roots, TakeGroups take) {
  const QuantizedCut cut = CutOf(from, column_unit);
  std::vector<float> rows(static_cast<size_t>(kPanelRows * from.columns));
  for (int64_t r = begin; r < end; ++r) RowToFloat32(from, r, rows.data() + (r - begin) * from.columns);
  QuantizedGroups quantized;
  for (int64_t g = 0; g < cut.panel_groups; ++g) {
    const GroupColumns columns = ColumnsOf(cut, g, from.columns);
    float group[kGroupColumns * kPanelRows] = {}, part[kGroupColumns] = {};
    for (int64_t r = 0; r < end - begin; ++r) {
      for (int64_t k = 0; k < columns.count; ++k) {
        group[k * kPanelRows + r] = rows[static_cast<size_t>(r * from.columns + columns.begin + k)];
      }
    }
    if (roots != nullptr) std::copy_n(roots + columns.begin, columns.count, part);
    if (!QuantizeGroups(layout, group, quantized, roots == nullptr ? nullptr : part)) return false;
    take(g, quantized);
  }
  return true;
}

bool GroupsOf(WeightLayout layout, const HostMatrix& from, int64_t begin, int64_t end, int64_t column_unit,
              const float* roots, TakeGroups take) {
  if (PackedLayoutOf(from.type) != layout) return QuantizeRows(layout, from, begin, end, column_unit, roots, take);
  CopyGroups(layout, from, begin, end, column_unit, take);
  return true;
}

std::vector<float> RootsOf(absl::Span<const float> squares) {
  const float largest = squares.empty() ? 0 : *std::max_element(squares.begin(), squares.end());
  std::vector<float> roots;
  if (largest == 0) return roots;
  for (const float square : squares) roots.push_back(std::sqrt(square / largest));
  return roots;
}

WeightLayout PackedLayoutOf(DType type) {
  return type == DType::kInt8 ? WeightLayout::kInt8 : type == DType::kInt4 ? WeightLayout::kInt4 : WeightLayout::kRows;
}

}  // namespace c3po::cpu
