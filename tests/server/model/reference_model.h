#ifndef C3PO_TESTS_SERVER_MODEL_REFERENCE_MODEL_H_
#define C3PO_TESTS_SERVER_MODEL_REFERENCE_MODEL_H_

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <optional>
#include <random>
#include <vector>

#include "server/compute/aten/aten_weights.h"
#include "server/compute/aten/rope_tensors.h"
#include "server/model/config/model_config.h"

namespace c3po {

// The slow oracle: the whole model on one sequence in double (or float) precision, every layer and position recomputed,
// every expert at every position, differentiable by autograd. It shares the stored weights with the server's model and
// nothing else. `roundings` other than 0: each weight w becomes w (1 + 2^-24 u), u even in [-1, 1] and drawn by that
// seed, which is what one rounding to float32 may do to it.
class ReferenceModel {
 public:
  // Weights are first rounded to `kept`, as the model that is compared with it keeps them.
  ReferenceModel(const ModelConfig& config, const ModelWeights& weights, at::ScalarType dtype = at::kDouble,
                 uint32_t roundings = 0, at::ScalarType kept = at::kFloat)
      : config_(config), dtype_(dtype) {
    const aten::RopeTensors rope = aten::RopeTensors::Of(aten::MakeRopeTable(config), at::kCPU);
    aten::MoeWeights packed = aten::PackWeights(config, weights, at::kCPU, kept);
    std::mt19937 draws(roundings);
    const auto take = [&](const at::Tensor& x) {
      if (!x.defined()) return x;
      const at::Tensor copy = x.to(at::kDouble).clone(at::MemoryFormat::Contiguous);
      double* const values = copy.mutable_data_ptr<double>();
      for (int64_t i = 0; roundings != 0 && i < copy.numel(); ++i) {
        values[i] *= 1 + std::ldexp(static_cast<double>(draws()) / 0x80000000 - 1, -24);
      }
      return copy.to(dtype_);
    };
    cos_ = rope.cos.to(dtype_).clone();
    sin_ = rope.sin.to(dtype_).clone();
    embedding_ = take(packed.embedding);
    final_norm_ = take(packed.final_norm);
    lm_head_ = take(packed.lm_head);
    for (aten::LayerWeights& w : packed.layers) {
      for (at::Tensor* x :
           {&w.attention_norm, &w.q_norm, &w.k_norm, &w.moe_norm, &w.shared_gate, &w.qkv_bias, &w.output_bias,
            &w.query_latent_norm, &w.kv_latent_norm, &w.qkv, &w.output, &w.router, &w.query_expand, &w.kv_expand,
            &w.experts.down, &w.shared.down, &w.experts.gate_up, &w.shared.gate_up}) {
        *x = take(*x);
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

  // A prompt's beginning that is not computed anew: the keys and values of its P positions in each layer from
  // `first_layer` on, and the rows of the tokens behind it that enter this layer.
  struct Known {
    int first_layer = 0;                   // a decoder layer
    at::Tensor rows;                       // [tokens - P, d]
    std::vector<at::Tensor> keys, values;  // by layer, [P, kv_heads, head_dim], likewise of value_dim
  };
  // Asked for each sequence of tokens, where it is set.
  std::function<std::optional<Known>(const std::vector<int32_t>& tokens)> known;

  // How near routing has come to another choice of experts, since this object was made: the least difference of two
  // weights' logarithms of which one is chosen and the other is not. Closer than rounding is, two correct models may
  // choose differently.
  double smallest_margin() const { return smallest_margin_; }

  // Is told the mixing weights [tokens, E] of each MoE layer in turn.
  std::function<void(const at::Tensor& weights)> on_weights;

  // Log-probabilities [tokens, V]; 0 of a known beginning.
  at::Tensor LogProbabilities(const std::vector<int32_t>& tokens, std::optional<Override> override_) const {
    if (const std::optional<Known> beginning = known ? known(tokens) : std::nullopt) {
      const auto before = static_cast<int64_t>(tokens.size()) - beginning->rows.size(0);
      if (override_) override_->positions.erase(override_->positions.begin(), override_->positions.begin() + before);
      const at::Tensor above = Climb(beginning->rows.to(dtype_), &*beginning, override_);
      return at::cat({at::zeros({before, above.size(1)}, above.options().requires_grad(false)), above});
    }
    const at::Tensor ids = at::tensor(std::vector<int64_t>(tokens.begin(), tokens.end()), at::kLong);
    return Climb(config_.embedding_multiplier * embedding_.index_select(0, ids), nullptr, override_);
  }

 private:
  // Rows [n, d] from the embedding on, or from where `beginning` begins, to log-probabilities.
  at::Tensor Climb(at::Tensor x, const Known* beginning, const std::optional<Override>& override_) const {
    const int64_t n = x.size(0);
    const int first = beginning ? beginning->first_layer : 0;
    int moe = 0;
    for (int l = 0; l < first; ++l) moe += layers_[l].router.defined();
    for (int l = first; l < config_.layers; ++l) {
      const aten::LayerWeights& w = layers_[l];
      const size_t above = static_cast<size_t>(l - first);
      const at::Tensor keys = beginning ? beginning->keys[above].to(dtype_) : at::Tensor();
      const at::Tensor values = beginning ? beginning->values[above].to(dtype_) : at::Tensor();
      x = x + config_.residual_multiplier * Attention(w, Norm(x, w.attention_norm), keys, values);
      const at::Tensor h = Norm(x, w.moe_norm);
      at::Tensor out = at::zeros_like(x);
      if (w.router.defined()) out = out + Experts(w, h, moe++, override_, n);
      if (w.shared.down.defined()) {
        const at::Tensor shared = Networks(w.shared, h)[0];
        out = out + (w.shared_gate.defined() ? at::sigmoid(at::matmul(h, w.shared_gate.t())) * shared : shared);
      }
      x = x + config_.residual_multiplier * out;
    }
    return at::log_softmax(at::matmul(Norm(x, final_norm_), lm_head_.t()) / config_.logits_divisor, -1);
  }

  at::Tensor Norm(const at::Tensor& x, const at::Tensor& weight) const { return Norm(x, weight, config_.rms_norm_eps); }
  static at::Tensor Norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
    return x / at::sqrt((x * x).mean(-1, true) + eps) * weight;
  }

  // [n, heads, head_dim] at positions from `start` on: the last rope_dim entries turn.
  at::Tensor Rope(const at::Tensor& x, int64_t start) const {
    const int64_t n = x.size(0), plain = x.size(2) - config_.rope_dim, half = config_.rope_dim / 2;
    at::Tensor cos = cos_.narrow(0, start, n).unsqueeze(1), sin = sin_.narrow(0, start, n).unsqueeze(1);
    if (config_.rope_scaling.type == RopeScaling::Type::kNone) {
      const auto options = at::TensorOptions(dtype_);
      const at::Tensor frequency = at::pow(at::Scalar(config_.rope_theta), -at::arange(half, options) / half);
      const at::Tensor angle = at::outer(at::arange(start, start + n, options), frequency).unsqueeze(1);
      cos = angle.cos(), sin = angle.sin();
    }
    const at::Tensor a = x.narrow(2, plain, half), b = x.narrow(2, plain + half, half);
    return at::cat({x.narrow(2, 0, plain), a * cos - b * sin, b * cos + a * sin}, 2);
  }

  struct Heads {
    at::Tensor q, k, v;  // [n, heads, dim]
  };

  Heads Project(const aten::LayerWeights& w, const at::Tensor& h, int64_t start) const {
    const int64_t n = h.size(0);
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
    return {Rope(q, start), Rope(k, start), v.reshape({n, config_.kv_heads, dim})};
  }

  Heads ProjectLatent(const aten::LayerWeights& w, const at::Tensor& h, int64_t start) const {
    const int64_t n = h.size(0);
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
    const at::Tensor key = Rope(raw.narrow(1, first + latent.kv_rank, rope).reshape({n, 1, rope}), start);
    return {Rope(q.reshape({n, heads, plain + rope}), start),
            at::cat({kv.narrow(2, 0, plain), key.expand({n, heads, rope})}, 2), kv.narrow(2, plain, config_.value_dim)};
  }

  // Of consecutive rows behind the positions of `keys` and `values`, if those are defined.
  at::Tensor Attention(const aten::LayerWeights& w, const at::Tensor& h, const at::Tensor& keys,
                       const at::Tensor& values) const {
    const int64_t n = h.size(0), start = keys.defined() ? keys.size(0) : 0;
    auto [q, k, v] = config_.latent ? ProjectLatent(w, h, start) : Project(w, h, start);
    if (keys.defined()) k = at::cat({keys, k}), v = at::cat({values, v});
    const at::Tensor future = at::ones({n, start + n}, at::kBool).triu(start + 1);
    const auto of_heads = [&](const at::Tensor& x) {  // [heads, n, dim]
      return x.transpose(0, 1).repeat_interleave(config_.heads / x.size(1), 0);
    };
    const at::Tensor scores = at::matmul(of_heads(q), of_heads(k).transpose(1, 2)) * config_.attention_scale;
    const at::Tensor p = at::softmax(scores.masked_fill(future, -std::numeric_limits<double>::infinity()), -1);
    const at::Tensor context = at::matmul(p, of_heads(v)).transpose(0, 1).reshape({n, -1});
    const at::Tensor out = at::matmul(context, w.output.t());
    return w.output_bias.defined() ? out + w.output_bias : out;
  }

  // All networks of `w` at h [n, d]: [networks, n, d].
  static at::Tensor Networks(const aten::ExpertWeights& w, const at::Tensor& h) {
    const int64_t f = w.neurons();
    const at::Tensor gate_up = at::matmul(h, w.gate_up.transpose(1, 2));
    const at::Tensor gate = gate_up.narrow(2, 0, f), up = gate_up.narrow(2, f, f);
    const at::Tensor down = w.down.reshape({w.down.size(0), -1, f}).permute({1, 2, 0});
    return at::matmul(gate * at::sigmoid(gate) * up, down);
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

  // Of the logarithms of numbers, the `count`th largest less the next one.
  static double MarginOf(std::vector<double> values, size_t count) {
    if (count >= values.size()) return std::numeric_limits<double>::infinity();
    std::sort(values.rbegin(), values.rend());
    return std::log(values[count - 1] / values[count]);
  }

  // Of p [n, E].
  void NoteMargins(const at::Tensor& p) const {
    const at::Tensor rows = p.detach().to(at::kDouble).contiguous();
    const size_t groups = config_.expert_groups, leading = config_.groups_per_token, size = config_.experts / groups;
    for (int64_t t = 0; t < rows.size(0); ++t) {
      const double* row = rows.const_data_ptr<double>() + t * config_.experts;
      std::vector<double> maxima, open;
      for (size_t g = 0; g < groups; ++g) maxima.push_back(*std::max_element(row + g * size, row + (g + 1) * size));
      std::vector<double> order = maxima;
      std::sort(order.rbegin(), order.rend());
      for (size_t e = 0; e < groups * size; ++e) {
        if (maxima[e / size] >= order[leading - 1]) open.push_back(row[e]);
      }
      smallest_margin_ =
          std::min({smallest_margin_, MarginOf(maxima, leading), MarginOf(open, config_.experts_per_token)});
    }
  }

  at::Tensor Experts(const aten::LayerWeights& w, const at::Tensor& h, int layer,
                     const std::optional<Override>& override_, int64_t n) const {
    at::Tensor logits = at::matmul(h, w.router.t());
    int row = -1;
    if (override_) {
      for (size_t i = 0; i < override_->layers.size(); ++i) {
        if (override_->layers[i] == layer) row = static_cast<int>(i);
      }
    }
    at::Tensor p = at::softmax(logits, -1);
    if (row >= 0) {
      const at::Tensor here = at::zeros({n, 1}, at::kBool);
      for (int64_t t = 0; t < n; ++t) here[t].fill_(bool{override_->positions[t]});
      const at::Tensor values = override_->values[row];
      p = at::where(here, override_->is_shift ? at::softmax(logits + values, -1) : values.expand_as(p), p);
    }
    NoteMargins(p);
    const at::Tensor chosen = at::zeros_like(p.detach());
    for (int64_t t = 0; t < n; ++t) chosen[t].index_fill_(0, Choose(p[t].detach()), 1.0);
    at::Tensor weights = p * chosen;
    if (config_.norm_topk_prob) weights = weights / weights.sum(-1, true);
    weights = weights * config_.routed_scaling_factor;
    if (on_weights) on_weights(weights);
    return (weights.t().unsqueeze(2) * Networks(w.experts, h)).sum(0);
  }

  const ModelConfig config_;
  const at::ScalarType dtype_;
  at::Tensor cos_, sin_;  // Read where positions are stretched; goldens hold that formula.
  at::Tensor embedding_, final_norm_, lm_head_;
  std::vector<aten::LayerWeights> layers_;
  mutable double smallest_margin_ = std::numeric_limits<double>::infinity();
};

}  // namespace c3po

#endif  // C3PO_TESTS_SERVER_MODEL_REFERENCE_MODEL_H_
