#include "server/model/config/weight_use.h"

namespace c3po {
namespace {

int64_t QkvRows(const ModelConfig& config) {
  const int64_t query = int64_t{config.heads} * config.head_dim, key = int64_t{config.kv_heads} * config.head_dim;
  if (!config.latent) return query + 2 * key;
  return (config.latent->query_rank > 0 ? config.latent->query_rank : query) + config.latent->kv_rank + config.rope_dim;
}

MatrixShape ShapeOfAttention(const ModelConfig& config, WeightRole role) {
  const int64_t d = config.hidden_size, heads = config.heads;
  const bool per_head = config.qk_norm == ModelConfig::QkNorm::kPerHead;
  const LatentAttention latent = config.latent.value_or(LatentAttention());
  switch (role) {
    case WeightRole::kQkv:
      return {QkvRows(config), d};
    case WeightRole::kQkvBias:
      return {QkvRows(config), 1};
    case WeightRole::kQueryNorm:
      return {per_head ? config.head_dim : heads * config.head_dim, 1};
    case WeightRole::kKeyNorm:
      return {per_head ? config.head_dim : int64_t{config.kv_heads} * config.head_dim, 1};
    case WeightRole::kOutput:
      return {d, heads * config.value_dim};
    case WeightRole::kQueryLatentNorm:
      return {latent.query_rank, 1};
    case WeightRole::kQueryExpand:
      return {heads * config.head_dim, latent.query_rank};
    case WeightRole::kKeyValueLatentNorm:
      return {latent.kv_rank, 1};
    case WeightRole::kKeyValueExpand:
      return {heads * (latent.plain_dim + config.value_dim), latent.kv_rank};
    default:
      return {d, 1};
  }
}

}  // namespace

int64_t WeightUse::RowOf(int64_t i, const ModelConfig& config) const {
  if (paired_block == 0) return row + i;
  const int64_t plain = paired_block - config.rope_dim, within = i % paired_block;
  if (within < plain) return row + i;
  const int64_t pair = (within - plain) / 2, second = (within - plain) % 2;
  return row + i - within + plain + pair + second * (config.rope_dim / 2);
}

MatrixShape ShapeOfRole(const ModelConfig& config, WeightRole role, int layer) {
  const int64_t d = config.hidden_size, experts = config.experts, f = config.intermediate_size;
  const int64_t shared = config.IsMoeLayer(layer) ? config.shared_intermediate_size : config.dense_intermediate_size;
  switch (role) {
    case WeightRole::kEmbedding:
    case WeightRole::kHead:
      return {config.vocabulary_size, d};
    case WeightRole::kRouter:
      return {experts, d};
    case WeightRole::kExpertsGateUp:
      return {experts * 2 * f, d};
    case WeightRole::kExpertsDown:
      return {d, experts * f};
    case WeightRole::kSharedGateUp:
      return {2 * shared, d};
    case WeightRole::kSharedDown:
      return {d, shared};
    case WeightRole::kSharedGate:
      return {1, d};
    case WeightRole::kFinalNorm:
    case WeightRole::kAttentionNorm:
    case WeightRole::kOutputBias:
    case WeightRole::kFeedForwardNorm:
      return {d, 1};
    default:
      return ShapeOfAttention(config, role);
  }
}

bool IsVector(WeightRole role) {
  switch (role) {
    case WeightRole::kFinalNorm:
    case WeightRole::kAttentionNorm:
    case WeightRole::kQkvBias:
    case WeightRole::kQueryNorm:
    case WeightRole::kKeyNorm:
    case WeightRole::kOutputBias:
    case WeightRole::kQueryLatentNorm:
    case WeightRole::kKeyValueLatentNorm:
    case WeightRole::kFeedForwardNorm:
      return true;
    default:
      return false;
  }
}

}  // namespace c3po
