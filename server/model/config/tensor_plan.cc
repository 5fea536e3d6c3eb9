// Names and shapes of every family's tensors, and what is counted and checked with them.

#include "server/model/config/tensor_plan.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "index/base/status_macros.h"
#include "server/model/config/gguf_model.h"
#include "server/model/config/quantization_config.h"
#include "server/weights/gguf_parts.h"
#include "server/weights/packed_tensors.h"
#include "server/weights/stored_elements.h"

namespace c3po {
namespace {

using Visit = absl::FunctionRef<absl::Status(const PlannedTensor&)>;
using Has = absl::FunctionRef<bool(const std::string&)>;
using KnowsName = Has;  // In a class that has a Has of its own.

// Names of GGUF's forms, which no Hugging Face class has (gguf_model.cc): rows of queries and keys as interleaved
// pairs; the two parts of kv_b_proj.
constexpr char kPairedPart[] = ".paired", kKeyExpand[] = "k_b_proj.weight", kValueExpand[] = "v_b_proj.weight";

constexpr char kEmbedding[] = "model.embed_tokens.weight", kHead[] = "lm_head.weight",
               kFinalNorm[] = "model.norm.weight";

// What ChooseNames chooses from, the oldest first.
struct Forms {
  std::vector<const char*> routers;
  std::vector<TensorNames> experts;  // Their names of the experts alone.
  const char* shared_prefix;
};

const Forms& FormsOf(ModelConfig::Family family) {
  using Family = ModelConfig::Family;
  constexpr TensorNames kOneByOne = {nullptr,          "mlp.experts.",     kGatedNetwork.gate,
                                     kGatedNetwork.up, kGatedNetwork.down, nullptr};
  constexpr TensorNames kTogether = {nullptr, nullptr, "mlp.experts.gate_up_proj", nullptr, "mlp.experts.down_proj",
                                     nullptr};
  static const auto* const kPlain = new Forms{{"mlp.gate.weight"}, {kOneByOne, kTogether}, nullptr};
  static const auto* const kQwen2 = new Forms{{"mlp.gate.weight"}, {kOneByOne, kTogether}, "mlp.shared_expert"};
  static const auto* const kDeepseek = new Forms{{"mlp.gate.weight"}, {kOneByOne, kTogether}, "mlp.shared_experts"};
  static const auto* const kMixtral =
      new Forms{{"block_sparse_moe.gate.weight", "mlp.gate.weight"},
                {{nullptr, "block_sparse_moe.experts.", ".w1.weight", ".w3.weight", ".w2.weight", nullptr},
                 {nullptr, "mlp.experts.", ".w1.weight", ".w3.weight", ".w2.weight", nullptr},
                 kTogether},
                nullptr};
  static const auto* const kGranite = new Forms{
      {"block_sparse_moe.router.layer.weight", "block_sparse_moe.router.weight"},
      {{nullptr, nullptr, "block_sparse_moe.input_linear.weight", nullptr, "block_sparse_moe.output_linear.weight",
        nullptr},
       {nullptr, nullptr, "block_sparse_moe.experts.gate_up_proj", nullptr, "block_sparse_moe.experts.down_proj",
        nullptr},
       {nullptr, "block_sparse_moe.experts.", kGatedNetwork.gate, kGatedNetwork.up, kGatedNetwork.down, nullptr}},
      nullptr};
  switch (family) {
    case Family::kQwen2Moe:
      return *kQwen2;
    case Family::kDeepseek:
    case Family::kDeepseekV2:
      return *kDeepseek;
    case Family::kMixtral:
      return *kMixtral;
    case Family::kGraniteMoe:
      return *kGranite;
    case Family::kOlmoe:
    case Family::kQwen3Moe:
      break;
  }
  return *kPlain;
}

// Where a tensor's first entry lies, as WeightUse says it; the layer is the visitor's.
struct Place {
  WeightRole role;
  int64_t row = 0, column = 0;
  int64_t paired_block = 0;
  bool transposed = false;
  int64_t stride = 0;
};

// Tensors of a layer whose names begin with `prefix`.
class Visitor {
 public:
  Visitor(int layer, std::string prefix, KnowsName has, Visit visit)
      : layer_(layer), prefix_(std::move(prefix)), has_(has), visit_(visit) {}
  absl::Status operator()(absl::string_view name, std::vector<int64_t> shape, TensorPart part, Place place) const {
    return visit_({absl::StrCat(prefix_, name),
                   std::move(shape),
                   part,
                   {place.role, layer_, place.row, place.column, place.paired_block, place.transposed},
                   place.stride});
  }
  bool Has(absl::string_view name) const { return has_(absl::StrCat(prefix_, name)); }

