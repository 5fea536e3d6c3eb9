#ifndef C3PO_SERVER_MODEL_MATRIX_PRODUCT_H_
#define C3PO_SERVER_MODEL_MATRIX_PRODUCT_H_

#include <ATen/core/Tensor.h>

#include "server/model/cpu/matrix_products.h"

namespace c3po {

// Whether server/model/cpu computes on `x`: float32 on the CPU, where autograd is off (an InferenceMode). What it does
// not take goes to ATen.
bool OnCpuKernels(const at::Tensor& x);

// Weights [rows, columns] are a matrix of that shape or, for the CPU's kernels, in panels: [rows / 16, columns, 16], or
// [rows / 16, columns, 8, 2] in panels of pairs (server/model/cpu/panels.h); several of them have one dimension more,
// in front. All functions here take all.

// Row-major weights, one matrix or several, in panels, rearranged where they lie; pairs that cannot be, float32 or an
// odd number of columns, in the others. What cannot be in panels is returned as it is: weights that are not on the CPU
// or not contiguous, or whose rows are no multiple of 16.
at::Tensor ToPanels(const at::Tensor& weights, cpu::WeightLayout layout);
// [ids.size, columns], row-major, on the weights' device.
at::Tensor SelectRows(const at::Tensor& w, const at::Tensor& ids);
// All rows, as SelectRows gives them; row-major weights as they are.
at::Tensor RowMajor(const at::Tensor& w);
// Columns [begin, begin + count) of all rows, likewise.
at::Tensor SelectColumns(const at::Tensor& w, int64_t begin, int64_t count);
// Several matrices [n, ...] as one, whose rows are theirs.
at::Tensor AsOne(const at::Tensor& matrices);

// Views of contiguous weights; the tensor outlives the view. Weights are float32 or bfloat16.
cpu::WeightView WeightsOf(const at::Tensor& w);
cpu::WeightView WeightsOf(const at::Tensor& matrices, int64_t i);  // one of several
cpu::RowsView RowsOf(const at::Tensor& x);
cpu::MutableRowsView MutableRowsOf(const at::Tensor& y);

// x w^T: x [R, k], w [n, k] -> [R, n]. On the CPU's kernels a row's result is bitwise the same whatever rows are beside
// it.
at::Tensor MatMulTransposed(const at::Tensor& x, const at::Tensor& w);
// a w: a [R, n], w [n, k] -> [R, k]. Likewise.
at::Tensor MatMul(const at::Tensor& a, const at::Tensor& w);

// Rows x [B, in] in n groups, one after the other, `ends` (int32 [n]) where each ends, times the
// group's of matrices [n, in, out], each row- or column-major -> [B, out]. By ATen.

// All groups as one product, for which nobody waits on the device.
// For what it takes: bfloat16 on a GPU, `in` and `out` multiples of 8.
bool CanMultiplyGroups(const at::Tensor& x, int64_t out);
at::Tensor MultiplyGroups(const at::Tensor& x, const at::Tensor& matrices, const at::Tensor& ends);
// One group after the other, those without rows left out.
at::Tensor MultiplyEachGroup(const at::Tensor& x, const at::Tensor& matrices, const at::Tensor& ends);

}  // namespace c3po

#endif  // C3PO_SERVER_MODEL_MATRIX_PRODUCT_H_
