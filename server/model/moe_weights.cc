#include "server/model/moe_weights.h"

#include <ATen/ATen.h>

#include <cstring>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr char kEmbedding[] = "model.embed_tokens.weight";

// Hugging Face's tensor names of one family, relative to "model.layers.N.".
struct TensorNames {
  const char* router;
  const char* expert_prefix;  // followed by the expert's index
  const char* gate;
  const char* up;
  const char* down;
};

TensorNames NamesOf(ModelConfig::Family family) {
  switch (family) {
    case ModelConfig::Family::kOlmoe:
      return {"mlp.gate.weight", "mlp.experts.", ".gate_proj.weight", ".up_proj.weight", ".down_proj.weight"};
    case ModelConfig::Family::kMixtral:
      return {"block_sparse_moe.gate.weight", "block_sparse_moe.experts.", ".w1.weight", ".w3.weight", ".w2.weight"};
  }
  return {};
}

absl::StatusOr<at::ScalarType> TorchTypeOf(DType dtype, const std::string& name) {
  switch (dtype) {
    case DType::kF32:
      return at::kFloat;
    case DType::kF16:
      return at::kHalf;
    case DType::kBF16:
      return at::kBFloat16;
    default:
      return absl::InvalidArgumentError(absl::StrCat("tensor ", name, ": weights must be F32, F16 or BF16"));
  }
}

// Reads tensors by name and shape, and remembers which it gave out.
class Reader {
 public:
  Reader(const Checkpoint& checkpoint, at::ScalarType dtype, at::Device device)
      : checkpoint_(checkpoint), dtype_(dtype), device_(device) {}

  // A view of the file's bytes, in the file's dtype, valid while the checkpoint is open.
  absl::StatusOr<at::Tensor> View(const std::string& name, const std::vector<int64_t>& shape) {
    C3PO_ASSIGN_OR_RETURN(const TensorView view, checkpoint_.Find(name));
    if (view.shape != shape) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", name, ": shape [", absl::StrJoin(view.shape, ", "),
                                                     "], config.json asks for [", absl::StrJoin(shape, ", "), "]"));
    }
    C3PO_ASSIGN_OR_RETURN(const at::ScalarType type, TorchTypeOf(view.dtype, name));
    used_.insert(name);
    if (reinterpret_cast<uintptr_t>(view.bytes.data()) % DTypeBytes(view.dtype) != 0) {  // The format aligns nothing.
      at::Tensor aligned = at::empty(shape, at::TensorOptions(type));
      std::memcpy(aligned.mutable_data_ptr(), view.bytes.data(), view.bytes.size());
      return aligned;
    }
    return at::from_blob(const_cast<std::byte*>(view.bytes.data()), shape, at::TensorOptions(type));
  }

  absl::Status Read(const std::string& name, const std::vector<int64_t>& shape, at::Tensor& out) {
    C3PO_ASSIGN_OR_RETURN(const at::Tensor view, View(name, shape));
    out = at::empty(shape, at::TensorOptions(dtype_).device(device_));
    out.copy_(view);
    parameters_ += out.numel();
    return absl::OkStatus();
  }

  absl::Status ReadNorm(const std::string& name, int64_t size, at::Tensor& out) {
    C3PO_RETURN_IF_ERROR(Read(name, {size}, out));
    if (device_.is_cpu()) out = out.to(at::kFloat);  // What the kernels read.
    return absl::OkStatus();
  }

  absl::Status ReadInto(const std::string& name, const std::vector<int64_t>& shape, bool transpose, at::Tensor slot) {
    C3PO_ASSIGN_OR_RETURN(const at::Tensor view, View(name, shape));
    slot.copy_(transpose ? view.t() : view);
    parameters_ += slot.numel();
    return absl::OkStatus();
  }

  at::Tensor Empty(const std::vector<int64_t>& shape) const {
    return at::empty(shape, at::TensorOptions(dtype_).device(device_));
  }
  int64_t parameters() const { return parameters_; }

  // A tensor that nothing reads would be an option of the architecture silently ignored.
  absl::Status CheckAllUsed(bool tied) const {
    for (const std::string& name : checkpoint_.names()) {
      if (used_.count(name) || (tied && name == "lm_head.weight") ||
          name.find("rotary_emb.inv_freq") != std::string::npos) {
        continue;
      }
      return absl::InvalidArgumentError(absl::StrCat("tensor ", name, ": not part of this architecture"));
    }
    return absl::OkStatus();
  }

 private:
  const Checkpoint& checkpoint_;
  const at::ScalarType dtype_;
  const at::Device device_;
  std::set<std::string> used_;
  int64_t parameters_ = 0;
};

