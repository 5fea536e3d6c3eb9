#ifndef C3PO_TESTS_SERVER_MODEL_REFERENCE_MODEL_H_
#define C3PO_TESTS_SERVER_MODEL_REFERENCE_MODEL_H_

#include <ATen/ATen.h>

#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "server/model/matrix_product.h"
#include "server/model/moe_model.h"

namespace c3po {

// The slow oracle: the whole model on one sequence in double (or float) precision, every layer and position recomputed,
// one expert after the other, differentiable by autograd. It shares the loaded weights with the server's model and
// nothing else.
class ReferenceModel {
 public:
  explicit ReferenceModel(const MoeModel& model, at::ScalarType dtype = at::kDouble)
      : config_(model.config()),
        dtype_(dtype),
        cos_(model.rope().cos.to(at::kCPU, dtype).clone()),
        sin_(model.rope().sin.to(at::kCPU, dtype).clone()) {
    const auto to_double = [this](const at::Tensor& x) { return x.defined() ? x.to(at::kCPU, dtype_).clone() : x; };
    const auto matrix = [&](const at::Tensor& x) { return x.defined() ? to_double(RowMajor(x)) : x; };
    embedding_ = matrix(model.weights().embedding);
    final_norm_ = to_double(model.weights().final_norm);
    lm_head_ = matrix(model.weights().lm_head);
    for (LayerWeights w : model.weights().layers) {
      for (at::Tensor* x : {&w.attention_norm, &w.q_norm, &w.k_norm, &w.moe_norm, &w.shared_gate, &w.qkv_bias,
                            &w.output_bias, &w.query_latent_norm, &w.kv_latent_norm}) {
        *x = to_double(*x);
      }
      for (at::Tensor* x :
           {&w.qkv, &w.output, &w.router, &w.query_expand, &w.kv_expand, &w.experts.down, &w.shared.down}) {
        *x = matrix(*x);
      }
      for (at::Tensor* x : {&w.experts.gate_up, &w.shared.gate_up}) {
        if (x->defined()) *x = matrix(AsOne(*x)).view({x->size(0), -1, x->size(2)});
      }
      layers_.push_back(std::move(w));
    }
  }

  // Values (the oracle's dtype, [layers.size(), E], may require grad) of MoE layers, applied at the marked positions.
  struct Override {
    bool is_shift = false;
    std::vector<int> layers;
    at::Tensor values;
    std::vector<bool> positions;
  };

  // Log-probabilities [tokens, V].
  at::Tensor LogProbabilities(const std::vector<int32_t>& tokens, const std::optional<Override>& override_) const {
    const auto n = static_cast<int64_t>(tokens.size());
    at::Tensor x =
        config_.embedding_multiplier *
        embedding_.index_select(0, at::tensor(std::vector<int64_t>(tokens.begin(), tokens.end()), at::kLong));
    int moe = 0;
    for (int l = 0; l < config_.layers; ++l) {
      const LayerWeights& w = layers_[l];
      x = x + config_.residual_multiplier * Attention(w, Norm(x, w.attention_norm), n);
      const at::Tensor h = Norm(x, w.moe_norm);
      at::Tensor out = at::zeros_like(x);
      if (w.router.defined()) out = out + Experts(w, h, moe++, override_, n);
      if (w.shared.down.defined()) {
        const at::Tensor shared = Network(w.shared, 0, h);
        out = out + (w.shared_gate.defined() ? at::sigmoid(at::matmul(h, w.shared_gate.t())) * shared : shared);
      }
      x = x + config_.residual_multiplier * out;
    }
    return at::log_softmax(at::matmul(Norm(x, final_norm_), lm_head_.t()) / config_.logits_divisor, -1);
  }

 private:
  at::Tensor Norm(const at::Tensor& x, const at::Tensor& weight) const { return Norm(x, weight, config_.rms_norm_eps); }
  static at::Tensor Norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
    return x / at::sqrt((x * x).mean(-1, true) + eps) * weight;
  }

  at::Tensor Rope(const at::Tensor& x) const {  // [n, heads, head_dim]: the last rope_dim entries turn
    const int64_t n = x.size(0), plain = x.size(2) - config_.rope_dim, half = config_.rope_dim / 2;
    at::Tensor cos = cos_.narrow(0, 0, n).unsqueeze(1), sin = sin_.narrow(0, 0, n).unsqueeze(1);
    if (config_.rope_scaling.type == RopeScaling::Type::kNone) {
      const auto options = at::TensorOptions(dtype_);
      const at::Tensor frequency = at::pow(at::Scalar(config_.rope_theta), -at::arange(half, options) / half);
      const at::Tensor angle = at::outer(at::arange(n, options), frequency).unsqueeze(1);
      cos = angle.cos(), sin = angle.sin();
    }
    const at::Tensor a = x.narrow(2, plain, half), b = x.narrow(2, plain + half, half);
    return at::cat({x.narrow(2, 0, plain), a * cos - b * sin, b * cos + a * sin}, 2);
  }

  struct Heads {
    at::Tensor q, k, v;  // [n, heads, dim]
  };

