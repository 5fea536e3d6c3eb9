#include "server/model/matrix_product.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <vector>

#include "server/model/cpu/panels.h"
#include "server/model/cpu/row_operations.h"

namespace c3po {

bool OnCpuKernels(const at::Tensor& x) {
  return x.is_cpu() && x.scalar_type() == at::kFloat && !c10::GradMode::is_enabled();
}

namespace {

// Of one matrix.
cpu::WeightLayout LayoutOf(const at::Tensor& w) {
  if (w.dim() == 4) return cpu::WeightLayout::kPairs;
  return w.dim() == 3 ? cpu::WeightLayout::kPanels : cpu::WeightLayout::kRows;
}
bool InPanels(const at::Tensor& w) { return LayoutOf(w) != cpu::WeightLayout::kRows; }

}  // namespace

at::Tensor ToPanels(const at::Tensor& weights, cpu::WeightLayout layout) {
  if (!weights.is_cpu() || !weights.is_contiguous()) return weights;
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

cpu::WeightView WeightsOf(const at::Tensor& matrices, int64_t i) {
  const cpu::WeightView all = WeightsOf(AsOne(matrices));
  const int64_t rows = all.rows / matrices.size(0);
  return all.Rows(i * rows, (i + 1) * rows);
}

cpu::RowsView RowsOf(const at::Tensor& x) {
  TORCH_CHECK(x.dim() == 2 && x.stride(1) == 1, "rows must be contiguous");
  return {x.const_data_ptr<float>(), x.stride(0), x.size(0), nullptr};
}

cpu::MutableRowsView MutableRowsOf(const at::Tensor& y) {
  TORCH_CHECK(y.dim() == 2 && y.stride(1) == 1, "rows must be contiguous");
  return {y.mutable_data_ptr<float>(), y.stride(0), nullptr};
}

at::Tensor MatMulTransposed(const at::Tensor& x, const at::Tensor& w) {
  if (!OnCpuKernels(x)) return at::linear(x, RowMajor(w));
  const at::Tensor rows = x.stride(1) == 1 ? x : x.contiguous();
  const cpu::WeightView weights = WeightsOf(w);
  TORCH_CHECK(x.size(1) == weights.columns, "a product's shapes differ");
  const at::Tensor y = at::empty({x.size(0), weights.rows}, x.options());
  cpu::MultiplyTransposed({{RowsOf(rows), weights, MutableRowsOf(y)}});
  return y;
}

// W's rows in up to four groups that are multiplied side by side, then added: each is read by one thread from end to
// end. How many depends on W alone, and so does the order of a sum.
at::Tensor MatMul(const at::Tensor& a, const at::Tensor& w) {
  if (!OnCpuKernels(a)) return at::matmul(a, RowMajor(w));
  const at::Tensor packed = a.stride(1) == 1 ? a : a.contiguous();
  const cpu::WeightView weights = WeightsOf(w);
  const int64_t rows = a.size(0), n = weights.rows, k = weights.columns, groups = std::clamp<int64_t>(n / 256, 1, 4);
  TORCH_CHECK(a.size(1) == n, "a product's shapes differ");
  const at::Tensor parts = at::empty({groups * rows, k}, a.options());
  const cpu::RowsView x = RowsOf(packed);
  const int64_t unit = weights.in_panels() ? cpu::kPanelRows : 1, units = n / unit;
  std::vector<cpu::OuterProduct> products;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t begin = units * g / groups * unit, end = units * (g + 1) / groups * unit;
    products.push_back({{x.data + begin, x.stride, rows, nullptr},
                        weights.Rows(begin, end),
                        {parts.mutable_data_ptr<float>() + g * rows * k, k, nullptr}});
  }
  cpu::Multiply(products);
  if (groups == 1) return parts;
  std::vector<int64_t> index(static_cast<size_t>(rows * groups));
  for (int64_t i = 0; i < rows * groups; ++i) index[i] = i % groups * rows + i / groups;
  const at::Tensor y = at::empty({rows, k}, a.options());
  cpu::SumRows(parts.const_data_ptr<float>(), index.data(), rows, groups, k, y.mutable_data_ptr<float>());
  return y;
}

bool CanMultiplyGroups(const at::Tensor& x, int64_t out) {
  constexpr int64_t kWord = 8;  // of 16 bytes: what a row's stride must be a multiple of
  return x.is_cuda() && x.scalar_type() == at::kBFloat16 && x.size(1) % kWord == 0 && out % kWord == 0;
}

at::Tensor MultiplyGroups(const at::Tensor& x, const at::Tensor& matrices, const at::Tensor& ends) {
  return at::_grouped_mm(x, matrices, ends);
}

at::Tensor MultiplyEachGroup(const at::Tensor& x, const at::Tensor& matrices, const at::Tensor& ends) {
  const at::Tensor host = ends.to(at::kCPU);
  const auto* end = host.const_data_ptr<int32_t>();
  std::vector<at::Tensor> parts;
  int64_t begin = 0;
  for (int64_t g = 0; g < host.numel(); begin = end[g++]) {
    if (begin < end[g]) parts.push_back(at::matmul(x.narrow(0, begin, end[g] - begin), matrices[g]));
  }
  return parts.size() == 1 ? parts[0] : at::cat(parts);
}

}  // namespace c3po
