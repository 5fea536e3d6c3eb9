// What each family's config.json says, with the defaults of its Hugging Face class, and what of it is refused.

#include "server/model/model_config.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/model/config_fields.h"

namespace c3po {
namespace {

using Family = ModelConfig::Family;

constexpr int64_t kSharedNeuronsMax = 1 << 20;  // As many as a single dimension may have.

constexpr struct {
  Family family;
  const char* architecture;
  double rms_norm_eps, rope_theta;  // where config.json does not say
} kFamilies[] = {
    {Family::kOlmoe, "OlmoeForCausalLM", 1e-5, 10000},
    {Family::kMixtral, "MixtralForCausalLM", 1e-5, 1e6},
    {Family::kQwen2Moe, "Qwen2MoeForCausalLM", 1e-6, 10000},
    {Family::kQwen3Moe, "Qwen3MoeForCausalLM", 1e-6, 10000},
    {Family::kDeepseek, "DeepseekForCausalLM", 1e-6, 10000},
    {Family::kDeepseekV2, "DeepseekV2ForCausalLM", 1e-6, 10000},
    {Family::kGraniteMoe, "GraniteMoeForCausalLM", 1e-6, 10000},
};

// Options of other models' arithmetic, and the values at which they change nothing. Families that implement one read
// it; for the others it is refused.
const std::vector<std::pair<const char*, std::vector<std::string>>>& OptionsOfOthers() {
  static const auto* const kOptions = new std::vector<std::pair<const char*, std::vector<std::string>>>{
      {"alibi", {"false"}},
      {"attention_bias", {"false"}},
      {"attention_multiplier", {}},
      {"attn_logit_softcapping", {}},
      {"clip_qkv", {}},
      {"embedding_multiplier", {"1"}},
      {"final_logit_softcapping", {}},
      {"first_k_dense_replace", {"0"}},
      {"kv_lora_rank", {}},
      {"layer_types", {}},
      {"lm_head_bias", {"false"}},
      {"logit_scale", {"1"}},
      {"logits_scaling", {"1"}},
      {"mlp_bias", {"false"}},
      {"mlp_only_layers", {"[]"}},
      {"moe_layer_freq", {"1"}},
      {"n_group", {"1"}},
      {"n_shared_experts", {"0"}},
      {"num_nextn_predict_layers", {"0"}},
      {"partial_rotary_factor", {"1"}},
      {"q_lora_rank", {}},
      {"qk_layernorm", {"false"}},
      {"qkv_bias", {"false"}},
      {"quantization_config", {}},
      {"query_pre_attn_scalar", {}},
      {"residual_multiplier", {"1"}},
      {"routed_scaling_factor", {"1"}},
      {"scoring_func", {"\"softmax\""}},
      {"shared_intermediate_size", {"0"}},
      {"topk_method", {"\"greedy\""}},
      {"use_bias", {"false"}},
      {"use_parallel_residual", {"false"}},
      {"use_qk_norm", {"false"}},
      {"use_qkv_bias", {"false"}},
      {"zero_expert_num", {"0"}},
  };
  return *kOptions;
}

// A window that covers the whole context, and one that is switched off, change nothing.
void ReadSlidingWindow(ConfigFields& fields, const ModelConfig& config) {
  if (fields.Has("sliding_window") && fields.FlagOr("use_sliding_window", true)) {
    const int window = fields.Dimension("sliding_window");
    if (window < config.context_window) {
      fields.Refuse("sliding_window", absl::StrCat(window, ", below max_position_embeddings,"));
    }
  }
  for (const std::string& type : fields.Texts("layer_types")) {
    if (type != "full_attention") fields.Refuse("layer_types", absl::StrCat("\"", type, "\""));
  }
}

void ReadYarn(ConfigFields& rope, bool latent, ModelConfig& config) {
  RopeScaling& scaling = config.rope_scaling;
  scaling.beta_fast = rope.PositiveOr("beta_fast", 32);
  scaling.beta_slow = rope.PositiveOr("beta_slow", 1);
  rope.Require("truncate", {"true"});
  const double mscale = rope.PositiveOr("mscale", 0), all_dim = rope.PositiveOr("mscale_all_dim", 0);
  // DeepSeek's own code and transformers disagree on what one of them alone means.
  if ((mscale > 0) != (all_dim > 0)) rope.Refuse(mscale > 0 ? "mscale" : "mscale_all_dim", "without the other");
  const double inferred = mscale > 0 ? YarnMagnitude(scaling.factor, mscale) / YarnMagnitude(scaling.factor, all_dim)
                                     : YarnMagnitude(scaling.factor, 1);
  scaling.attention_factor = rope.PositiveOr("attention_factor", inferred);
  if (latent && all_dim > 0) config.attention_scale *= std::pow(YarnMagnitude(scaling.factor, all_dim), 2);
}

void ReadRope(ConfigFields& fields, ModelConfig& config) {
  config.rope_theta = fields.PositiveOr("rope_theta", config.rope_theta);
  for (const char* name : {"rope_scaling", "rope_parameters"}) {
    if (!fields.Has(name)) continue;
    ConfigFields rope = fields.Object(name);
    RopeScaling& scaling = config.rope_scaling;
    const std::string older = rope.TextOr("type", "default"), type = rope.TextOr("rope_type", older);
    config.rope_theta = rope.PositiveOr("rope_theta", config.rope_theta);
    rope.Require("partial_rotary_factor", {"1"});
    if (type != "default") {
      scaling.factor = rope.PositiveOr("factor", 0);
      if (scaling.factor < 1) rope.Fail("factor", "must be a number of at least 1");
    }
    if (type == "llama3" || type == "yarn") {
      const int window = fields.DimensionOr("original_max_position_embeddings", config.context_window);
      scaling.original_context = rope.DimensionOr("original_max_position_embeddings", window);
    }
    if (type == "linear") {
      scaling.type = RopeScaling::Type::kLinear;
    } else if (type == "llama3") {
      scaling.type = RopeScaling::Type::kLlama3;
      scaling.low_frequency_factor = rope.PositiveOr("low_freq_factor", 1);
      scaling.high_frequency_factor = rope.PositiveOr("high_freq_factor", 4);
      if (scaling.high_frequency_factor <= scaling.low_frequency_factor) {
        rope.Fail("high_freq_factor", "must be above low_freq_factor");
      }
    } else if (type == "yarn") {
      scaling.type = RopeScaling::Type::kYarn;
      ReadYarn(rope, config.latent.has_value(), config);
    } else if (type != "default") {
      rope.Refuse("rope_type", absl::StrCat("\"", type, "\""));
    }
    for (const std::string& unknown : rope.NotAsked()) {
      if (type != "default") rope.Refuse(unknown, absl::StrCat("for the type \"", type, "\""));
    }
    fields.Adopt(rope.status());
  }
}

// Qwen: every decoder_sparse_step-th layer, but for a list of dense ones.
void ReadSparseStep(ConfigFields& fields, ModelConfig& config) {
  const int step = fields.DimensionOr("decoder_sparse_step", 1);
  const std::vector<int> dense = fields.Counts("mlp_only_layers");
  for (int l = 0; l < config.layers && step > 0; ++l) {
    if ((l + 1) % step == 0 && std::find(dense.begin(), dense.end(), l) == dense.end()) config.moe_layers.push_back(l);
  }
  if (config.moe_layers.empty()) fields.Fail("decoder_sparse_step", "and mlp_only_layers leave no MoE layer");
}

// DeepSeek: dense layers at the bottom, then every moe_layer_freq-th.
void ReadDenseBottom(ConfigFields& fields, ModelConfig& config) {
  const int dense = fields.CountOr("first_k_dense_replace", 0), step = fields.DimensionOr("moe_layer_freq", 1);
  for (int l = dense; l < config.layers && step > 0; ++l) {
    if (l % step == 0) config.moe_layers.push_back(l);
  }
  if (config.moe_layers.empty()) fields.Fail("first_k_dense_replace", "and moe_layer_freq leave no MoE layer");
}

void ReadQwen(ConfigFields& fields, ModelConfig& config) {
  config.experts = fields.Dimension("num_experts");
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

void ReadDeepseek(ConfigFields& fields, ModelConfig& config) {
  config.experts = fields.Dimension("n_routed_experts");
  config.experts_per_token = fields.Dimension("num_experts_per_tok");
  config.intermediate_size = fields.Dimension("moe_intermediate_size");
  const int64_t shared = int64_t{fields.CountOr("n_shared_experts", 0)} * config.intermediate_size;
  if (shared > kSharedNeuronsMax) fields.Fail("n_shared_experts", absl::StrCat("makes ", shared, " shared neurons"));
  config.shared_intermediate_size = static_cast<int>(std::min<int64_t>(shared, kSharedNeuronsMax));
  config.norm_topk_prob = fields.FlagOr("norm_topk_prob", false);
  config.qkv_bias = config.output_bias = fields.FlagOr("attention_bias", false);
  ReadDenseBottom(fields, config);
  if (config.family == Family::kDeepseek) return;
  config.routed_scaling_factor = fields.PositiveOr("routed_scaling_factor", 1);
  if (config.norm_topk_prob && config.routed_scaling_factor != 1) {
    // DeepSeek's own code does not scale weights that it normalizes; other implementations do.
    fields.Refuse("norm_topk_prob", "true with a routed_scaling_factor other than 1");
  }
  const std::string method = fields.TextOr("topk_method", "greedy");
  if (method == "group_limited_greedy") {
    config.expert_groups = fields.Dimension("n_group");
    config.groups_per_token = fields.Dimension("topk_group");
  } else if (method != "greedy") {
    fields.Refuse("topk_method", absl::StrCat("\"", method, "\""));
  } else {
    fields.Has("n_group");  // Greedy selection does not look at groups.
  }
  LatentAttention latent;
  latent.query_rank = fields.CountOr("q_lora_rank", 0);
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
      config.experts = fields.DimensionOr("num_experts", 64);
      config.experts_per_token = fields.DimensionOr("num_experts_per_tok", 8);
      config.norm_topk_prob = fields.FlagOr("norm_topk_prob", false);
      config.qkv_bias = config.output_bias = fields.FlagOr("attention_bias", false);
      if (fields.Has("clip_qkv")) config.clip_qkv = fields.PositiveOr("clip_qkv", 0);
      break;
    case Family::kMixtral:
      config.norm_topk_prob = true;
      config.experts = fields.DimensionOr("num_local_experts", 8);
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
      config.experts = fields.DimensionOr("num_local_experts", 8);
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

void ReadSizes(ConfigFields& fields, ModelConfig& config) {
  config.hidden_size = fields.Dimension("hidden_size");
  config.layers = fields.Dimension("num_hidden_layers");
  config.heads = fields.Dimension("num_attention_heads");
  config.kv_heads = fields.DimensionOr("num_key_value_heads", config.heads);
  config.vocabulary_size = fields.Dimension("vocab_size");
  config.context_window = fields.DimensionOr("max_position_embeddings", 4096);
  config.tied_embeddings = fields.FlagOr("tie_word_embeddings", false);
  config.rms_norm_eps = fields.PositiveOr("rms_norm_eps", config.rms_norm_eps);
  if (const std::string act = fields.TextOr("hidden_act", "silu"); act != "silu") {
    fields.Refuse("hidden_act", absl::StrCat("\"", act, "\""));
  }
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
  config.head_dim = fields.DimensionOr("head_dim", config.hidden_size / config.heads);
}

void CheckConsistency(ConfigFields& fields, const ModelConfig& config) {
  if (config.heads % config.kv_heads != 0) fields.Fail("num_key_value_heads", "must divide num_attention_heads");
  if (config.rope_dim % 2 != 0) fields.Fail(config.latent ? "qk_rope_head_dim" : "head_dim", "must be even");
  if (config.experts_per_token > config.experts) {
    fields.Fail("num_experts_per_tok",
                absl::StrCat("is ", config.experts_per_token, ", above the ", config.experts, " experts"));
  }
  if (config.experts % config.expert_groups != 0) fields.Fail("n_group", "must divide n_routed_experts");
  if (config.groups_per_token > config.expert_groups ||
      config.experts_per_token > config.experts / config.expert_groups * config.groups_per_token) {
    fields.Fail("topk_group", "leaves fewer experts than num_experts_per_tok");
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

double YarnMagnitude(double factor, double m) { return factor <= 1 ? 1 : 0.1 * m * std::log(factor) + 1; }

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
    return absl::UnimplementedError(absl::StrCat(path, ": architecture \"", config.architecture,
                                                 "\" is not supported; supported are ", Supported()));
  }
  config.family = known->family;
  config.rms_norm_eps = known->rms_norm_eps;
  config.rope_theta = known->rope_theta;
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
    if (id >= config.vocabulary_size) fields.Fail("eos_token_id", "must be token ids of the vocabulary");
    config.eos_token_ids.push_back(id);
  }
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
