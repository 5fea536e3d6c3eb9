#include "server/model/layer_math.h"

#include <ATen/ATen.h>

#include "server/model/matrix_product.h"

namespace c3po {
namespace {

at::Tensor Silu(const at::Tensor& x) { return at::silu(x); }

// d silu(x) / dx = s (1 + x (1 - s)), s = sigmoid(x).
at::Tensor SiluGradient(const at::Tensor& x) {
  const at::Tensor s = at::sigmoid(x);
  return s * (1 + x * (1 - s));
}

// The rows of each expert that any row selects, ascending by expert.
std::vector<std::pair<int, at::Tensor>> RowsOfExperts(const at::Tensor& selected, int experts) {
  const at::Tensor ids = selected.to(at::kCPU).contiguous();
  const int64_t rows = ids.size(0), k = ids.size(1);
  const int64_t* id = ids.const_data_ptr<int64_t>();
  std::vector<std::vector<int64_t>> lists(experts);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < k; ++j) lists[id[r * k + j]].push_back(r);
  }
  std::vector<std::pair<int, at::Tensor>> result;
  for (int e = 0; e < experts; ++e) {
    if (lists[e].empty()) continue;
    result.emplace_back(e, at::tensor(lists[e], at::kLong).to(selected.device()));
  }
  return result;
}

bool AllExpertsAtOnce(const Mixing& mixing) { return !mixing.selected.defined(); }

}  // namespace

std::vector<float> ToFloats(const at::Tensor& x) {
  const at::Tensor cpu = x.to(at::kCPU, at::kFloat).contiguous();
  return {cpu.const_data_ptr<float>(), cpu.const_data_ptr<float>() + cpu.numel()};
}

at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double eps) {
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

at::Tensor RunExperts(const at::Tensor& normed, const Mixing& mixing, const LayerWeights& layer,
                      std::vector<ExpertTape>* tape) {
  const int64_t rows = normed.size(0), hidden = normed.size(1);
  const int64_t experts = layer.down.size(0), neurons = layer.down.size(1);
  const at::Tensor weights = mixing.weights.to(normed.scalar_type());
  if (AllExpertsAtOnce(mixing)) {
    ExpertTape all;
    const at::Tensor gate_up =
        MatMulTransposed(normed, layer.gate_up.view({experts * 2 * neurons, hidden})).view({rows, experts, 2, neurons});
    all.gate = gate_up.select(2, 0);
    all.up = gate_up.select(2, 1);
    all.activation = Silu(all.gate) * all.up;
    const at::Tensor scaled = all.activation * weights.unsqueeze(-1);
    const at::Tensor out =
        MatMul(scaled.reshape({rows, experts * neurons}), layer.down.view({experts * neurons, hidden}));
    if (tape) tape->push_back(std::move(all));
    return out;
  }
  at::Tensor out = at::zeros_like(normed);
  for (auto& [expert, row_ids] : RowsOfExperts(mixing.selected, static_cast<int>(experts))) {
    const bool every_row = row_ids.size(0) == rows;
    const at::Tensor input = every_row ? normed : normed.index_select(0, row_ids);
    const at::Tensor gate_up = MatMulTransposed(input, layer.gate_up.select(0, expert));
    ExpertTape one{expert, row_ids, gate_up.narrow(1, 0, neurons), gate_up.narrow(1, neurons, neurons), {}};
    one.activation = Silu(one.gate) * one.up;
    const at::Tensor weight = weights.select(1, expert).index_select(0, row_ids).unsqueeze(1);
    const at::Tensor part = MatMul(one.activation * weight, layer.down.select(0, expert));
    if (every_row) {
      out.add_(part);
    } else {
      out.index_add_(0, row_ids, part);
    }
    if (tape) tape->push_back(std::move(one));
  }
  return out;
}

at::Tensor ExpertsBackward(const at::Tensor& doutput, const at::Tensor& normed, const Mixing& mixing,
                           const LayerWeights& layer, const std::vector<ExpertTape>& tape, at::Tensor& dweights) {
  const int64_t rows = normed.size(0), hidden = normed.size(1);
  const int64_t experts = layer.down.size(0), neurons = layer.down.size(1);
  const at::Tensor weights = mixing.weights.to(normed.scalar_type());
  if (AllExpertsAtOnce(mixing)) {
    const ExpertTape& all = tape.front();
    // t = dJ/d(weighted activation): <doutput, Expert_e(h)> = <t_e, activation_e>, so no expert output is formed.
    const at::Tensor t =
        MatMulTransposed(doutput, layer.down.view({experts * neurons, hidden})).view({rows, experts, neurons});
    dweights = (t * all.activation).to(at::kFloat).sum(-1);
    const at::Tensor dactivation = t * weights.unsqueeze(-1);
    const at::Tensor dgate = dactivation * all.up * SiluGradient(all.gate);
    const at::Tensor dup = dactivation * Silu(all.gate);
    const at::Tensor dgate_up = at::stack({dgate, dup}, 2).view({rows, experts * 2 * neurons});
    return MatMul(dgate_up, layer.gate_up.view({experts * 2 * neurons, hidden}));
  }
  dweights = at::zeros_like(mixing.weights);
  at::Tensor dnormed = at::zeros_like(normed);
  for (const ExpertTape& one : tape) {
    const at::Tensor t = MatMulTransposed(doutput.index_select(0, one.rows), layer.down.select(0, one.expert));
    dweights.select(1, one.expert).index_copy_(0, one.rows, (t * one.activation).to(at::kFloat).sum(-1));
    const at::Tensor dactivation = t * weights.select(1, one.expert).index_select(0, one.rows).unsqueeze(1);
    const at::Tensor dgate = dactivation * one.up * SiluGradient(one.gate);
    const at::Tensor dup = dactivation * Silu(one.gate);
    dnormed.index_add_(0, one.rows, MatMul(at::cat({dgate, dup}, 1), layer.gate_up.select(0, one.expert)));
  }
  return dnormed;
}

at::Tensor RunOneExpert(const at::Tensor& normed, const LayerWeights& layer, int expert) {
  const int64_t neurons = layer.down.size(1);
  const at::Tensor gate_up = MatMulTransposed(normed, layer.gate_up.select(0, expert));
  const at::Tensor activation = Silu(gate_up.narrow(1, 0, neurons)) * gate_up.narrow(1, neurons, neurons);
  return MatMul(activation, layer.down.select(0, expert));
}

}  // namespace c3po