 private:
  const int layer_;
  const std::string prefix_;
  const KnowsName has_;
  const Visit visit_;
};

absl::Status VisitAttention(const ModelConfig& config, const Visitor& visit) {
  const int64_t d = config.hidden_size, query = int64_t{config.heads} * config.head_dim,
                key = int64_t{config.kv_heads} * config.head_dim;
  const struct {
    const char* name;
    int64_t first, rows;
  } parts[] = {{"q_proj", 0, query}, {"k_proj", query, key}, {"v_proj", query + key, key}};
  for (const auto& [name, first, rows] : parts) {
    const bool paired = visit.Has(absl::StrCat(name, kPairedPart, ".weight"));
    const std::string stem = absl::StrCat(name, paired ? kPairedPart : "");
    const int64_t block = paired ? config.head_dim : 0;
    C3PO_RETURN_IF_ERROR(
        visit(stem + ".weight", {rows, d}, TensorPart::kAttention, {WeightRole::kQkv, first, 0, block}));
    if (!config.qkv_bias) continue;
    C3PO_RETURN_IF_ERROR(
        visit(stem + ".bias", {rows}, TensorPart::kAttention, {WeightRole::kQkvBias, first, 0, block}));
  }
  if (config.qk_norm == ModelConfig::QkNorm::kNone) return absl::OkStatus();
  const bool per_head = config.qk_norm == ModelConfig::QkNorm::kPerHead;
  C3PO_RETURN_IF_ERROR(
      visit("q_norm.weight", {per_head ? config.head_dim : query}, TensorPart::kNorm, {WeightRole::kQueryNorm}));
  return visit("k_norm.weight", {per_head ? config.head_dim : key}, TensorPart::kNorm, {WeightRole::kKeyNorm});
}

// Stored heads rotate interleaved pairs; ours rotate halves.
absl::Status VisitLatentAttention(const ModelConfig& config, const Visitor& visit) {
  constexpr TensorPart kPart = TensorPart::kAttention;
  const LatentAttention& latent = *config.latent;
  const int64_t d = config.hidden_size, head_dim = config.head_dim, ranks = latent.kv_rank + config.rope_dim;
  const int64_t query = int64_t{config.heads} * head_dim, query_rank = latent.query_rank;
  const int64_t expanded = int64_t{config.heads} * (latent.plain_dim + config.value_dim);
  const int64_t first = query_rank > 0 ? query_rank : query;  // Row of the keys' and values' latent.
  if (query_rank > 0) {
    C3PO_RETURN_IF_ERROR(visit("q_a_proj.weight", {query_rank, d}, kPart, {WeightRole::kQkv}));
    if (config.qkv_bias) C3PO_RETURN_IF_ERROR(visit("q_a_proj.bias", {query_rank}, kPart, {WeightRole::kQkvBias}));
    C3PO_RETURN_IF_ERROR(
        visit("q_a_layernorm.weight", {query_rank}, TensorPart::kNorm, {WeightRole::kQueryLatentNorm}));
    C3PO_RETURN_IF_ERROR(
        visit("q_b_proj.weight", {query, query_rank}, kPart, {WeightRole::kQueryExpand, 0, 0, head_dim}));
  } else {
    C3PO_RETURN_IF_ERROR(visit("q_proj.weight", {query, d}, kPart, {WeightRole::kQkv, 0, 0, head_dim}));
  }
  C3PO_RETURN_IF_ERROR(visit("kv_a_proj_with_mqa.weight", {ranks, d}, kPart, {WeightRole::kQkv, first, 0, ranks}));
  if (config.qkv_bias) {
    C3PO_RETURN_IF_ERROR(visit("kv_a_proj_with_mqa.bias", {ranks}, kPart, {WeightRole::kQkvBias, first, 0, ranks}));
  }
  C3PO_RETURN_IF_ERROR(
      visit("kv_a_layernorm.weight", {latent.kv_rank}, TensorPart::kNorm, {WeightRole::kKeyValueLatentNorm}));
  if (!visit.Has(kKeyExpand)) {
    return visit("kv_b_proj.weight", {expanded, latent.kv_rank}, kPart, {WeightRole::kKeyValueExpand});
  }
  // In parts by heads, as GGUF files have it: keys transposed, then values.
  const int64_t heads = config.heads, stride = latent.plain_dim + config.value_dim;
  C3PO_RETURN_IF_ERROR(visit(kKeyExpand, {heads, latent.kv_rank, latent.plain_dim}, kPart,
                             {WeightRole::kKeyValueExpand, 0, 0, 0, /*transposed=*/true, stride}));
  return visit(kValueExpand, {heads, config.value_dim, latent.kv_rank}, kPart,
               {WeightRole::kKeyValueExpand, latent.plain_dim, 0, 0, /*transposed=*/false, stride});
}

// One gated network of f neurons, number `index` of those in `gate_up` and `down`.
absl::Status VisitExpert(const TensorNames& names, const std::string& prefix, int64_t f, int64_t d, TensorPart part,
                         int64_t index, const Visitor& visit) {
  const bool routed = part == TensorPart::kExpert;
  const WeightRole gate_up = routed ? WeightRole::kExpertsGateUp : WeightRole::kSharedGateUp;
  const WeightRole down = routed ? WeightRole::kExpertsDown : WeightRole::kSharedDown;
  C3PO_RETURN_IF_ERROR(visit(prefix + names.gate, {f, d}, part, {gate_up, 2 * f * index}));
  C3PO_RETURN_IF_ERROR(visit(prefix + names.up, {f, d}, part, {gate_up, 2 * f * index + f}));
  return visit(prefix + names.down, {d, f}, part, {down, 0, f * index});
}

absl::Status VisitFeedForward(const ModelConfig& config, const TensorNames& names, bool dense, const Visitor& visit) {
  const int64_t d = config.hidden_size, f = config.intermediate_size, experts = config.experts;
  if (dense) return VisitExpert(kGatedNetwork, "mlp", config.dense_intermediate_size, d, TensorPart::kDense, 0, visit);
  if (config.shared_intermediate_size > 0) {
    C3PO_RETURN_IF_ERROR(VisitExpert(kGatedNetwork, names.shared_prefix, config.shared_intermediate_size, d,
                                     TensorPart::kShared, 0, visit));
  }
  if (config.shared_gate) {
    C3PO_RETURN_IF_ERROR(visit(absl::StrCat(names.shared_prefix, "_gate.weight"), {1, d}, TensorPart::kShared,
                               {WeightRole::kSharedGate}));
  }
  C3PO_RETURN_IF_ERROR(visit(names.router, {experts, d}, TensorPart::kRouter, {WeightRole::kRouter}));
  if (names.expert_prefix == nullptr) {
    C3PO_RETURN_IF_ERROR(visit(names.gate, {experts, 2 * f, d}, TensorPart::kExpert, {WeightRole::kExpertsGateUp}));
    return visit(names.down, {experts, d, f}, TensorPart::kExpert, {WeightRole::kExpertsDown});
  }
  for (int e = 0; e < experts; ++e) {
    C3PO_RETURN_IF_ERROR(VisitExpert(names, absl::StrCat(names.expert_prefix, e), f, d, TensorPart::kExpert, e, visit));
  }
  return absl::OkStatus();
}

absl::Status VisitLayer(const ModelConfig& config, int index, bool dense, Has has, Visit visit) {
  const std::string prefix = absl::StrCat("model.layers.", index, ".");
  const Visitor layer(index, prefix, has, visit), attention(index, prefix + "self_attn.", has, visit);
  const int64_t d = config.hidden_size;
  C3PO_RETURN_IF_ERROR(layer("input_layernorm.weight", {d}, TensorPart::kNorm, {WeightRole::kAttentionNorm}));
  C3PO_RETURN_IF_ERROR(config.latent ? VisitLatentAttention(config, attention) : VisitAttention(config, attention));
  C3PO_RETURN_IF_ERROR(attention("o_proj.weight", {d, int64_t{config.heads} * config.value_dim}, TensorPart::kAttention,
                                 {WeightRole::kOutput}));
  if (config.output_bias) {
    C3PO_RETURN_IF_ERROR(attention("o_proj.bias", {d}, TensorPart::kAttention, {WeightRole::kOutputBias}));
  }
  C3PO_RETURN_IF_ERROR(
      layer("post_attention_layernorm.weight", {d}, TensorPart::kNorm, {WeightRole::kFeedForwardNorm}));
  const TensorNames names =
      ChooseNames(config.family, [&](const std::string& name) { return has(absl::StrCat(prefix, name)); });
  return VisitFeedForward(config, names, dense, layer);
}

absl::Status VisitOutside(const ModelConfig& config, Visit visit) {
  const int64_t d = config.hidden_size, vocabulary = config.vocabulary_size;
  C3PO_RETURN_IF_ERROR(visit({kEmbedding, {vocabulary, d}, TensorPart::kEmbedding, {WeightRole::kEmbedding}}));
  C3PO_RETURN_IF_ERROR(visit({kFinalNorm, {d}, TensorPart::kNorm, {WeightRole::kFinalNorm}}));
  if (config.tied_embeddings) return absl::OkStatus();
  return visit({kHead, {vocabulary, d}, TensorPart::kHead, {WeightRole::kHead}});
}

// Whether two tensors are equal bit by bit. What was read need not stay resident.
bool SameTensor(const TensorView& a, const TensorView& b) {
  const bool same = a.dtype == b.dtype && a.shape == b.shape && a.bytes == b.bytes && a.scales == b.scales;
  DropPages(a);
  DropPages(b);
  return same;
}

std::vector<double> FloatsOf(const TensorView& view) {
  std::vector<double> values;
  const auto count = static_cast<size_t>(view.elements());
  for (size_t i = 0; i < count; ++i) {
    const std::byte* const at = view.bytes.data() + i * static_cast<size_t>(DTypeBytes(view.dtype));
    uint32_t bits = 0;
    std::memcpy(&bits, at, view.dtype == DType::kF32 ? 4 : 2);
    if (view.dtype == DType::kBF16) bits <<= 16;
    float value = 0;
    std::memcpy(&value, &bits, 4);
    values.push_back(value);
  }
  return values;
}

// Saved models hold tables of theta^(-2i / rope_dim), which nobody reads: they follow from config.json. One that holds
// other frequencies, stretched by config.json's factor or not, is of another configuration.
absl::Status CheckFrequencies(const std::string& name, const TensorView& view, const ModelConfig& config) {
  constexpr double kRounding = 0.01;  // bfloat16's is 0.004.
  const auto other = [&name](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", name, ": ", what, ", which config.json's rope_theta, ",
                                                   "rope_scaling and head size do not give"));
  };
  const int half = config.rope_dim / 2;
  if (view.dtype != DType::kF32 && view.dtype != DType::kBF16) return other(DTypeName(view.dtype));
  if (view.elements() != half) return other(absl::StrCat("shape ", ShapeString(view.shape)));
  const std::vector<double> stored = FloatsOf(view);
  for (int i = 0; i < half; ++i) {
    const double plain = std::pow(config.rope_theta, -2.0 * i / config.rope_dim);
    const double least = plain / config.rope_scaling.factor * (1 - kRounding), most = plain * (1 + kRounding);
    if (!(stored[i] >= least && stored[i] <= most)) return other(absl::StrCat("entry ", i, " is ", stored[i]));
  }
  return absl::OkStatus();
}

