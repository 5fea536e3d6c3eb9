#ifndef C3PO_SERVER_COMPUTE_ATEN_ROW_OPERATIONS_H_
#define C3PO_SERVER_COMPUTE_ATEN_ROW_OPERATIONS_H_

// What ATen computes row by row. Everything in this folder's headers but AtenBackend is pure, throws c10::Error on
// misuse, may be called from any thread, and may be differentiated by autograd: callers choose whether they hold a
// c10::InferenceMode. Tensors are in the activations' dtype unless float32 is said.

#include <ATen/core/Tensor.h>

#include "server/compute/aten/rope_tensors.h"
#include "server/model/config/model_config.h"

namespace c3po::aten {

// y = x / sqrt(mean(x^2) + eps) * weight, over the last dimension, the mean in float32.
at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double eps);
// dJ/dx from dJ/dy: with n = x * rstd and g = dy * weight,  dx = rstd * (g - n * mean(g * n)).
at::Tensor RmsNormBackward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight, double eps);

// x: [R, heads, rope_dim]; `rope` of the rows, as RopeTensors::Select gives it. Halves (a, b) become
// (a cos - b sin, b cos + a sin). `inverse` turns back: the transposed rotation, which is also its gradient.
at::Tensor Rotate(const at::Tensor& x, const RopeTensors& rope, bool inverse = false);

// x + residual_multiplier * block, the same bits in place; and dJ/dblock from dJ/d of that sum.
at::Tensor AddBlock(const at::Tensor& x, const at::Tensor& block, const ModelConfig& config);
void AddBlockInPlace(const at::Tensor& x, const at::Tensor& block, const ModelConfig& config);
at::Tensor AddBlockBackward(const at::Tensor& dsum, const ModelConfig& config);

}  // namespace c3po::aten

#endif  // C3PO_SERVER_COMPUTE_ATEN_ROW_OPERATIONS_H_