absl::Status ReadLayer(Reader& reader, const ModelConfig& config, int index, LayerWeights& layer) {
  const TensorNames names = NamesOf(config.family);
  const std::string prefix = absl::StrCat("model.layers.", index, ".");
  const int64_t d = config.hidden_size, f = config.intermediate_size;
  const int64_t query = int64_t{config.heads} * config.head_dim, key = int64_t{config.kv_heads} * config.head_dim;
  C3PO_RETURN_IF_ERROR(reader.ReadNorm(prefix + "input_layernorm.weight", d, layer.attention_norm));
  layer.qkv = reader.Empty({query + 2 * key, d});
  const std::string attention = prefix + "self_attn.";
  C3PO_RETURN_IF_ERROR(reader.ReadInto(attention + "q_proj.weight", {query, d}, false, layer.qkv.narrow(0, 0, query)));
  C3PO_RETURN_IF_ERROR(reader.ReadInto(attention + "k_proj.weight", {key, d}, false, layer.qkv.narrow(0, query, key)));
  C3PO_RETURN_IF_ERROR(
      reader.ReadInto(attention + "v_proj.weight", {key, d}, false, layer.qkv.narrow(0, query + key, key)));
  if (config.qk_norm) {
    C3PO_RETURN_IF_ERROR(reader.ReadNorm(attention + "q_norm.weight", query, layer.q_norm));
    C3PO_RETURN_IF_ERROR(reader.ReadNorm(attention + "k_norm.weight", key, layer.k_norm));
  }
  C3PO_RETURN_IF_ERROR(reader.Read(attention + "o_proj.weight", {d, query}, layer.output));
  C3PO_RETURN_IF_ERROR(reader.ReadNorm(prefix + "post_attention_layernorm.weight", d, layer.moe_norm));
  C3PO_RETURN_IF_ERROR(reader.Read(prefix + names.router, {config.experts, d}, layer.router));
  layer.gate_up = reader.Empty({config.experts, 2 * f, d});
  layer.down = reader.Empty({config.experts, f, d});
  for (int e = 0; e < config.experts; ++e) {
    const std::string expert = absl::StrCat(prefix, names.expert_prefix, e);
    const at::Tensor gate_up = layer.gate_up.select(0, e);
    C3PO_RETURN_IF_ERROR(reader.ReadInto(expert + names.gate, {f, d}, false, gate_up.narrow(0, 0, f)));
    C3PO_RETURN_IF_ERROR(reader.ReadInto(expert + names.up, {f, d}, false, gate_up.narrow(0, f, f)));
    C3PO_RETURN_IF_ERROR(reader.ReadInto(expert + names.down, {d, f}, true, layer.down.select(0, e)));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<at::ScalarType> StoredDtype(const Checkpoint& checkpoint) {
  C3PO_ASSIGN_OR_RETURN(const TensorView view, checkpoint.Find(kEmbedding));
  return TorchTypeOf(view.dtype, kEmbedding);
}

absl::StatusOr<MoeWeights> LoadMoeWeights(const Checkpoint& checkpoint, const ModelConfig& config, at::ScalarType dtype,
                                          at::Device device, const std::function<void(int, int)>& progress) {
  try {
    Reader reader(checkpoint, dtype, device);
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
    for (int l = 0; l < config.layers; ++l) {
      C3PO_RETURN_IF_ERROR(ReadLayer(reader, config, l, weights.layers[l]));
      if (progress) progress(l + 1, config.layers);
    }
    C3PO_RETURN_IF_ERROR(reader.CheckAllUsed(config.tied_embeddings));
    weights.parameters = reader.parameters();
    return weights;
  } catch (const std::exception& error) {
    return absl::ResourceExhaustedError(absl::StrCat("loading weights: ", error.what()));
  }
}

}  // namespace c3po
