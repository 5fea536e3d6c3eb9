// Queries, keys and values of packed rows, forward and backward: projected directly, or through DeepSeek's latents.
//
//   direct  qkv -> cut -> QK-norm -> clip -> heads -> rotate
//   latent  qkv -> cut: queries (-> norm -> expand) -> heads -> rotate their last rope_dim entries
//                  latent -> norm -> expand -> heads: plain keys, values
//                  one rotated key for all heads, appended to each head's plain key

#include "server/compute/aten/projections.h"

#include <ATen/ATen.h>

#include "server/compute/aten/products.h"
#include "server/compute/aten/row_operations.h"

namespace c3po::aten {
namespace {

constexpr double kLatentNormEps = 1e-6;  // DeepSeek-V2's own, whatever rms_norm_eps says.

using QkNorm = ModelConfig::QkNorm;

at::Tensor NormHeads(const at::Tensor& x, const at::Tensor& weight, const ModelConfig& config) {
  switch (config.qk_norm) {
    case QkNorm::kNone:
      return x;
    case QkNorm::kWhole:
      return RmsNorm(x, weight, config.rms_norm_eps);
    case QkNorm::kPerHead:
      return RmsNorm(x.reshape({-1, config.head_dim}), weight, config.rms_norm_eps).view(x.sizes());
  }
  return x;
}

at::Tensor NormHeadsBackward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight,
                             const ModelConfig& config) {
  switch (config.qk_norm) {
    case QkNorm::kNone:
      return dy;
    case QkNorm::kWhole:
      return RmsNormBackward(dy, x, weight, config.rms_norm_eps);
    case QkNorm::kPerHead: {
      const int64_t dim = config.head_dim;
      return RmsNormBackward(dy.reshape({-1, dim}), x.reshape({-1, dim}), weight, config.rms_norm_eps).view(x.sizes());
    }
  }
  return dy;
}

// Rotates the last rope_dim entries of each head.
at::Tensor RotateTail(const at::Tensor& x, const RopeTensors& rope, const ModelConfig& config, bool inverse = false) {
  const int64_t plain = config.head_dim - config.rope_dim;
  if (plain == 0) return Rotate(x, rope, inverse);
  const at::Tensor tail = Rotate(x.narrow(2, plain, config.rope_dim).contiguous(), rope, inverse);
  return at::cat({x.narrow(2, 0, plain), tail}, 2);
}

// The columns of Projections::raw.
struct LatentCuts {
  LatentCuts(const at::Tensor& raw, const ModelConfig& config)
      : queries(raw.narrow(1, 0, raw.size(1) - config.latent->kv_rank - config.rope_dim)),
        latent(raw.narrow(1, queries.size(1), config.latent->kv_rank)),
        key(raw.narrow(1, raw.size(1) - config.rope_dim, config.rope_dim)) {}
  at::Tensor queries;  // [R, heads * head_dim] or [R, query_rank]
  at::Tensor latent;   // [R, kv_rank]
  at::Tensor key;      // [R, rope_dim]
};

Projections ProjectLatent(const at::Tensor& normed, const LayerWeights& layer, const ModelConfig& config,
                          const RopeTensors& rope) {
  const int64_t rows = normed.size(0), heads = config.heads, plain = config.latent->plain_dim;
  Projections out;
  out.raw = Project(normed, layer.qkv, layer.qkv_bias);
  const LatentCuts cuts(out.raw, config);
  at::Tensor q = cuts.queries;
  if (config.latent->query_rank > 0) {
    q = MatMulTransposed(RmsNorm(q, layer.query_latent_norm, kLatentNormEps), layer.query_expand);
  }
  out.q = RotateTail(q.reshape({rows, heads, config.head_dim}), rope, config);
  const at::Tensor expanded =
      MatMulTransposed(RmsNorm(cuts.latent, layer.kv_latent_norm, kLatentNormEps), layer.kv_expand)
          .view({rows, heads, plain + config.value_dim});
  const at::Tensor key = Rotate(cuts.key.reshape({rows, 1, config.rope_dim}), rope);
  out.k = at::cat({expanded.narrow(2, 0, plain), key.expand({rows, heads, config.rope_dim})}, 2);
  out.v = expanded.narrow(2, plain, config.value_dim);
  return out;
}

at::Tensor ProjectLatentBackward(const at::Tensor& dq, const at::Tensor& dk, const at::Tensor& dv,
                                 const Projections& forward, const LayerWeights& layer, const ModelConfig& config,
                                 const RopeTensors& rope) {
  const int64_t rows = dq.size(0), plain = config.latent->plain_dim;
  const LatentCuts cuts(forward.raw, config);
  at::Tensor gq = RotateTail(dq, rope, config, /*inverse=*/true).reshape({rows, -1});
  if (config.latent->query_rank > 0) {
    gq = RmsNormBackward(MatMul(gq, layer.query_expand), cuts.queries, layer.query_latent_norm, kLatentNormEps);
  }
  const at::Tensor dkey = dk.narrow(2, plain, config.rope_dim).sum(1, /*keepdim=*/true);
  const at::Tensor gkey = Rotate(dkey, rope, /*inverse=*/true).view({rows, config.rope_dim});
  const at::Tensor dexpanded = at::cat({dk.narrow(2, 0, plain), dv}, 2).view({rows, -1});
  const at::Tensor glatent =
      RmsNormBackward(MatMul(dexpanded, layer.kv_expand), cuts.latent, layer.kv_latent_norm, kLatentNormEps);
  return MatMul(at::cat({gq, glatent, gkey}, 1), layer.qkv);
}

}  // namespace

