#include "server/model/matrix_product.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

namespace c3po {

bool OnCpuKernels(const at::Tensor& x) {
  return x.is_cpu() && x.scalar_type() == at::kFloat && !(c10::GradMode::is_enabled() && x.requires_grad());
}

cpu::WeightView WeightsOf(const at::Tensor& w) {
  TORCH_CHECK(w.dim() == 2 && w.is_contiguous() && (w.scalar_type() == at::kFloat || w.scalar_type() == at::kBFloat16),
              "weights must be a contiguous float32 or bfloat16 matrix");
  return {w.const_data_ptr(), w.scalar_type() == at::kBFloat16, w.size(0), w.size(1)};
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

at::Tensor MatMul(const at::Tensor& a, const at::Tensor& w) {
  if (!OnCpuKernels(a)) return at::matmul(a, w);
  const at::Tensor rows = a.stride(1) == 1 ? a : a.contiguous();
  const at::Tensor y = at::zeros({a.size(0), w.size(1)}, a.options());
  TORCH_CHECK(a.size(1) == w.size(0), "a product's shapes differ");
  cpu::MultiplyAdd({{RowsOf(rows), WeightsOf(w), MutableRowsOf(y)}});
  return y;
}

}  // namespace c3po