absl::Status CheckUnplanned(const std::string& name, const TensorView& view, const ModelConfig& config) {
  if (config.tied_embeddings && name == kHead) return absl::OkStatus();
  if (absl::EndsWith(name, "rotary_emb.inv_freq")) return CheckFrequencies(name, view, config);
  return absl::InvalidArgumentError(absl::StrCat("tensor ", name, ": not part of this architecture"));
}

int64_t SaturatingAdd(int64_t a, int64_t b) {
  int64_t sum;
  return __builtin_add_overflow(a, b, &sum) ? std::numeric_limits<int64_t>::max() : sum;
}
int64_t SaturatingTimes(int64_t a, int64_t b) {
  int64_t product;
  return __builtin_mul_overflow(a, b, &product) ? std::numeric_limits<int64_t>::max() : product;
}

int64_t* CountOf(TensorPart part, ParameterCounts& counts) {
  switch (part) {
    case TensorPart::kEmbedding:
      return &counts.embedding;
    case TensorPart::kHead:
      return &counts.head;
    case TensorPart::kAttention:
      return &counts.attention;
    case TensorPart::kExpert:
      return &counts.routed_experts;
    case TensorPart::kShared:
      return &counts.shared_experts;
    case TensorPart::kDense:
      return &counts.dense_layers;
    case TensorPart::kRouter:
    case TensorPart::kNorm:
      break;
  }
  return &counts.routers_and_norms;
}

}  // namespace

