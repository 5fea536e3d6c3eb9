#include "server/model/layer_math.h"

#include <ATen/ATen.h>

#include "server/model/cpu/row_operations.h"
#include "server/model/matrix_product.h"

namespace c3po {
namespace {

// The operand as the kernels read it: float32, packed.
at::Tensor Packed(const at::Tensor& x) { return x.to(at::kFloat).contiguous(); }

// Whether `x` [R, ...] is rows that lie packed, one row a stride apart.
bool RowsArePacked(const at::Tensor& x) { return x.dim() >= 2 && x.numel() > 0 && x[0].is_contiguous(); }

}  // namespace

std::vector<float> ToFloats(const at::Tensor& x) {
  const at::Tensor cpu = x.to(at::kCPU, at::kFloat).contiguous();
  return {cpu.const_data_ptr<float>(), cpu.const_data_ptr<float>() + cpu.numel()};
}

at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  if (OnCpuKernels(x) && x.dim() == 2 && RowsArePacked(x)) {
    const at::Tensor y = at::empty(x.sizes(), x.options());
    cpu::RmsNormRows(x.const_data_ptr<float>(), x.stride(0), Packed(weight).const_data_ptr<float>(), eps, x.size(0),
                     x.size(1), y.mutable_data_ptr<float>());
    return y;
  }
  const at::Tensor x32 = x.to(at::kFloat);
  const at::Tensor rstd = at::rsqrt(x32.square().mean(-1, /*keepdim=*/true) + eps);
  return (x32 * rstd).to(x.scalar_type()) * weight;
}

at::Tensor RmsNormBackward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight, double eps) {
  if (OnCpuKernels(x) && OnCpuKernels(dy) && x.dim() == 2 && RowsArePacked(x)) {
    const at::Tensor dx = at::empty(x.sizes(), x.options());
    cpu::RmsNormBackwardRows(Packed(dy).const_data_ptr<float>(), x.const_data_ptr<float>(), x.stride(0),
                             Packed(weight).const_data_ptr<float>(), nullptr, eps, x.size(0), x.size(1),
                             dx.mutable_data_ptr<float>());
    return dx;
  }
  const at::Tensor x32 = x.to(at::kFloat);
  const at::Tensor rstd = at::rsqrt(x32.square().mean(-1, true) + eps);
  const at::Tensor n = x32 * rstd;
  const at::Tensor g = (dy * weight).to(at::kFloat);
  return (rstd * (g - n * (g * n).mean(-1, true))).to(x.scalar_type());
}

RopeTable RopeTable::Make(const ModelConfig& config, at::Device device) {
  const auto options = at::TensorOptions(at::kFloat);
  const at::Tensor exponent = at::arange(0, config.head_dim, 2, options) / config.head_dim;
  const at::Tensor frequency = 1.0 / at::pow(at::Scalar(config.rope_theta), exponent);
  const at::Tensor angle = at::outer(at::arange(config.context_window, options), frequency);
  return {at::cos(angle).to(device), at::sin(angle).to(device)};
}

RopeTable RopeTable::Select(const at::Tensor& positions, at::ScalarType dtype) const {
  return {cos.index_select(0, positions).unsqueeze(1).to(dtype), sin.index_select(0, positions).unsqueeze(1).to(dtype)};
}

at::Tensor Rotate(const at::Tensor& x, const RopeTable& rope, bool inverse) {
  const int64_t half = x.size(-1) / 2;
  if (OnCpuKernels(x) && OnCpuKernels(rope.cos) && RowsArePacked(x)) {
    const at::Tensor y = at::empty(x.sizes(), x.options());
    cpu::RotateRows(x.const_data_ptr<float>(), x.stride(0), rope.cos.const_data_ptr<float>(),
                    rope.sin.const_data_ptr<float>(), inverse, x.size(0), x.size(1), half, y.mutable_data_ptr<float>());
    return y;
  }
  const at::Tensor a = x.narrow(-1, 0, half), b = x.narrow(-1, half, half);
  if (inverse) return at::cat({a * rope.cos + b * rope.sin, b * rope.cos - a * rope.sin}, -1);
  return at::cat({a * rope.cos - b * rope.sin, b * rope.cos + a * rope.sin}, -1);
}

