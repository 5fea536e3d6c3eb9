#ifndef C3PO_TESTS_SERVER_MODEL_REFERENCE_MODEL_H_
#define C3PO_TESTS_SERVER_MODEL_REFERENCE_MODEL_H_

#include <ATen/ATen.h>

#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "server/model/moe_model.h"

namespace c3po {

// The slow oracle: the whole model on one sequence in double (or float) precision, every layer and position recomputed,
// one expert after the other, differentiable by autograd. It shares the loaded weights with the server's model and
// nothing else.
class ReferenceModel {
 public:
  explicit ReferenceModel(const MoeModel& model, at::ScalarType dtype = at::kDouble)
      : config_(model.config()), dtype_(dtype) {
    const auto to_double = [this](const at::Tensor& x) { return x.defined() ? x.to(at::kCPU, dtype_).clone() : x; };
    embedding_ = to_double(model.weights().embedding);
    final_norm_ = to_double(model.weights().final_norm);
    lm_head_ = to_double(model.weights().lm_head);
    for (const LayerWeights& w : model.weights().layers) {
      layers_.push_back({to_double(w.attention_norm), to_double(w.qkv), to_double(w.q_norm), to_double(w.k_norm),
                         to_double(w.output), to_double(w.moe_norm), to_double(w.router), to_double(w.gate_up),
                         to_double(w.down)});
    }
  }

  // Values (the oracle's dtype, [layers.size(), E], may require grad) applied at the marked positions.
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
        embedding_.index_select(0, at::tensor(std::vector<int64_t>(tokens.begin(), tokens.end()), at::kLong));
    for (int l = 0; l < config_.layers; ++l) {
      x = x + Attention(layers_[l], Norm(x, layers_[l].attention_norm), n);
      x = x + Experts(layers_[l], Norm(x, layers_[l].moe_norm), l, override_, n);
    }
    return at::log_softmax(at::matmul(Norm(x, final_norm_), lm_head_.t()), -1);
  }

 private:
  at::Tensor Norm(const at::Tensor& x, const at::Tensor& weight) const {
    return x / at::sqrt((x * x).mean(-1, true) + config_.rms_norm_eps) * weight;
  }

  at::Tensor Rope(const at::Tensor& x) const {  // [n, heads, head_dim]
    const int64_t n = x.size(0), half = config_.head_dim / 2;
    const auto options = at::TensorOptions(dtype_);
    const at::Tensor frequency = at::pow(at::Scalar(config_.rope_theta), -at::arange(half, options) / half);
    const at::Tensor angle = at::outer(at::arange(n, options), frequency).unsqueeze(1);
    const at::Tensor a = x.narrow(2, 0, half), b = x.narrow(2, half, half);
    return at::cat({a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()}, 2);
  }

  at::Tensor Attention(const LayerWeights& w, const at::Tensor& h, int64_t n) const {
    const int64_t dim = config_.head_dim, query = config_.heads * dim, key = config_.kv_heads * dim;
    const at::Tensor qkv = at::matmul(h, w.qkv.t());
    at::Tensor q = qkv.narrow(1, 0, query), k = qkv.narrow(1, query, key), v = qkv.narrow(1, query + key, key);
    if (config_.qk_norm) {
      q = Norm(q, w.q_norm);
      k = Norm(k, w.k_norm);
    }
    if (config_.clip_qkv) {
      q = q.clamp(-*config_.clip_qkv, *config_.clip_qkv);
      k = k.clamp(-*config_.clip_qkv, *config_.clip_qkv);
      v = v.clamp(-*config_.clip_qkv, *config_.clip_qkv);
    }
    q = Rope(q.reshape({n, config_.heads, dim}));
    k = Rope(k.reshape({n, config_.kv_heads, dim}));
    v = v.reshape({n, config_.kv_heads, dim});
    const at::Tensor future = at::ones({n, n}, at::kBool).triu(1);
    std::vector<at::Tensor> heads;
    for (int head = 0; head < config_.heads; ++head) {
      const int shared = head / (config_.heads / config_.kv_heads);
      const at::Tensor scores = at::matmul(q.select(1, head), k.select(1, shared).t()) / std::sqrt(double(dim));
      heads.push_back(at::matmul(at::softmax(scores.masked_fill(future, -std::numeric_limits<double>::infinity()), -1),
                                 v.select(1, shared)));
    }
    return at::matmul(at::cat(heads, 1), w.output.t());
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
      const at::Tensor top = std::get<1>(p.topk(config_.experts_per_token));
      at::Tensor weights = p.index_select(0, top);
      if (config_.norm_topk_prob) weights = weights / weights.sum();
      at::Tensor sum = at::zeros({config_.hidden_size}, dtype_);
      for (int64_t j = 0; j < top.size(0); ++j) {
        const int64_t e = top[j].item<int64_t>(), f = config_.intermediate_size;
        const at::Tensor gate = at::matmul(w.gate_up[e].narrow(0, 0, f), h[t]);
        const at::Tensor up = at::matmul(w.gate_up[e].narrow(0, f, f), h[t]);
        sum = sum + weights[j] * at::matmul(w.down[e].t(), gate * at::sigmoid(gate) * up);
      }
      rows.push_back(sum);
    }
    return at::stack(rows);
  }

  const ModelConfig config_;
  const at::ScalarType dtype_;
  at::Tensor embedding_, final_norm_, lm_head_;
  std::vector<LayerWeights> layers_;
};

}  // namespace c3po

#endif  // C3PO_TESTS_SERVER_MODEL_REFERENCE_MODEL_H_
