#include "server/compute/moe_weights.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "index/base/status_macros.h"
#include "server/compute/weight_tensors.h"
#include "server/model/config/tensor_plan.h"

namespace c3po {
namespace {

constexpr char kEmbedding[] = "model.embed_tokens.weight";

absl::StatusOr<at::ScalarType> TorchTypeOf(DType dtype, const std::string& name) {
  switch (dtype) {
    case DType::kF32:
      return at::kFloat;
    case DType::kF16:
      return at::kHalf;
    case DType::kBF16:
      return at::kBFloat16;
    case DType::kF8E4M3:
      return at::kFloat8_e4m3fn;
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", name, ": weights must be F32, F16, BF16 or F8_E4M3, not ", DTypeName(dtype)));
  }
}

// Asks for large pages below a large tensor, before it is written: decoding reads all weights for every token, and in
// pages of 4 KB finding them takes a tenth of it. What the system cannot do stays as it was.
void UseHugePages(const at::Tensor& weights) {
  constexpr uintptr_t kHugePage = 2 << 20;
  const auto begin = reinterpret_cast<uintptr_t>(weights.const_data_ptr());
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (begin + weights.nbytes()) / kHugePage * kHugePage;
  if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
}

// Reads tensors by name and shape.
class Reader {
 public:
  Reader(const Checkpoint& checkpoint, const WeightPlacement& placement)
      : checkpoint_(checkpoint), placement_(placement) {}

  // A view of the file's bytes, in the file's dtype, valid while the checkpoint is open; of 8 bits, a bfloat16 copy,
  // which is exact.
  absl::StatusOr<at::Tensor> View(const std::string& name, const std::vector<int64_t>& shape) {
    C3PO_ASSIGN_OR_RETURN(const TensorView view, checkpoint_.Find(name));
    if (view.shape != shape) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", name, ": shape [", absl::StrJoin(view.shape, ", "),
                                                     "], config.json asks for [", absl::StrJoin(shape, ", "), "]"));
    }
    C3PO_ASSIGN_OR_RETURN(const at::ScalarType type, TorchTypeOf(view.dtype, name));
    if (type == at::kFloat8_e4m3fn) {
      return at::from_blob(const_cast<std::byte*>(view.bytes.data()), shape, at::TensorOptions(type)).to(at::kBFloat16);
    }
    if (reinterpret_cast<uintptr_t>(view.bytes.data()) % DTypeBytes(view.dtype) != 0) {  // The format aligns nothing.
      at::Tensor aligned = at::empty(shape, at::TensorOptions(type));
      std::memcpy(aligned.mutable_data_ptr(), view.bytes.data(), view.bytes.size());
      return aligned;
    }
    return at::from_blob(const_cast<std::byte*>(view.bytes.data()), shape, at::TensorOptions(type));
  }

  absl::Status Read(const std::string& name, const std::vector<int64_t>& shape, at::Tensor& out) {
    C3PO_ASSIGN_OR_RETURN(const at::Tensor view, View(name, shape));
    out = Empty(shape);
    out.copy_(view);
    parameters_ += out.numel();
    Forget(name);
    return absl::OkStatus();
  }

  absl::Status ReadNorm(const std::string& name, int64_t size, at::Tensor& out) {
    C3PO_RETURN_IF_ERROR(Read(name, {size}, out));
    out = out.to(placement_.norm_dtype);
    return absl::OkStatus();
  }

  absl::Status ReadInto(const std::string& name, const std::vector<int64_t>& shape, at::Tensor slot) {
    C3PO_ASSIGN_OR_RETURN(const at::Tensor view, View(name, shape));
    slot.copy_(view);
    parameters_ += slot.numel();
    Forget(name);
    return absl::OkStatus();
  }

  at::Tensor Empty(const std::vector<int64_t>& shape) const {
    const at::Tensor weights = at::empty(shape, at::TensorOptions(placement_.dtype).device(placement_.device));
    if (placement_.huge_pages) UseHugePages(weights);
    return weights;
  }
  // Uninitialized, as ReadNorm makes them.
  at::Tensor EmptyNorm(int64_t size) const {
    return at::empty({size}, at::TensorOptions(placement_.norm_dtype).device(placement_.device));
  }
  TensorNames NamesIn(ModelConfig::Family family, const std::string& prefix) const {
    return ChooseNames(family, [&](const std::string& name) { return checkpoint_.Has(absl::StrCat(prefix, name)); });
  }
  int64_t parameters() const { return parameters_; }