Projections ProjectAttention(const at::Tensor& normed, const LayerWeights& layer, const ModelConfig& config,
                             const RopeTable& rope) {
  const int64_t rows = normed.size(0), head_dim = config.head_dim;
  const int64_t query = config.heads * head_dim, key = config.kv_heads * head_dim;
  Projections out;
  out.raw = MatMulTransposed(normed, layer.qkv);
  at::Tensor q = out.raw.narrow(1, 0, query), k = out.raw.narrow(1, query, key),
             v = out.raw.narrow(1, query + key, key);
  if (config.qk_norm) {
    q = RmsNorm(q, layer.q_norm, config.rms_norm_eps);
    k = RmsNorm(k, layer.k_norm, config.rms_norm_eps);
  }
  if (config.clip_qkv) {
    q = q.clamp(-*config.clip_qkv, *config.clip_qkv);
    k = k.clamp(-*config.clip_qkv, *config.clip_qkv);
    v = v.clamp(-*config.clip_qkv, *config.clip_qkv);
  }
  out.q = Rotate(q.reshape({rows, config.heads, head_dim}), rope);
  out.k = Rotate(k.reshape({rows, config.kv_heads, head_dim}), rope);
  out.v = v.reshape({rows, config.kv_heads, head_dim});
  return out;
}

at::Tensor ProjectAttentionBackward(const at::Tensor& dq, const at::Tensor& dk, const at::Tensor& dv,
                                    const Projections& forward, const LayerWeights& layer, const ModelConfig& config,
                                    const RopeTable& rope) {
  const int64_t rows = dq.size(0), head_dim = config.head_dim;
  const int64_t query = config.heads * head_dim, key = config.kv_heads * head_dim;
  const at::Tensor raw_q = forward.raw.narrow(1, 0, query), raw_k = forward.raw.narrow(1, query, key);
  at::Tensor gq = Rotate(dq, rope, /*inverse=*/true).reshape({rows, query});
  at::Tensor gk = Rotate(dk, rope, /*inverse=*/true).reshape({rows, key});
  at::Tensor gv = dv.reshape({rows, key});
  if (config.clip_qkv) {  // No gradient through a clipped entry.
    const double c = *config.clip_qkv;
    const at::Tensor q = config.qk_norm ? RmsNorm(raw_q, layer.q_norm, config.rms_norm_eps) : raw_q;
    const at::Tensor k = config.qk_norm ? RmsNorm(raw_k, layer.k_norm, config.rms_norm_eps) : raw_k;
    gq = gq * (q.abs() <= c);
    gk = gk * (k.abs() <= c);
    gv = gv * (forward.raw.narrow(1, query + key, key).abs() <= c);
  }
  if (config.qk_norm) {
    gq = RmsNormBackward(gq, raw_q, layer.q_norm, config.rms_norm_eps);
    gk = RmsNormBackward(gk, raw_k, layer.k_norm, config.rms_norm_eps);
  }
  return MatMul(at::cat({gq, gk, gv}, 1), layer.qkv);
}

Mixing MixExperts(const at::Tensor& normed, const LayerWeights& layer, const ModelConfig& config,
                  const LayerRouting& routing) {
  Mixing mixing;
  mixing.logits = MatMulTransposed(normed, layer.router).to(at::kFloat);
  mixing.probabilities = at::softmax(routing.shift.defined() ? mixing.logits + routing.shift : mixing.logits, -1);
  if (routing.weights.defined()) {
    mixing.probabilities = at::where(routing.weights_rows, routing.weights, mixing.probabilities);
  }
  mixing.weights = mixing.probabilities;
  if (config.experts_per_token < config.experts) {
    mixing.selected = std::get<1>(at::topk(mixing.probabilities, config.experts_per_token, -1));
    mixing.selected_mask = at::zeros_like(mixing.probabilities).scatter_(1, mixing.selected, 1.0);
    mixing.weights = mixing.probabilities * mixing.selected_mask;
  }
  if (config.norm_topk_prob) {
    mixing.total = mixing.weights.sum(-1, true);
    mixing.weights = mixing.weights / mixing.total;
  }
  return mixing;
}

at::Tensor MixingBackward(const at::Tensor& dweights, const Mixing& mixing, const ModelConfig& config) {
  at::Tensor dp = dweights;
  if (config.norm_topk_prob) dp = (dp - (dp * mixing.weights).sum(-1, true)) / mixing.total;
  return mixing.selected_mask.defined() ? dp * mixing.selected_mask : dp;
}

at::Tensor SoftmaxBackward(const at::Tensor& dprobabilities, const at::Tensor& probabilities) {
  return probabilities * (dprobabilities - (dprobabilities * probabilities).sum(-1, true));
}

}  // namespace c3po
