#ifndef C3PO_SERVER_COMPUTE_ATEN_PRODUCTS_H_
#define C3PO_SERVER_COMPUTE_ATEN_PRODUCTS_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "server/compute/aten/aten_weights.h"

namespace c3po::aten {

// Products with weights. Those of another dtype than x are copied for the product: on the CPU only, where ATen is an
// oracle.

// x w^T: x [R, k], w [n, k] -> [R, n].
at::Tensor MatMulTransposed(const at::Tensor& x, const at::Tensor& w);
// a w: a [R, n], w [n, k] -> [R, k].
at::Tensor MatMul(const at::Tensor& a, const at::Tensor& w);
// x w^T plus a bias of w's rows, where there is one.
at::Tensor Project(const at::Tensor& x, const at::Tensor& w, const at::Tensor& bias);

// A layer's networks, in x's dtype.
at::Tensor GateUpOf(const ExpertWeights& networks, const at::Tensor& x);  // [n, 2f, d]
at::Tensor DownOf(const ExpertWeights& networks, const at::Tensor& x);    // [d, n, f]

// Rows x [B, in] in n groups, one after the other, `ends` (int32 [n]) where each ends, times the
// group's of matrices [n, in, out], each row- or column-major -> [B, out].

// All groups as one product, for which nobody waits on the device.
// For what it takes: bfloat16 on a GPU, `in` and `out` multiples of 8.
bool CanMultiplyGroups(const at::Tensor& x, int64_t out);
at::Tensor MultiplyGroups(const at::Tensor& x, const at::Tensor& matrices, const at::Tensor& ends);
// One group after the other, those without rows left out. Waits for `ends`.
at::Tensor MultiplyEachGroup(const at::Tensor& x, const at::Tensor& matrices, const at::Tensor& ends);

}  // namespace c3po::aten

#endif  // C3PO_SERVER_COMPUTE_ATEN_PRODUCTS_H_
