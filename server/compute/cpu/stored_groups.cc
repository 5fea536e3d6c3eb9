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

// By the scales and levels that are stored.
template <WeightLayout kLayout>
void CopyGroups(const HostMatrix& from, int64_t begin, int64_t end, int64_t column_unit, TakeGroups take) {
  constexpr int64_t kInWord = kLayout == WeightLayout::kInt8 ? 4 : 8, kWords = kGroupColumns / kInWord;
  constexpr uint32_t kZeros = kLayout == WeightLayout::kInt8 ? 0x80808080 : 0x88888888;  // Levels of 0.
  const QuantizedCut cut = CutOf(from, column_unit);
  const int64_t row_bytes = from.row_bytes(), row_scale_bytes = from.row_scale_bytes();
  QuantizedGroups groups;
  for (int64_t g = 0; g < cut.panel_groups; ++g) {
    const GroupColumns columns = ColumnsOf(cut, g, from.columns);
    const int64_t stored = (columns.count + kInWord - 1) / kInWord;  // words
    const std::byte* levels = from.bytes.data() + begin * row_bytes + columns.begin / kInWord * 4;
    const std::byte* scale = from.scales.data() + begin * row_scale_bytes + columns.begin / from.scale_columns * 2;
    for (int64_t i = 0; i < end - begin; ++i, levels += row_bytes, scale += row_scale_bytes) {
      std::memcpy(groups.scales + i, scale, sizeof(*groups.scales));
      uint32_t packed[kWords];
      std::fill_n(packed, kWords, kZeros);
      if (stored == kWords) {
        std::memcpy(packed, levels, sizeof(packed));  // Of a size known here, as most are.
      } else {
        std::memcpy(packed, levels, static_cast<size_t>(stored) * sizeof(*packed));
      }
      for (int64_t w = 0; w < kWords; ++w) groups.words[w * kPanelRows + i] = QuantsOfPacked(kLayout, packed[w]);
    }
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
  if (layout == WeightLayout::kInt8) {
    CopyGroups<WeightLayout::kInt8>(from, begin, end, column_unit, take);
  } else {
    CopyGroups<WeightLayout::kInt4>(from, begin, end, column_unit, take);
  }
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
