#ifndef C3PO_SERVER_MODEL_MATRIX_PRODUCT_H_
#define C3PO_SERVER_MODEL_MATRIX_PRODUCT_H_

#include <ATen/core/Tensor.h>

#include "server/model/cpu/matrix_products.h"

namespace c3po {

// Whether server/model/cpu computes on `x`: float32 on the CPU, where autograd is off (an InferenceMode). What it does
// not take goes to ATen.
bool OnCpuKernels(const at::Tensor& x);

// Views of a contiguous matrix [rows, columns]; the tensor outlives the view. Weights are float32 or bfloat16.
cpu::WeightView WeightsOf(const at::Tensor& w);
cpu::WeightView WeightsOf(const at::Tensor& matrices, int64_t i);  // one of [count, rows, columns]
cpu::RowsView RowsOf(const at::Tensor& x);
cpu::MutableRowsView MutableRowsOf(const at::Tensor& y);

// x w^T: x [R, k], w [n, k] -> [R, n]. On the CPU a row's result is bitwise the same whatever rows are beside it.
at::Tensor MatMulTransposed(const at::Tensor& x, const at::Tensor& w);
// a w: a [R, n], w [n, k] -> [R, k]. Likewise.
at::Tensor MatMul(const at::Tensor& a, const at::Tensor& w);

}  // namespace c3po

#endif  // C3PO_SERVER_MODEL_MATRIX_PRODUCT_H_
