#ifndef C3PO_TESTS_SERVER_COMPUTE_TENSOR_WEIGHTS_H_
#define C3PO_TESTS_SERVER_COMPUTE_TENSOR_WEIGHTS_H_

#include <ATen/core/Tensor.h>

#include <stdexcept>
#include <utility>

#include "server/compute/aten/aten_weights.h"
#include "server/compute/model_weights.h"

namespace c3po {

// Tensors of float32 or bfloat16 that a test made, row-major on the CPU, as stored weights that any backend packs: each
// whole matrix is one. Views; the tensors outlive them.
inline ModelWeights ViewsOf(const aten::MoeWeights& tensors) {
  ModelWeights weights;
  const auto add = [](WeightRole role, int layer, const at::Tensor& x, std::vector<StoredWeight>& to) {
    if (!x.defined()) return;
    if (!x.is_contiguous()) throw std::invalid_argument("a weight that is not row-major");
    const int64_t columns = IsVector(role) ? 1 : x.size(-1);
    HostMatrix matrix;
    matrix.type = x.scalar_type() == at::kBFloat16 ? DType::kBF16 : DType::kF32;
    matrix.rows = x.numel() / columns;
    matrix.columns = columns;
    matrix.bytes = {static_cast<const std::byte*>(x.const_data_ptr()), x.nbytes()};
    to.push_back({{role, layer}, matrix});
  };
  add(WeightRole::kEmbedding, 0, tensors.embedding, weights.outside);
  add(WeightRole::kFinalNorm, 0, tensors.final_norm, weights.outside);
  if (!tensors.lm_head.is_same(tensors.embedding)) add(WeightRole::kHead, 0, tensors.lm_head, weights.outside);
  for (const aten::LayerWeights& layer : tensors.layers) {
    const int l = static_cast<int>(weights.layers.size());
    std::vector<StoredWeight>& to = weights.layers.emplace_back();
    const std::pair<WeightRole, const at::Tensor*> roles[] = {{WeightRole::kAttentionNorm, &layer.attention_norm},
                                                              {WeightRole::kQkv, &layer.qkv},
                                                              {WeightRole::kQkvBias, &layer.qkv_bias},
                                                              {WeightRole::kQueryNorm, &layer.q_norm},
                                                              {WeightRole::kKeyNorm, &layer.k_norm},
                                                              {WeightRole::kOutput, &layer.output},
                                                              {WeightRole::kOutputBias, &layer.output_bias},
                                                              {WeightRole::kQueryLatentNorm, &layer.query_latent_norm},
                                                              {WeightRole::kQueryExpand, &layer.query_expand},
                                                              {WeightRole::kKeyValueLatentNorm, &layer.kv_latent_norm},
                                                              {WeightRole::kKeyValueExpand, &layer.kv_expand},
                                                              {WeightRole::kFeedForwardNorm, &layer.moe_norm},
                                                              {WeightRole::kRouter, &layer.router},
                                                              {WeightRole::kExpertsGateUp, &layer.experts.gate_up},
                                                              {WeightRole::kExpertsDown, &layer.experts.down},
                                                              {WeightRole::kSharedGateUp, &layer.shared.gate_up},
                                                              {WeightRole::kSharedDown, &layer.shared.down},
                                                              {WeightRole::kSharedGate, &layer.shared_gate}};
    for (const auto& [role, tensor] : roles) add(role, l, *tensor, to);
  }
  return weights;
}

}  // namespace c3po

#endif  // C3PO_TESTS_SERVER_COMPUTE_TENSOR_WEIGHTS_H_