 private:
  // What was copied need not stay resident beside its copy.
  void Forget(const std::string& name) const {
    if (const auto view = checkpoint_.Find(name); view.ok()) DropPages(*view);
  }

  const Checkpoint& checkpoint_;
  const WeightPlacement placement_;
  int64_t parameters_ = 0;
};

absl::Status ReadAttention(Reader& reader, const ModelConfig& config, const std::string& prefix, LayerWeights& layer) {
  const int64_t d = config.hidden_size;
  const int64_t query = int64_t{config.heads} * config.head_dim, key = int64_t{config.kv_heads} * config.head_dim;
  layer.qkv = reader.Empty({query + 2 * key, d});
  if (config.qkv_bias) layer.qkv_bias = reader.EmptyNorm(query + 2 * key);
  const struct {
    const char* name;
    int64_t first, rows;
  } parts[] = {{"q_proj", 0, query}, {"k_proj", query, key}, {"v_proj", query + key, key}};
  for (const auto& [name, first, rows] : parts) {
    C3PO_RETURN_IF_ERROR(
        reader.ReadInto(absl::StrCat(prefix, name, ".weight"), {rows, d}, layer.qkv.narrow(0, first, rows)));
    if (!config.qkv_bias) continue;
    C3PO_RETURN_IF_ERROR(
        reader.ReadInto(absl::StrCat(prefix, name, ".bias"), {rows}, layer.qkv_bias.narrow(0, first, rows)));
  }
  if (config.qk_norm != ModelConfig::QkNorm::kNone) {
    const bool per_head = config.qk_norm == ModelConfig::QkNorm::kPerHead;
    C3PO_RETURN_IF_ERROR(reader.ReadNorm(prefix + "q_norm.weight", per_head ? config.head_dim : query, layer.q_norm));
    C3PO_RETURN_IF_ERROR(reader.ReadNorm(prefix + "k_norm.weight", per_head ? config.head_dim : key, layer.k_norm));
  }
  return absl::OkStatus();
}

// The last `rope_dim` rows of each block of `block` rows, from interleaved pairs (0, 1), (2, 3), ... to halves
// (0, 2, ...), (1, 3, ...).
void PairsToHalves(at::Tensor rows, int64_t block, int64_t rope_dim) {
  const at::Tensor rotated =
      rows.view({rows.size(0) / block, block, -1}).narrow(1, block - rope_dim, rope_dim);  // [blocks, r, in]
  rotated.copy_(rotated.unflatten(1, {rope_dim / 2, 2}).transpose(1, 2).flatten(1, 2).clone());
}

