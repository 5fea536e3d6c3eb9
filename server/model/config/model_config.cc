// What each family's config.json says, with the defaults of its Hugging Face class, and what of it is refused.

#include "server/model/config/model_config.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/model/config/config_fields.h"
#include "server/model/config/quantization_config.h"
#include "server/model/config/rope_fields.h"

namespace c3po {
namespace {

using Family = ModelConfig::Family;

constexpr int64_t kSharedNeuronsMax = 1 << 20;  // As many as a single dimension may have.

constexpr struct {
  Family family;
  const char* architecture;
  const char* model_type;
  // Where config.json does not say. kv_heads 0: as many as query heads.
  double rms_norm_eps, rope_theta;
  int context_window, kv_heads;
} kFamilies[] = {
    {Family::kOlmoe, "OlmoeForCausalLM", "olmoe", 1e-5, 10000, 4096, 0},
    {Family::kMixtral, "MixtralForCausalLM", "mixtral", 1e-5, 1e6, 131072, 8},
    {Family::kQwen2Moe, "Qwen2MoeForCausalLM", "qwen2_moe", 1e-6, 10000, 32768, 16},
    {Family::kQwen3Moe, "Qwen3MoeForCausalLM", "qwen3_moe", 1e-6, 10000, 32768, 4},
    {Family::kDeepseek, "DeepseekForCausalLM", "deepseek", 1e-6, 10000, 2048, 0},
    {Family::kDeepseekV2, "DeepseekV2ForCausalLM", "deepseek_v2", 1e-6, 10000, 2048, 0},
    {Family::kGraniteMoe, "GraniteMoeForCausalLM", "granitemoe", 1e-6, 10000, 2048, 0},
};

// Options of other models' arithmetic, and the values at which they change nothing. Families that implement one read
// it; for the others it is refused.
const std::vector<std::pair<const char*, std::vector<std::string>>>& OptionsOfOthers() {
  static const auto* const kOptions = new std::vector<std::pair<const char*, std::vector<std::string>>>{
      {"alibi", {"false"}},
      {"attention_bias", {"false"}},
      {"attention_chunk_size", {}},
      {"attention_multiplier", {}},
      {"attn_logit_softcapping", {}},
      {"clip_qkv", {}},
      {"embedding_multiplier", {"1"}},
      {"final_logit_softcapping", {}},
      {"first_k_dense_replace", {"0"}},
      {"is_causal", {"true"}},
      {"is_encoder_decoder", {"false"}},
      {"kv_lora_rank", {}},
      {"kv_sharing_modes", {}},
      {"layer_types", {}},
      {"lm_head_bias", {"false"}},
      {"logit_scale", {"1"}},
      {"logits_scaling", {"1"}},
      {"mlp_bias", {"false"}},
      {"mlp_only_layers", {"[]"}},
      {"moe_layer_freq", {"1"}},
      {"n_group", {"1"}},
      {"n_shared_experts", {"0"}},
      {"num_kv_shared_layers", {"0"}},
      {"num_nextn_predict_layers", {"0"}},
      {"partial_rotary_factor", {"1"}},
      {"per_layer_config", {"{}"}},
      {"position_embedding_type", {"\"rope\""}},
      {"pruned_heads", {"{}"}},
      {"q_lora_rank", {}},
      {"qk_layernorm", {"false"}},
      {"qkv_bias", {"false"}},
      {"query_pre_attn_scalar", {}},
      {"residual_multiplier", {"1"}},
      {"routed_scaling_factor", {"1"}},
      {"scoring_func", {"\"softmax\""}},
      {"shared_intermediate_size", {"0"}},
      {"topk_method", {"\"greedy\""}},
      {"transformers_weights", {"\"model.safetensors\""}},
      {"use_alibi", {"false"}},
      {"use_bias", {"false"}},
      {"use_parallel_residual", {"false"}},
      {"use_qk_norm", {"false"}},
      {"use_qkv_bias", {"false"}},
      {"zero_expert_num", {"0"}},
  };
  return *kOptions;
}

// A window that covers the whole context changes nothing. Qwen's has a switch, which is off by default; other families'
// code does not look at one.
void ReadSlidingWindow(ConfigFields& fields, const ModelConfig& config) {
  const bool qwen = config.family == Family::kQwen2Moe || config.family == Family::kQwen3Moe;
  const int fallback = qwen && !fields.IsNull("sliding_window") ? 4096 : config.context_window;
  if (!qwen || fields.FlagOr("use_sliding_window", false)) {
    const int window = fields.DimensionOr("sliding_window", fallback);
    if (window < config.context_window) {
      fields.Refuse("sliding_window", absl::StrCat(window, ", below max_position_embeddings,"));
    }
  }
  const std::vector<std::string> types = fields.Texts("layer_types");
  if (!types.empty() && static_cast<int>(types.size()) != config.layers) {
    fields.Fail("layer_types", absl::StrCat("has ", types.size(), " entries for ", config.layers, " layers"));
  }
  for (const std::string& type : types) {
    if (type != "full_attention") fields.Refuse("layer_types", absl::StrCat("\"", type, "\""));
  }
}

// The family's own name of the number of experts.
const char* ExpertsName(Family family) {
  switch (family) {
    case Family::kMixtral:
    case Family::kGraniteMoe:
      return "num_local_experts";
    case Family::kDeepseek:
    case Family::kDeepseekV2:
      return "n_routed_experts";
    case Family::kOlmoe:
    case Family::kQwen2Moe:
    case Family::kQwen3Moe:
      break;
  }
  return "num_experts";
}

// `alias`: what the family's attribute map in transformers 5.24 also calls it; null: nothing. Names of other families
// may be there, but not say otherwise.
int ReadExperts(ConfigFields& fields, Family family, const char* alias, int fallback = 0) {
  const char* name = ExpertsName(family);
  if (alias != nullptr && !fields.Has(name) && fields.Has(alias)) name = alias;
  const int experts = fallback > 0 ? fields.DimensionOr(name, fallback) : fields.Dimension(name);
  for (const char* other : {"num_experts", "num_local_experts", "n_routed_experts"}) {
    fields.RequireSame(other, experts, name);
  }
  return experts;
}

std::string NoMoeLayer(absl::string_view other, const ModelConfig& config) {
  return absl::StrCat("and ", other, " leave no MoE layer of num_hidden_layers ", config.layers);
}

// Qwen: every decoder_sparse_step-th layer, but for a list of dense ones.
void ReadSparseStep(ConfigFields& fields, ModelConfig& config) {
  const int step = fields.DimensionOr("decoder_sparse_step", 1);
  const std::vector<int> dense = fields.CountList("mlp_only_layers");
  for (int l = 0; l < config.layers && step > 0; ++l) {
    if ((l + 1) % step == 0 && std::find(dense.begin(), dense.end(), l) == dense.end()) config.moe_layers.push_back(l);
  }
  if (config.moe_layers.empty()) fields.Fail("decoder_sparse_step", NoMoeLayer("mlp_only_layers", config));
}

// DeepSeek: dense layers at the bottom, then every moe_layer_freq-th.
void ReadDenseBottom(ConfigFields& fields, ModelConfig& config) {
  const int dense = fields.CountOr("first_k_dense_replace", 0), step = fields.DimensionOr("moe_layer_freq", 1);
  for (int l = dense; l < config.layers && step > 0; ++l) {
    if (l % step == 0) config.moe_layers.push_back(l);
  }
  if (config.moe_layers.empty()) fields.Fail("first_k_dense_replace", NoMoeLayer("moe_layer_freq", config));
}

void ReadQwen(ConfigFields& fields, ModelConfig& config) {
  config.experts =
      ReadExperts(fields, config.family, config.family == Family::kQwen3Moe ? "num_local_experts" : nullptr);
  config.experts_per_token = fields.Dimension("num_experts_per_tok");
  config.intermediate_size = fields.Dimension("moe_intermediate_size");
  config.norm_topk_prob = fields.FlagOr("norm_topk_prob", false);
  ReadSparseStep(fields, config);
  if (config.family == Family::kQwen2Moe) {
    config.shared_intermediate_size = fields.Dimension("shared_expert_intermediate_size");
    config.shared_gate = true;
    config.qkv_bias = fields.FlagOr("qkv_bias", true);
  } else {
    config.qk_norm = ModelConfig::QkNorm::kPerHead;
    config.qkv_bias = config.output_bias = fields.FlagOr("attention_bias", false);
  }
}

// Where DeepSeek's own code and that of transformers give other numbers, the configuration is refused.
void ReadDeepseek(ConfigFields& fields, ModelConfig& config) {
  const bool second = config.family == Family::kDeepseekV2;
  config.experts = ReadExperts(fields, config.family, second ? "num_experts" : nullptr);
  config.experts_per_token = fields.Dimension("num_experts_per_tok");
  config.intermediate_size = fields.Dimension("moe_intermediate_size");
  const int64_t shared = int64_t{fields.CountOr("n_shared_experts", second ? 2 : 0)} * config.intermediate_size;
  if (shared > kSharedNeuronsMax) fields.Fail("n_shared_experts", absl::StrCat("makes ", shared, " shared neurons"));
  config.shared_intermediate_size = static_cast<int>(std::min<int64_t>(shared, kSharedNeuronsMax));
  // The weight of a single expert is never divided by itself.
  config.norm_topk_prob = fields.FlagOr("norm_topk_prob", false) && config.experts_per_token > 1;
  config.qkv_bias = config.output_bias = fields.FlagOr("attention_bias", false);
  if (second) fields.Require("moe_layer_freq", {"1"});
  ReadDenseBottom(fields, config);
  if (!second) return;
  config.routed_scaling_factor = fields.PositiveOr("routed_scaling_factor", 1);
  if (config.norm_topk_prob) {
    fields.Refuse("norm_topk_prob", "true, which DeepSeek's own code and transformers read differently,");
  }
  const std::string method = fields.TextOr("topk_method", "greedy");
  if (method == "group_limited_greedy") {
    if (!fields.Has("n_group")) fields.Fail("topk_method", "\"group_limited_greedy\" needs n_group and topk_group");
    config.expert_groups = fields.Dimension("n_group");
    config.groups_per_token = fields.Dimension("topk_group");
  } else if (method != "greedy") {
    fields.Refuse("topk_method", absl::StrCat("\"", method, "\""));
  } else {
    fields.Has("n_group");  // Greedy selection does not look at groups.
  }
  LatentAttention latent;
  latent.query_rank = fields.IsNull("q_lora_rank") ? 0 : fields.DimensionOr("q_lora_rank", 1536);
  latent.kv_rank = fields.Dimension("kv_lora_rank");
  latent.plain_dim = fields.Dimension("qk_nope_head_dim");
  config.rope_dim = fields.Dimension("qk_rope_head_dim");
  config.value_dim = fields.Dimension("v_head_dim");
  config.head_dim = latent.plain_dim + config.rope_dim;
  config.latent = latent;
}

void ReadFamily(ConfigFields& fields, ModelConfig& config) {
  switch (config.family) {
    case Family::kOlmoe:
      config.qk_norm = ModelConfig::QkNorm::kWhole;
      config.experts = ReadExperts(fields, config.family, "num_local_experts", 64);
      config.experts_per_token = fields.DimensionOr("num_experts_per_tok", 8);
      config.norm_topk_prob = fields.FlagOr("norm_topk_prob", false);
      config.qkv_bias = config.output_bias = fields.FlagOr("attention_bias", false);
      if (fields.Has("clip_qkv")) config.clip_qkv = fields.PositiveOr("clip_qkv", 0);
      break;
    case Family::kMixtral:
      config.norm_topk_prob = true;
      config.experts = ReadExperts(fields, config.family, "num_experts", 8);
      config.experts_per_token = fields.DimensionOr("num_experts_per_tok", 2);
      break;
    case Family::kQwen2Moe:
    case Family::kQwen3Moe:
      return ReadQwen(fields, config);
    case Family::kDeepseek:
    case Family::kDeepseekV2:
      return ReadDeepseek(fields, config);
    case Family::kGraniteMoe:
      config.norm_topk_prob = true;  // Softmax over the chosen logits is the same.
      config.experts = ReadExperts(fields, config.family, nullptr, 8);
      config.experts_per_token = fields.DimensionOr("num_experts_per_tok", 2);
      config.qkv_bias = config.output_bias = fields.FlagOr("attention_bias", false);
      config.embedding_multiplier = fields.PositiveOr("embedding_multiplier", 1);
      config.residual_multiplier = fields.PositiveOr("residual_multiplier", 1);
      config.attention_scale = fields.PositiveOr("attention_multiplier", 1);
      config.logits_divisor = fields.PositiveOr("logits_scaling", 1);
      break;
  }
  config.intermediate_size = fields.Dimension("intermediate_size");
}

// A field that is null is as one that is missing, but for these: transformers computes with them.
void RefuseNulls(ConfigFields& fields, Family family) {
  std::vector<const char*> names = {
      "attention_multiplier", "decoder_sparse_step", "embedding_multiplier", "first_k_dense_replace", "hidden_act",
      "logits_scaling",       "num_experts",         "num_experts_per_tok",  "num_local_experts",     "qkv_bias",
      "residual_multiplier",  "rms_norm_eps",        "rope_theta",           "routed_scaling_factor", "topk_method"};
  if (family == Family::kQwen2Moe || family == Family::kQwen3Moe) {
    names.insert(names.end(), {"num_key_value_heads", "head_dim"});
  }
  if (family == Family::kDeepseekV2) names.push_back("n_shared_experts");
  for (const char* name : names) {
    if (fields.IsNull(name)) fields.Fail(name, "must not be null");
  }
}

void ReadSizes(ConfigFields& fields, ModelConfig& config) {
  config.hidden_size = fields.Dimension("hidden_size");
  config.layers = fields.Dimension("num_hidden_layers");
  config.heads = fields.Dimension("num_attention_heads");
  const bool as_heads = config.kv_heads == 0 || fields.IsNull("num_key_value_heads");
  config.kv_heads = fields.DimensionOr("num_key_value_heads", as_heads ? config.heads : config.kv_heads);
  config.vocabulary_size = fields.Dimension("vocab_size");
  config.context_window = fields.DimensionOr("max_position_embeddings", config.context_window);
  config.tied_embeddings = fields.FlagOr("tie_word_embeddings", false);
  config.rms_norm_eps = fields.PositiveOr("rms_norm_eps", config.rms_norm_eps);
  fields.Require("hidden_act", {"\"silu\"", "\"swish\""});  // Two names of one function.
}

void ReadHeads(ConfigFields& fields, ModelConfig& config) {
  if (config.latent) {
    fields.Has("head_dim");  // Written by some versions of transformers; the parts of a head say more.
    config.kv_heads = config.heads;
    return;
  }
  if (!fields.Has("head_dim") && config.hidden_size % config.heads != 0) {
    fields.Fail("num_attention_heads", "must divide hidden_size");
  }
  const int even_share = config.hidden_size / config.heads;
  config.head_dim = fields.DimensionOr("head_dim", even_share);
  // Their code does not read it, or only in part.
  if (config.family != Family::kOlmoe && config.family != Family::kDeepseek) return;
  fields.RequireSame("head_dim", even_share, "hidden_size / num_attention_heads");
}

void CheckConsistency(ConfigFields& fields, const ModelConfig& config) {
  if (config.heads % config.kv_heads != 0) fields.Fail("num_key_value_heads", "must divide num_attention_heads");
  if (config.rope_dim % 2 != 0) fields.Fail(config.latent ? "qk_rope_head_dim" : "head_dim", "must be even");
  if (config.experts_per_token > config.experts) {
    fields.Fail("num_experts_per_tok", absl::StrCat("is ", config.experts_per_token, ", above ",
                                                    ExpertsName(config.family), ", which is ", config.experts));
  }
  if (config.experts % config.expert_groups != 0) fields.Fail("n_group", "must divide n_routed_experts");
  if (config.groups_per_token > config.expert_groups ||
      config.experts_per_token > config.experts / config.expert_groups * config.groups_per_token) {
    fields.Fail("topk_group", "and n_group leave fewer experts than num_experts_per_tok");
  }
  const int64_t neurons = int64_t{config.experts} * config.intermediate_size + config.shared_intermediate_size;
  if (neurons * config.hidden_size > (int64_t{1} << 40)) {
    fields.Fail("intermediate_size", "makes layers of over 2^40 parameters");
  }
}

std::string Supported() {
  std::string names;
  for (const auto& known : kFamilies) absl::StrAppend(&names, names.empty() ? "" : ", ", known.architecture);
  return names;
}

}  // namespace

bool ModelConfig::IsMoeLayer(int layer) const {
  return std::binary_search(moe_layers.begin(), moe_layers.end(), layer);
}

void ModelConfig::FillDerived() {
  if (value_dim == 0) value_dim = head_dim;
  if (rope_dim == 0) rope_dim = head_dim;
  if (attention_scale == 0) attention_scale = 1 / std::sqrt(static_cast<double>(head_dim));
  if (!moe_layers.empty()) return;
  for (int l = 0; l < layers; ++l) moe_layers.push_back(l);
}

absl::StatusOr<ModelConfig> ModelConfig::Parse(absl::string_view text, const std::string& path) {
  C3PO_ASSIGN_OR_RETURN(ConfigFields fields, ConfigFields::Parse(text, path));
  ModelConfig config;
  const std::vector<std::string> architectures = fields.Texts("architectures");
  if (architectures.size() != 1) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": architectures must name one class"));
  }
  config.architecture = architectures[0];
  const auto* known = std::find_if(std::begin(kFamilies), std::end(kFamilies),
                                   [&](const auto& row) { return row.architecture == config.architecture; });
  if (known == std::end(kFamilies)) {
    return absl::UnimplementedError(absl::StrCat(path, ": architectures: \"", config.architecture,
                                                 "\" is not supported; supported are ", Supported()));
  }
  if (const std::string type = fields.TextOr("model_type", known->model_type); type != known->model_type) {
    fields.Fail("model_type", absl::StrCat("is \"", type, "\", but architectures name ", config.architecture));
  }
  config.family = known->family;
  config.rms_norm_eps = known->rms_norm_eps;
  config.rope_theta = known->rope_theta;
  config.context_window = known->context_window;
  config.kv_heads = known->kv_heads;
  RefuseNulls(fields, config.family);
  ReadSizes(fields, config);
  C3PO_RETURN_IF_ERROR(fields.status());
  ReadFamily(fields, config);
  C3PO_RETURN_IF_ERROR(fields.status());
  if (!config.moe_layers.empty() && static_cast<int>(config.moe_layers.size()) < config.layers) {
    config.dense_intermediate_size = fields.Dimension("intermediate_size");
  }
  ReadHeads(fields, config);
  ReadSlidingWindow(fields, config);
  C3PO_RETURN_IF_ERROR(fields.status());
  config.FillDerived();
  ReadRope(fields, config);
  for (const int id : fields.Counts("eos_token_id")) {
    if (id >= config.vocabulary_size) {
      fields.Fail("eos_token_id", absl::StrCat("has ", id, ", but vocab_size is ", config.vocabulary_size));
    }
    config.eos_token_ids.push_back(id);
  }
  ReadPackedFormats(fields);  // Refused here, by name; used where the weights are opened.
  const std::vector<std::string> rest = fields.NotAsked();
  for (const auto& [name, neutral] : OptionsOfOthers()) {
    if (std::find(rest.begin(), rest.end(), name) != rest.end()) fields.Require(name, neutral);
  }
  C3PO_RETURN_IF_ERROR(fields.status());
  CheckConsistency(fields, config);
  C3PO_RETURN_IF_ERROR(fields.status());
  return config;
}

}  // namespace c3po
