#include "server/compute/weight_tensors.h"

#include <ATen/ATen.h>

#include <vector>

#include "server/compute/cpu/panels.h"

namespace c3po {

namespace {

// Of one matrix.
cpu::WeightLayout LayoutOf(const at::Tensor& w) {
  if (w.dim() == 4) return cpu::WeightLayout::kPairs;
  return w.dim() == 3 ? cpu::WeightLayout::kPanels : cpu::WeightLayout::kRows;
}
bool InPanels(const at::Tensor& w) { return LayoutOf(w) != cpu::WeightLayout::kRows; }

}  // namespace

at::Tensor ToPanels(const at::Tensor& weights, cpu::WeightLayout layout) {
  if (!weights.is_contiguous()) return weights;
  std::vector<int64_t> shape = weights.sizes().vec();
  int64_t& rows = shape[shape.size() - 2];
  if (rows % cpu::kPanelRows != 0) return weights;
  const int64_t columns = shape.back();
  const bool bfloat16 = weights.scalar_type() == at::kBFloat16;
  if (!bfloat16 || columns % 2 != 0) layout = cpu::WeightLayout::kPanels;
  cpu::PackPanels(weights.mutable_data_ptr(), layout, bfloat16, weights.numel() / columns, columns);
  rows /= cpu::kPanelRows;
  if (layout == cpu::WeightLayout::kPairs) {
    shape.insert(shape.end(), {cpu::kPanelRows / 2, 2});
  } else {
    shape.push_back(cpu::kPanelRows);
  }
  return weights.view(shape);
}

at::Tensor SelectRows(const at::Tensor& w, const at::Tensor& ids) {
  if (!InPanels(w)) return w.index_select(0, ids);
  const bool bfloat16 = w.scalar_type() == at::kBFloat16;
  const int64_t count = ids.numel(), columns = w.size(1), *id = ids.const_data_ptr<int64_t>();
  const at::Tensor rows = at::empty({count, columns}, w.options());
  auto* out = static_cast<char*>(rows.mutable_data_ptr());
  for (int64_t i = 0; i < count; ++i) {
    TORCH_CHECK(id[i] >= 0 && id[i] < w.size(0) * cpu::kPanelRows, "no such row of the weights");
    cpu::CopyPanelRow(w.const_data_ptr(), LayoutOf(w), bfloat16, columns, id[i], out + i * columns * w.element_size());
  }
  return rows;
}

at::Tensor RowMajor(const at::Tensor& w) {
  return InPanels(w) ? SelectRows(w, at::arange(w.size(0) * cpu::kPanelRows, at::kLong)) : w;
}

at::Tensor AsOne(const at::Tensor& matrices) { return matrices.flatten(0, 1); }

at::Tensor SelectColumns(const at::Tensor& w, int64_t begin, int64_t count) {
  return RowMajor(w).narrow(1, begin, count);
}

cpu::WeightView WeightsOf(const at::Tensor& w) {
  TORCH_CHECK((w.dim() == 2 || InPanels(w)) && w.is_contiguous() &&
                  (w.scalar_type() == at::kFloat || w.scalar_type() == at::kBFloat16),
              "weights must be a contiguous float32 or bfloat16 matrix");
  return {w.const_data_ptr(), w.scalar_type() == at::kBFloat16, w.numel() / w.size(1), w.size(1), LayoutOf(w)};
}

}  // namespace c3po
