#include "server/compute/aten/row_operations.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

namespace c3po::aten {

at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  if (x.is_cuda()) return at::rms_norm(x, weight.sizes(), weight, eps);  // One kernel.
  const at::Tensor x32 = x.to(at::kFloat);
  const at::Tensor rstd = at::rsqrt(x32.square().mean(-1, /*keepdim=*/true) + eps);
  return (x32 * rstd).to(x.scalar_type()) * weight;
}

at::Tensor RmsNormBackward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight, double eps) {
  const at::Tensor x32 = x.to(at::kFloat);
  const at::Tensor rstd = at::rsqrt(x32.square().mean(-1, true) + eps);
  const at::Tensor n = x32 * rstd;
  const at::Tensor g = (dy * weight).to(at::kFloat);
  return (rstd * (g - n * (g * n).mean(-1, true))).to(x.scalar_type());
}

at::Tensor Rotate(const at::Tensor& x, const RopeTensors& rope, bool inverse) {
  const int64_t half = x.size(-1) / 2;
  const at::Tensor a = x.narrow(-1, 0, half), b = x.narrow(-1, half, half);
  if (!c10::GradMode::is_enabled()) {  // Half as many kernels as below.
    const at::Tensor y = at::empty(x.sizes(), x.options());
    const double sign = inverse ? -1 : 1;
    at::Tensor first = y.narrow(-1, 0, half), second = y.narrow(-1, half, half);
    at::mul_out(first, a, rope.cos).addcmul_(b, rope.sin, -sign);
    at::mul_out(second, b, rope.cos).addcmul_(a, rope.sin, sign);
    return y;
  }
  if (inverse) return at::cat({a * rope.cos + b * rope.sin, b * rope.cos - a * rope.sin}, -1);
  return at::cat({a * rope.cos - b * rope.sin, b * rope.cos + a * rope.sin}, -1);
}

at::Tensor AddBlock(const at::Tensor& x, const at::Tensor& block, const ModelConfig& config) {
  return config.residual_multiplier == 1 ? x + block : x + block * config.residual_multiplier;
}

void AddBlockInPlace(const at::Tensor& x, const at::Tensor& block, const ModelConfig& config) {
  // Not add_'s factor, which would round once instead of twice.
  x.add_(config.residual_multiplier == 1 ? block : block * config.residual_multiplier);
}

at::Tensor AddBlockBackward(const at::Tensor& dsum, const ModelConfig& config) {
  return config.residual_multiplier == 1 ? dsum : dsum * config.residual_multiplier;
}

}  // namespace c3po::aten