Projections ProjectAttention(const at::Tensor& normed, const LayerWeights& layer, const ModelConfig& config,
                             const RopeTensors& rope) {
  if (config.latent) return ProjectLatent(normed, layer, config, rope);
  const int64_t rows = normed.size(0), head_dim = config.head_dim;
  const int64_t query = config.heads * head_dim, key = config.kv_heads * head_dim;
  Projections out;
  out.raw = Project(normed, layer.qkv, layer.qkv_bias);
  at::Tensor q = NormHeads(out.raw.narrow(1, 0, query), layer.q_norm, config),
             k = NormHeads(out.raw.narrow(1, query, key), layer.k_norm, config),
             v = out.raw.narrow(1, query + key, key);
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
                                    const RopeTensors& rope) {
  if (config.latent) return ProjectLatentBackward(dq, dk, dv, forward, layer, config, rope);
  const int64_t rows = dq.size(0), head_dim = config.head_dim;
  const int64_t query = config.heads * head_dim, key = config.kv_heads * head_dim;
  const at::Tensor raw_q = forward.raw.narrow(1, 0, query), raw_k = forward.raw.narrow(1, query, key);
  at::Tensor gq = Rotate(dq, rope, /*inverse=*/true).reshape({rows, query});
  at::Tensor gk = Rotate(dk, rope, /*inverse=*/true).reshape({rows, key});
  at::Tensor gv = dv.reshape({rows, key});
  if (config.clip_qkv) {  // No gradient through a clipped entry.
    const double c = *config.clip_qkv;
    const at::Tensor q = NormHeads(raw_q, layer.q_norm, config), k = NormHeads(raw_k, layer.k_norm, config);
    gq = gq * (q.abs() <= c);
    gk = gk * (k.abs() <= c);
    gv = gv * (forward.raw.narrow(1, query + key, key).abs() <= c);
  }
  gq = NormHeadsBackward(gq, raw_q, layer.q_norm, config);
  gk = NormHeadsBackward(gk, raw_k, layer.k_norm, config);
  return MatMul(at::cat({gq, gk, gv}, 1), layer.qkv);
}

}  // namespace c3po::aten