absl::Status ReadLatentAttention(Reader& reader, const ModelConfig& config, const std::string& prefix,
                                 LayerWeights& layer) {
  const LatentAttention& latent = *config.latent;
  const int64_t d = config.hidden_size, head_dim = config.head_dim, r = config.rope_dim;
  const int64_t query = config.heads * head_dim, ranks = latent.kv_rank + r;
  const int64_t expanded = int64_t{config.heads} * (latent.plain_dim + config.value_dim);
  const int64_t first = latent.query_rank > 0 ? latent.query_rank : query;
  layer.qkv = reader.Empty({first + ranks, d});
  const at::Tensor queries = layer.qkv.narrow(0, 0, first), keys = layer.qkv.narrow(0, first, ranks);
  if (latent.query_rank > 0) {
    C3PO_RETURN_IF_ERROR(reader.ReadInto(prefix + "q_a_proj.weight", {first, d}, queries));
    C3PO_RETURN_IF_ERROR(reader.ReadNorm(prefix + "q_a_layernorm.weight", first, layer.query_latent_norm));
    C3PO_RETURN_IF_ERROR(reader.Read(prefix + "q_b_proj.weight", {query, first}, layer.query_expand));
    PairsToHalves(layer.query_expand, head_dim, r);
  } else {
    C3PO_RETURN_IF_ERROR(reader.ReadInto(prefix + "q_proj.weight", {query, d}, queries));
    PairsToHalves(queries, head_dim, r);
  }
  C3PO_RETURN_IF_ERROR(reader.ReadInto(prefix + "kv_a_proj_with_mqa.weight", {ranks, d}, keys));
  PairsToHalves(keys, ranks, r);
  C3PO_RETURN_IF_ERROR(reader.ReadNorm(prefix + "kv_a_layernorm.weight", latent.kv_rank, layer.kv_latent_norm));
  C3PO_RETURN_IF_ERROR(reader.Read(prefix + "kv_b_proj.weight", {expanded, latent.kv_rank}, layer.kv_expand));
  if (!config.qkv_bias) return absl::OkStatus();
  layer.qkv_bias = reader.EmptyNorm(first + ranks);
  if (latent.query_rank > 0) {
    C3PO_RETURN_IF_ERROR(reader.ReadInto(prefix + "q_a_proj.bias", {first}, layer.qkv_bias.narrow(0, 0, first)));
  } else {
    layer.qkv_bias.narrow(0, 0, first).zero_();  // Queries that are projected directly have none.
  }
  const at::Tensor key_bias = layer.qkv_bias.narrow(0, first, ranks);
  C3PO_RETURN_IF_ERROR(reader.ReadInto(prefix + "kv_a_proj_with_mqa.bias", {ranks}, key_bias));
  PairsToHalves(key_bias, ranks, r);
  return absl::OkStatus();
}

// One expert's three matrices, "<prefix><gate>" and so on, as number `index` of `experts`.
absl::Status ReadExpert(Reader& reader, const std::string& prefix, const TensorNames& names, int64_t index,
                        ExpertWeights& experts) {
  const int64_t f = experts.neurons(), d = experts.down.size(0);
  const at::Tensor gate_up = experts.gate_up.select(0, index);
  C3PO_RETURN_IF_ERROR(reader.ReadInto(prefix + names.gate, {f, d}, gate_up.narrow(0, 0, f)));
  C3PO_RETURN_IF_ERROR(reader.ReadInto(prefix + names.up, {f, d}, gate_up.narrow(0, f, f)));
  return reader.ReadInto(prefix + names.down, {d, f}, experts.down.narrow(1, index * f, f));
}

absl::Status ReadFeedForward(Reader& reader, const ModelConfig& config, const std::string& prefix, bool dense,
                             LayerWeights& layer) {
  const TensorNames names = reader.NamesIn(config.family, prefix);
  const int64_t d = config.hidden_size, f = config.intermediate_size, experts = config.experts;
  const int64_t alone = dense ? config.dense_intermediate_size : config.shared_intermediate_size;
  if (alone > 0) {
    layer.shared = {reader.Empty({1, 2 * alone, d}), reader.Empty({d, alone})};
    const std::string shared = absl::StrCat(prefix, dense ? "mlp" : names.shared_prefix);
    C3PO_RETURN_IF_ERROR(ReadExpert(reader, shared, kGatedNetwork, 0, layer.shared));
  }
  if (dense) return absl::OkStatus();
  if (config.shared_gate) {
    C3PO_RETURN_IF_ERROR(
        reader.Read(absl::StrCat(prefix, names.shared_prefix, "_gate.weight"), {1, d}, layer.shared_gate));
  }
  C3PO_RETURN_IF_ERROR(reader.Read(prefix + names.router, {experts, d}, layer.router));
  layer.experts.down = reader.Empty({d, experts * f});
  if (names.expert_prefix == nullptr) {
    C3PO_RETURN_IF_ERROR(reader.Read(prefix + names.gate, {experts, 2 * f, d}, layer.experts.gate_up));
    return reader.ReadInto(prefix + names.down, {experts, d, f},
                           layer.experts.down.view({d, experts, f}).transpose(0, 1));
  }
  layer.experts.gate_up = reader.Empty({experts, 2 * f, d});
  for (int e = 0; e < experts; ++e) {
    C3PO_RETURN_IF_ERROR(ReadExpert(reader, absl::StrCat(prefix, names.expert_prefix, e), names, e, layer.experts));
  }
  return absl::OkStatus();
}