TensorNames ChooseNames(ModelConfig::Family family, Has has) {
  const Forms& forms = FormsOf(family);
  TensorNames names = forms.experts.front();
  names.router = forms.routers.front();
  names.shared_prefix = forms.shared_prefix;
  for (const char* router : forms.routers) {
    if (!has(router)) continue;
    names.router = router;
    break;
  }
  for (const TensorNames& form : forms.experts) {
    const bool together = form.expert_prefix == nullptr;
    if (!has(together ? form.gate : absl::StrCat(form.expert_prefix, 0, form.gate))) continue;
    names.expert_prefix = form.expert_prefix;
    names.gate = form.gate, names.up = form.up, names.down = form.down;
    break;
  }
  return names;
}

absl::Status VisitTensors(const ModelConfig& config, Has has, Visit visit) {
  C3PO_RETURN_IF_ERROR(VisitOutside(config, visit));
  for (int l = 0; l < config.layers; ++l) {
    C3PO_RETURN_IF_ERROR(VisitLayer(config, l, !config.IsMoeLayer(l), has, visit));
  }
  return absl::OkStatus();
}

absl::Status VisitSeparateTensors(const ModelConfig& config, Visit visit) {
  const TensorNames& last = FormsOf(config.family).experts.back();
  const bool granite = config.family == ModelConfig::Family::kGraniteMoe;
  const std::string first = granite ? absl::StrCat(".", last.expert_prefix, 0, last.gate) : "";
  return VisitTensors(
      config, [&](const std::string& name) { return granite && absl::EndsWith(name, first); }, visit);
}

