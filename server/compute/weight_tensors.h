#ifndef C3PO_SERVER_COMPUTE_WEIGHT_TENSORS_H_
#define C3PO_SERVER_COMPUTE_WEIGHT_TENSORS_H_

#include <ATen/core/Tensor.h>

#include "server/compute/cpu/matrix_products.h"

namespace c3po {

// Weights [rows, columns] are a matrix of that shape or, for the CPU's kernels, in panels: [rows / 16, columns, 16], or
// [rows / 16, columns, 8, 2] in panels of pairs (server/compute/cpu/panels.h); several of them have one dimension more,
// in front. All functions here take all.

// Row-major weights on the CPU, one matrix or several, in panels, rearranged where they lie; pairs that cannot be,
// float32 or an odd number of columns, in the others. What cannot be in panels is returned as it is: weights that are
// not contiguous, or whose rows are no multiple of 16.
at::Tensor ToPanels(const at::Tensor& weights, cpu::WeightLayout layout);
// [ids.size, columns], row-major, on the weights' device.
at::Tensor SelectRows(const at::Tensor& w, const at::Tensor& ids);
// All rows, as SelectRows gives them; row-major weights as they are.
at::Tensor RowMajor(const at::Tensor& w);
// Columns [begin, begin + count) of all rows, likewise.
at::Tensor SelectColumns(const at::Tensor& w, int64_t begin, int64_t count);
// Several matrices [n, ...] as one, whose rows are theirs.
at::Tensor AsOne(const at::Tensor& matrices);

// A view of contiguous weights, float32 or bfloat16; the tensor outlives it.
cpu::WeightView WeightsOf(const at::Tensor& w);

}  // namespace c3po

#endif  // C3PO_SERVER_COMPUTE_WEIGHT_TENSORS_H_