absl::Status ReadLayer(Reader& reader, const ModelConfig& config, int index, LayerWeights& layer) {
  const std::string prefix = absl::StrCat("model.layers.", index, "."), attention = prefix + "self_attn.";
  const int64_t d = config.hidden_size;
  C3PO_RETURN_IF_ERROR(reader.ReadNorm(prefix + "input_layernorm.weight", d, layer.attention_norm));
  C3PO_RETURN_IF_ERROR(config.latent ? ReadLatentAttention(reader, config, attention, layer)
                                     : ReadAttention(reader, config, attention, layer));
  C3PO_RETURN_IF_ERROR(
      reader.Read(attention + "o_proj.weight", {d, int64_t{config.heads} * config.value_dim}, layer.output));
  if (config.output_bias) C3PO_RETURN_IF_ERROR(reader.ReadNorm(attention + "o_proj.bias", d, layer.output_bias));
  C3PO_RETURN_IF_ERROR(reader.ReadNorm(prefix + "post_attention_layernorm.weight", d, layer.moe_norm));
  return ReadFeedForward(reader, config, prefix, !config.IsMoeLayer(index), layer);
}

// 0, 1, 10, 11, ..., 2, ...: as the checkpoint's digest goes through them, so that who reads for the one has read for
// the other.
std::vector<int> LayersByName(int layers) {
  std::vector<int> order(layers);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [](int a, int b) { return std::to_string(a) < std::to_string(b); });
  return order;
}

}  // namespace

absl::StatusOr<at::ScalarType> StoredDtype(const Checkpoint& checkpoint) {
  C3PO_ASSIGN_OR_RETURN(const TensorView view, checkpoint.Find(kEmbedding));
  C3PO_ASSIGN_OR_RETURN(const at::ScalarType type, TorchTypeOf(view.dtype, kEmbedding));
  return type == at::kFloat8_e4m3fn ? at::kBFloat16 : type;
}

absl::StatusOr<MoeWeights> LoadMoeWeights(const Checkpoint& checkpoint, const ModelConfig& config,
                                          const WeightPlacement& placement,
                                          const std::function<void(int, int)>& progress) {
  const c10::InferenceMode inference;
  // What config.json sizes is allocated only where the checkpoint has as much to fill it with.
  C3PO_RETURN_IF_ERROR(CheckTensors(checkpoint, config));
  try {
    Reader reader(checkpoint, placement);
    MoeWeights weights;
    const int64_t d = config.hidden_size, vocabulary = config.vocabulary_size;
    C3PO_RETURN_IF_ERROR(reader.Read(kEmbedding, {vocabulary, d}, weights.embedding));
    C3PO_RETURN_IF_ERROR(reader.ReadNorm("model.norm.weight", d, weights.final_norm));
    if (config.tied_embeddings) {
      weights.lm_head = weights.embedding;
    } else {
      C3PO_RETURN_IF_ERROR(reader.Read("lm_head.weight", {vocabulary, d}, weights.lm_head));
    }
    weights.layers.resize(config.layers);
    int done = 0;
    for (const int l : LayersByName(config.layers)) {
      C3PO_RETURN_IF_ERROR(ReadLayer(reader, config, l, weights.layers[l]));
      if (progress) progress(++done, config.layers);
    }
    weights.parameters = reader.parameters();
    return weights;
  } catch (const std::exception& error) {
    return absl::ResourceExhaustedError(absl::StrCat("loading weights: ", error.what()));
  }
}

std::string DtypeOf(const MoeWeights& weights) {
  return weights.embedding.scalar_type() == at::kFloat ? "float32" : "bfloat16";
}

int64_t BytesOf(const MoeWeights& weights) {
  std::set<const void*> counted;  // A tied LM head is the embedding.
  int64_t bytes = 0;
  const auto add = [&](std::initializer_list<at::Tensor> tensors) {
    for (const at::Tensor& tensor : tensors) {
      if (tensor.defined() && counted.insert(tensor.const_data_ptr()).second)
        bytes += static_cast<int64_t>(tensor.nbytes());
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

}  // namespace c3po