absl::Status CheckWeightType(const std::string& name, DType type) {
  if (IsWeightType(type)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "tensor ", name, ": weights must be F32, F16, BF16, F8_E4M3 or blocks of GGUF, not ", DTypeName(type)));
}

absl::StatusOr<DType> StoredType(const Checkpoint& checkpoint) {
  C3PO_ASSIGN_OR_RETURN(const TensorView view, checkpoint.Find(kEmbedding));
  C3PO_RETURN_IF_ERROR(CheckWeightType(kEmbedding, view.dtype));
  if (!IsPackedType(view.dtype)) return view.dtype;
  C3PO_ASSIGN_OR_RETURN(const TensorView norm, checkpoint.Find(kFinalNorm));
  C3PO_RETURN_IF_ERROR(CheckWeightType(kFinalNorm, norm.dtype));
  return norm.dtype;
}

absl::StatusOr<ModelConfig> ReadConfig(const Checkpoint& checkpoint) {
  C3PO_ASSIGN_OR_RETURN(ModelConfig config, ModelConfig::Parse(checkpoint.config_json(), checkpoint.config_path()));
  const auto head = checkpoint.Find(kHead), embedding = checkpoint.Find(kEmbedding);
  if (head.ok() && embedding.ok() && config.tied_embeddings) config.tied_embeddings = SameTensor(*head, *embedding);
  return config;
}

