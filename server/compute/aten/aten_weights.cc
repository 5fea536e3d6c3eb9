#include "server/compute/aten/aten_weights.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <cstring>
#include <initializer_list>
#include <set>

namespace c3po::aten {
namespace {

at::ScalarType TorchTypeOf(DType type) {
  switch (type) {
    case DType::kF32:
      return at::kFloat;
    case DType::kF16:
      return at::kHalf;
    case DType::kBF16:
      return at::kBFloat16;
    case DType::kF8E4M3:
      return at::kFloat8_e4m3fn;
    default:
      TORCH_CHECK(false, "weights are not stored as ", std::string(DTypeName(type)));
  }
}

// [rows, columns] where the bytes lie, in their own type; of 8 bits or fewer, and of bytes that are not aligned, a
// copy. One of F8_E4M3 is bfloat16, one of packed levels float32, which are exact.
at::Tensor ViewOf(const HostMatrix& matrix) {
  if (matrix.type == DType::kInt8 || matrix.type == DType::kInt4) {
    at::Tensor wide = at::empty({matrix.rows, matrix.columns}, at::TensorOptions(at::kFloat));
    auto* const to = static_cast<float*>(wide.mutable_data_ptr());
    for (int64_t r = 0; r < matrix.rows; ++r) RowToFloat32(matrix, r, to + r * matrix.columns);
    return wide;
  }
  const at::TensorOptions options(TorchTypeOf(matrix.type));
  auto* const bytes = const_cast<std::byte*>(matrix.bytes.data());
  const std::vector<int64_t> shape = {matrix.rows, matrix.columns};
  if (matrix.type == DType::kF8E4M3) return at::from_blob(bytes, shape, options).to(at::kBFloat16);
  if (reinterpret_cast<uintptr_t>(bytes) % static_cast<uintptr_t>(DTypeBytes(matrix.type)) == 0) {
    return at::from_blob(bytes, shape, options);
  }
  at::Tensor aligned = at::empty(shape, options);
  std::memcpy(aligned.mutable_data_ptr(), bytes, matrix.bytes.size());
  return aligned;
}

// The last `turned` rows of each block of `block` rows, from interleaved pairs (0, 1), (2, 3), ... to halves
// (0, 2, ...), (1, 3, ...).
void PairsToHalves(const at::Tensor& rows, int64_t block, int64_t turned) {
  const at::Tensor rotated =
      rows.view({rows.size(0) / block, block, -1}).narrow(1, block - turned, turned);  // [blocks, r, in]
  rotated.copy_(rotated.unflatten(1, {turned / 2, 2}).transpose(1, 2).flatten(1, 2).clone());
}

at::Tensor& OfLayer(LayerWeights& layer, WeightRole role) {
  switch (role) {
    case WeightRole::kAttentionNorm:
      return layer.attention_norm;
    case WeightRole::kQkv:
      return layer.qkv;
    case WeightRole::kQkvBias:
      return layer.qkv_bias;
    case WeightRole::kQueryNorm:
      return layer.q_norm;
    case WeightRole::kKeyNorm:
      return layer.k_norm;
    case WeightRole::kOutput:
      return layer.output;
    case WeightRole::kOutputBias:
      return layer.output_bias;
    case WeightRole::kQueryLatentNorm:
      return layer.query_latent_norm;
    case WeightRole::kQueryExpand:
      return layer.query_expand;
    case WeightRole::kKeyValueLatentNorm:
      return layer.kv_latent_norm;
    case WeightRole::kKeyValueExpand:
      return layer.kv_expand;
    case WeightRole::kFeedForwardNorm:
      return layer.moe_norm;
    case WeightRole::kRouter:
      return layer.router;
    case WeightRole::kExpertsGateUp:
      return layer.experts.gate_up;
    case WeightRole::kExpertsDown:
      return layer.experts.down;
    case WeightRole::kSharedGateUp:
      return layer.shared.gate_up;
    case WeightRole::kSharedDown:
      return layer.shared.down;
    case WeightRole::kSharedGate:
      return layer.shared_gate;
    default:
      TORCH_CHECK(false, "a weight outside the layers lies in one");
  }
}

at::Tensor& Of(MoeWeights& weights, const WeightUse& use) {
  switch (use.role) {
    case WeightRole::kEmbedding:
      return weights.embedding;
    case WeightRole::kFinalNorm:
      return weights.final_norm;
    case WeightRole::kHead:
      return weights.lm_head;
    default:
      return OfLayer(weights.layers[static_cast<size_t>(use.layer)], use.role);
  }
}

// [n 2f, d] as [n, 2f, d].
void SplitNetworks(ExpertWeights& networks, int64_t count) {
  if (networks.gate_up.defined()) networks.gate_up = networks.gate_up.view({count, -1, networks.gate_up.size(1)});
}

}  // namespace

MoeWeights PackWeights(const ModelConfig& config, const ModelWeights& weights, at::Device device, at::ScalarType dtype,
                       const LoadProgress& progress) {
  const c10::InferenceMode inference;
  MoeWeights packed;
  packed.layers.resize(static_cast<size_t>(config.layers));
  const at::ScalarType vector_dtype = device.is_cpu() ? at::kFloat : dtype;
  PackEach(config, weights, progress, [&](const StoredWeight& stored) {
    const WeightUse& use = stored.use;
    const HostMatrix& matrix = stored.matrix;
    at::Tensor& whole = Of(packed, use);
    const bool is_vector = IsVector(use.role);
    if (!whole.defined()) {
      const MatrixShape shape = ShapeOfRole(config, use.role, use.layer);
      const at::TensorOptions options = at::TensorOptions(is_vector ? vector_dtype : dtype).device(device);
      whole = is_vector ? at::zeros({shape.rows}, options) : at::empty({shape.rows, shape.columns}, options);
    }
    const at::Tensor view = is_vector ? ViewOf(matrix).flatten() : ViewOf(matrix);
    const at::Tensor rows = whole.narrow(0, use.row, matrix.rows);
    const at::Tensor part = is_vector ? rows : rows.narrow(1, use.column, matrix.columns);
    part.copy_(is_vector && use.role != WeightRole::kQkvBias ? view.to(dtype) : view);
    if (use.paired_block > 0) PairsToHalves(part, use.paired_block, config.rope_dim);
  });
  if (!packed.lm_head.defined()) packed.lm_head = packed.embedding;
  for (LayerWeights& layer : packed.layers) {
    SplitNetworks(layer.experts, config.experts);
    SplitNetworks(layer.shared, 1);
  }
  return packed;
}

int64_t BytesOf(const MoeWeights& weights) {
  std::set<const void*> counted;
  int64_t bytes = 0;
  const auto add = [&](std::initializer_list<at::Tensor> tensors) {
    for (const at::Tensor& tensor : tensors) {
      if (tensor.defined() && counted.insert(tensor.const_data_ptr()).second) {
        bytes += static_cast<int64_t>(tensor.nbytes());
      }
    }
  };
  add({weights.embedding, weights.final_norm, weights.lm_head});
  for (const LayerWeights& layer : weights.layers) {
    add({layer.attention_norm, layer.qkv, layer.q_norm, layer.k_norm, layer.output, layer.moe_norm, layer.router});
    add({layer.experts.gate_up, layer.experts.down, layer.shared.gate_up, layer.shared.down, layer.shared_gate});
    add({layer.qkv_bias, layer.output_bias, layer.query_latent_norm, layer.query_expand, layer.kv_latent_norm});
    add({layer.kv_expand});
  }
  return bytes;
}

}  // namespace c3po::aten
