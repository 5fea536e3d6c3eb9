#include "server/model/matrix_product.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <vector>

#include "server/model/cpu/row_operations.h"

namespace c3po {

bool OnCpuKernels(const at::Tensor& x) {
  return x.is_cpu() && x.scalar_type() == at::kFloat && !c10::GradMode::is_enabled();
}

cpu::WeightView WeightsOf(const at::Tensor& w) {
  TORCH_CHECK(w.dim() == 2 && w.is_contiguous() && (w.scalar_type() == at::kFloat || w.scalar_type() == at::kBFloat16),
              "weights must be a contiguous float32 or bfloat16 matrix");
  return {w.const_data_ptr(), w.scalar_type() == at::kBFloat16, w.size(0), w.size(1)};
}

cpu::WeightView WeightsOf(const at::Tensor& matrices, int64_t i) {
  TORCH_CHECK(matrices.dim() == 3 && matrices.is_contiguous(), "matrices must be contiguous");
  const cpu::WeightView all{matrices.const_data_ptr(), matrices.scalar_type() == at::kBFloat16,
                            matrices.size(0) * matrices.size(1), matrices.size(2)};
  return all.Rows(i * matrices.size(1), (i + 1) * matrices.size(1));
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
  if (!OnCpuKernels(x)) return at::linear(x, w);
  const at::Tensor rows = x.stride(1) == 1 ? x : x.contiguous();
  const at::Tensor y = at::empty({x.size(0), w.size(0)}, x.options());
  TORCH_CHECK(x.size(1) == w.size(1), "a product's shapes differ");
  cpu::MultiplyTransposed({{RowsOf(rows), WeightsOf(w), MutableRowsOf(y)}});
  return y;
}

// W's rows in up to four groups that are multiplied side by side, then added: each is read by one thread from end to
// end. How many depends on W alone, and so does the order of a sum.
at::Tensor MatMul(const at::Tensor& a, const at::Tensor& w) {
  if (!OnCpuKernels(a)) return at::matmul(a, w);
  const at::Tensor packed = a.stride(1) == 1 ? a : a.contiguous();
  TORCH_CHECK(a.size(1) == w.size(0), "a product's shapes differ");
  const int64_t rows = a.size(0), n = w.size(0), k = w.size(1), groups = std::clamp<int64_t>(n / 256, 1, 4);
  const at::Tensor parts = at::empty({groups * rows, k}, a.options());
  const cpu::RowsView x = RowsOf(packed);
  const cpu::WeightView weights = WeightsOf(w);
  std::vector<cpu::OuterProduct> products;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t begin = n * g / groups, end = n * (g + 1) / groups;
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

}  // namespace c3po