absl::Status CheckTensors(const Checkpoint& checkpoint, const ModelConfig& config) {
  std::set<std::string> planned;
  const auto check = [&](const PlannedTensor& tensor) -> absl::Status {
    C3PO_ASSIGN_OR_RETURN(const TensorView view, checkpoint.Find(tensor.name));
    if (view.shape != tensor.shape) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", tensor.name, ": shape ", ShapeString(view.shape),
                                                     ", config.json asks for ", ShapeString(tensor.shape)));
    }
    C3PO_RETURN_IF_ERROR(CheckWeightType(tensor.name, view.dtype));
    planned.insert(tensor.name);
    return absl::OkStatus();
  };
  C3PO_RETURN_IF_ERROR(VisitTensors(
      config, [&](const std::string& name) { return checkpoint.Has(name); }, check));
  for (const std::string& name : checkpoint.names()) {
    if (planned.count(name)) continue;
    C3PO_ASSIGN_OR_RETURN(const TensorView view, checkpoint.Find(name));
    C3PO_RETURN_IF_ERROR(CheckUnplanned(name, view, config));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Checkpoint>> OpenCheckpoint(const std::string& path) {
  if (IsGgufPath(path)) return OpenGgufModel(path);
  C3PO_ASSIGN_OR_RETURN(std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(path));
  // What is no JSON is said by who reads the configuration.
  const auto formats = PackedFormatsOf(checkpoint->config_json(), checkpoint->config_path());
  if (formats.ok() && !formats->empty()) C3PO_RETURN_IF_ERROR(checkpoint->Join(*formats));
  return checkpoint;
}

absl::Status CheckFolder(const std::string& folder) {
  C3PO_ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint, OpenCheckpoint(folder));
  C3PO_ASSIGN_OR_RETURN(const ModelConfig config, ReadConfig(*checkpoint));
  return CheckTensors(*checkpoint, config);
}

ParameterCounts CountParameters(const ModelConfig& config) {
  ParameterCounts counts;
  int64_t times = 1;
  const auto count = [&](const PlannedTensor& tensor) {
    int64_t elements = times;
    for (const int64_t dimension : tensor.shape) elements = SaturatingTimes(elements, dimension);
    int64_t* const part = CountOf(tensor.part, counts);
    *part = SaturatingAdd(*part, elements);
    counts.total = SaturatingAdd(counts.total, elements);
    return absl::OkStatus();
  };
  VisitOutside(config, count).IgnoreError();                   // It cannot fail.
  const auto none = [](const std::string&) { return false; };  // Under any names they count the same.
  // Layers and experts of a kind are alike: one of each is looked at, for a configuration may ask for 2^40.
  const int64_t moe_layers = config.moe_layers.size();
  times = config.layers - moe_layers;
  if (times > 0) VisitLayer(config, 0, /*dense=*/true, none, count).IgnoreError();
  ModelConfig one_expert = config;
  one_expert.experts = 1;
  times = moe_layers;
  VisitLayer(one_expert, 0, /*dense=*/false, none, count).IgnoreError();
  const int64_t expert = counts.routed_experts, router = SaturatingTimes(moe_layers, config.hidden_size);
  for (const auto& [part, each] :
       {std::pair{&counts.routed_experts, expert}, std::pair{&counts.routers_and_norms, router}}) {
    const int64_t others = SaturatingTimes(each, config.experts - 1);
    *part = SaturatingAdd(*part, others);
    counts.total = SaturatingAdd(counts.total, others);
  }
  const int64_t idle = SaturatingTimes(expert, config.experts - config.experts_per_token);
  counts.active = counts.total == std::numeric_limits<int64_t>::max() ? counts.total : counts.total - idle;
  return counts;
}

}  // namespace c3po