  Heads Project(const LayerWeights& w, const at::Tensor& h, int64_t n) const {
    const int64_t dim = config_.head_dim, query = config_.heads * dim, key = config_.kv_heads * dim;
    at::Tensor qkv = at::matmul(h, w.qkv.t());
    if (w.qkv_bias.defined()) qkv = qkv + w.qkv_bias;
    at::Tensor q = qkv.narrow(1, 0, query), k = qkv.narrow(1, query, key), v = qkv.narrow(1, query + key, key);
    if (config_.qk_norm == ModelConfig::QkNorm::kWhole) {
      q = Norm(q, w.q_norm);
      k = Norm(k, w.k_norm);
    }
    if (config_.clip_qkv) {
      q = q.clamp(-*config_.clip_qkv, *config_.clip_qkv);
      k = k.clamp(-*config_.clip_qkv, *config_.clip_qkv);
      v = v.clamp(-*config_.clip_qkv, *config_.clip_qkv);
    }
    q = q.reshape({n, config_.heads, dim});
    k = k.reshape({n, config_.kv_heads, dim});
    if (config_.qk_norm == ModelConfig::QkNorm::kPerHead) {
      q = Norm(q, w.q_norm);
      k = Norm(k, w.k_norm);
    }
    return {Rope(q), Rope(k), v.reshape({n, config_.kv_heads, dim})};
  }

  Heads ProjectLatent(const LayerWeights& w, const at::Tensor& h, int64_t n) const {
    const LatentAttention& latent = *config_.latent;
    const int64_t heads = config_.heads, plain = latent.plain_dim, rope = config_.rope_dim;
    at::Tensor raw = at::matmul(h, w.qkv.t());
    if (w.qkv_bias.defined()) raw = raw + w.qkv_bias;
    const int64_t first = raw.size(1) - latent.kv_rank - rope;
    at::Tensor q = raw.narrow(1, 0, first);
    if (latent.query_rank > 0) q = at::matmul(Norm(q, w.query_latent_norm, 1e-6), w.query_expand.t());
    const at::Tensor kv =
        at::matmul(Norm(raw.narrow(1, first, latent.kv_rank), w.kv_latent_norm, 1e-6), w.kv_expand.t())
            .reshape({n, heads, plain + config_.value_dim});
    const at::Tensor key = Rope(raw.narrow(1, first + latent.kv_rank, rope).reshape({n, 1, rope}));
    return {Rope(q.reshape({n, heads, plain + rope})),
            at::cat({kv.narrow(2, 0, plain), key.expand({n, heads, rope})}, 2), kv.narrow(2, plain, config_.value_dim)};
  }

  at::Tensor Attention(const LayerWeights& w, const at::Tensor& h, int64_t n) const {
    const auto [q, k, v] = config_.latent ? ProjectLatent(w, h, n) : Project(w, h, n);
    const at::Tensor future = at::ones({n, n}, at::kBool).triu(1);
    std::vector<at::Tensor> heads;
    for (int head = 0; head < config_.heads; ++head) {
      const int shared = head / (config_.heads / config_.kv_heads);
      const at::Tensor scores = at::matmul(q.select(1, head), k.select(1, shared).t()) * config_.attention_scale;
      heads.push_back(at::matmul(at::softmax(scores.masked_fill(future, -std::numeric_limits<double>::infinity()), -1),
                                 v.select(1, shared)));
    }
    const at::Tensor out = at::matmul(at::cat(heads, 1), w.output.t());
    return w.output_bias.defined() ? out + w.output_bias : out;
  }

  // Network e at h [..., d].
  static at::Tensor Network(const ExpertWeights& w, int64_t e, const at::Tensor& h) {
    const int64_t f = w.neurons();
    const at::Tensor gate = at::matmul(h, w.gate_up[e].narrow(0, 0, f).t());
    const at::Tensor up = at::matmul(h, w.gate_up[e].narrow(0, f, f).t());
    return at::matmul(gate * at::sigmoid(gate) * up, w.down.narrow(1, e * f, f).t());
  }

  // The top k_e entries of p [E], in the leading groups where there are groups.
  at::Tensor Choose(const at::Tensor& p) const {
    if (config_.groups_per_token == config_.expert_groups) return std::get<1>(p.topk(config_.experts_per_token));
    const at::Tensor groups = p.detach().reshape({config_.expert_groups, -1});
    const at::Tensor best = std::get<1>(std::get<0>(groups.max(1)).topk(config_.groups_per_token));
    at::Tensor open = at::full_like(groups, -1);
    open.index_copy_(0, best, groups.index_select(0, best));
    return std::get<1>(open.flatten().topk(config_.experts_per_token));
  }

  at::Tensor Experts(const LayerWeights& w, const at::Tensor& h, int layer, const std::optional<Override>& override_,
                     int64_t n) const {
    at::Tensor logits = at::matmul(h, w.router.t());
    int row = -1;
    if (override_) {
      for (size_t i = 0; i < override_->layers.size(); ++i) {
        if (override_->layers[i] == layer) row = static_cast<int>(i);
      }
    }
    std::vector<at::Tensor> rows;
    for (int64_t t = 0; t < n; ++t) {
      const bool here = row >= 0 && override_->positions[t];
      at::Tensor p = at::softmax(here && override_->is_shift ? logits[t] + override_->values[row] : logits[t], -1);
      if (here && !override_->is_shift) p = override_->values[row];
      const at::Tensor top = Choose(p);
      at::Tensor weights = p.index_select(0, top);
      if (config_.norm_topk_prob) weights = weights / weights.sum();
      weights = weights * config_.routed_scaling_factor;
      at::Tensor sum = at::zeros({config_.hidden_size}, dtype_);
      for (int64_t j = 0; j < top.size(0); ++j) {
        sum = sum + weights[j] * Network(w.experts, top[j].item<int64_t>(), h[t]);
      }
      rows.push_back(sum);
    }
    return at::stack(rows);
  }

  const ModelConfig config_;
  const at::ScalarType dtype_;
  const at::Tensor cos_, sin_;  // Read where positions are stretched; goldens hold that formula.
  at::Tensor embedding_, final_norm_, lm_head_;
  std::vector<LayerWeights> layers_;
};

}  // namespace c3po

#endif  // C3PO_TESTS_SERVER_MODEL_REFERENCE_MODEL_H_
