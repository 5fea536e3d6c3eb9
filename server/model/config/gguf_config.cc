#include "server/model/config/gguf_config.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

using Family = ModelConfig::Family;
using Json = nlohmann::json;

struct FamilyRow {
  GgufFamily family;
  const char* class_name;
  const char* model_type;
  const char* experts;  // The name of their number in config.json.
};
constexpr FamilyRow kFamilies[] = {
    {{"olmoe", Family::kOlmoe, false}, "OlmoeForCausalLM", "olmoe", "num_experts"},
    {{"qwen2moe", Family::kQwen2Moe, false}, "Qwen2MoeForCausalLM", "qwen2_moe", "num_experts"},
    {{"qwen3moe", Family::kQwen3Moe, false}, "Qwen3MoeForCausalLM", "qwen3_moe", "num_experts"},
    {{"deepseek", Family::kDeepseek, true}, "DeepseekForCausalLM", "deepseek", "n_routed_experts"},
    {{"deepseek2", Family::kDeepseekV2, false}, "DeepseekV2ForCausalLM", "deepseek_v2", "n_routed_experts"},
    {{"llama", Family::kMixtral, true}, "MixtralForCausalLM", "mixtral", "num_local_experts"},
    {{"granitemoe", Family::kGraniteMoe, true}, "GraniteMoeForCausalLM", "granitemoe", "num_local_experts"},
};

absl::StatusOr<const FamilyRow*> RowOf(const GgufFile& file) {
  constexpr char kKey[] = "general.architecture";
  const GgufValue* const value = file.Find(kKey);
  const std::optional<absl::string_view> name = value == nullptr ? std::nullopt : value->Text();
  if (!name) return absl::InvalidArgumentError(absl::StrCat(file.path(), ": key \"", kKey, "\" must be a string"));
  std::string supported;
  for (const FamilyRow& row : kFamilies) {
    if (*name == row.family.architecture) return &row;
    absl::StrAppend(&supported, supported.empty() ? "" : ", ", row.family.architecture);
  }
  return absl::UnimplementedError(
      absl::StrCat(file.path(), ": ", kKey, ": ", Quoted(*name), " is not supported; supported are ", supported));
}

constexpr int64_t kIntegerMax = INT32_MAX;  // Far above any model; keeps sums in int64.

// The double that is written as the shortest decimal of a float32.
double AsWritten(float value) {
  char text[64];
  const std::to_chars_result end = std::to_chars(text, text + sizeof text, value);
  double wide = value;
  std::from_chars(text, end.ptr, wide);
  return wide;
}

// Reads the keys of one architecture; the first error sticks. Remembers which ones were asked for.
class Keys {
 public:
  Keys(const GgufFile& file, absl::string_view architecture) : file_(file), prefix_(absl::StrCat(architecture, ".")) {}

  bool Has(absl::string_view name) {
    const auto [asked, is_new] = asked_.insert(absl::StrCat(prefix_, name));
    return file_.Find(*asked) != nullptr;
  }
  std::optional<int64_t> IntegerIfAny(absl::string_view name) {
    if (!Has(name)) return std::nullopt;
    const std::optional<int64_t> integer = Value(name).Integer();
    if (!integer || *integer < 0 || *integer > kIntegerMax) {
      return Fail(name, absl::StrCat("must be an integer in [0, ", kIntegerMax, "]")), std::nullopt;
    }
    return integer;
  }
  int64_t Integer(absl::string_view name) {
    if (!Has(name)) return Fail(name, "is missing"), 0;
    return IntegerIfAny(name).value_or(0);
  }
  std::optional<double> FloatIfAny(absl::string_view name) {
    if (!Has(name)) return std::nullopt;
    const std::optional<float> number = Value(name).Float();
    if (!number || !std::isfinite(*number)) return Fail(name, "must be a finite floating-point number"), std::nullopt;
    return AsWritten(*number);
  }
  bool FlagOr(absl::string_view name, bool fallback) {
    if (!Has(name)) return fallback;
    const std::optional<bool> flag = Value(name).Bool();
    if (!flag) Fail(name, "must be a boolean");
    return flag.value_or(fallback);
  }
  std::string TextOr(absl::string_view name, absl::string_view fallback) {
    if (!Has(name)) return std::string(fallback);
    const std::optional<absl::string_view> text = Value(name).Text();
    if (!text) Fail(name, "must be a string");
    return std::string(text.value_or(fallback));
  }
  // Refuses another value than one that changes nothing.
  void RequireInteger(absl::string_view name, int64_t neutral, absl::string_view why) {
    const std::optional<int64_t> value = IntegerIfAny(name);
    if (value && *value != neutral) Refuse(name, absl::StrCat(*value, ", which is not ", why, ","));
  }
  void RequireFloat(absl::string_view name, double neutral) {
    const std::optional<double> value = FloatIfAny(name);
    if (value && *value != neutral) Refuse(name, absl::StrCat(*value));
  }

  void Fail(absl::string_view name, absl::string_view what) {
    Adopt(absl::InvalidArgumentError(
        absl::StrCat(file_.path(), ": key ", Quoted(absl::StrCat(prefix_, name)), " ", what)));
  }
  void Refuse(absl::string_view name, absl::string_view what) {
    Adopt(absl::UnimplementedError(
        absl::StrCat(file_.path(), ": key ", Quoted(absl::StrCat(prefix_, name)), " ", what, " is not supported")));
  }
  const std::set<std::string>& asked() const { return asked_; }
  const absl::Status& status() const { return status_; }

 private:
  const GgufValue& Value(absl::string_view name) const { return *file_.Find(absl::StrCat(prefix_, name)); }
  void Adopt(const absl::Status& status) {
    if (status_.ok()) status_ = status;
  }

  const GgufFile& file_;
  const std::string prefix_;
  std::set<std::string> asked_;
  absl::Status status_;
};

constexpr double kDivisorErrorMax = 1e-4;  // Of float32 frequencies at long waves.
constexpr double kTwoPi = 6.283185307179586;
constexpr double kLlama3Low = 1, kLlama3High = 4;
constexpr int kLlama3Context = 8192;

// What divides the frequency theta^(-2 i / dim) in Llama 3.1 and 3.2 (rope_scaling.h).
double Llama3Divisor(double theta, int64_t i, int64_t dim, double factor) {
  const double frequency = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(dim));
  const double waves = kLlama3Context * frequency / kTwoPi;
  const double kept = std::clamp((waves - kLlama3Low) / (kLlama3High - kLlama3Low), 0.0, 1.0);
  return 1 / (kept + (1 - kept) / factor);
}

// rope_scaling of the divisors that llama.cpp's converter stores.
absl::StatusOr<Json> Llama3Of(const GgufFile& file, const TensorView& divisors, double theta) {
  const std::string where = absl::StrCat(file.path(), ": tensor \"", kGgufRopeDivisors, "\"");
  if (divisors.dtype != DType::kF32 || divisors.shape.size() != 1 || divisors.elements() == 0) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": must be a vector of F32"));
  }
  std::vector<float> values(static_cast<size_t>(divisors.elements()));
  std::memcpy(values.data(), divisors.bytes.data(), divisors.bytes.size());
  const double factor = AsWritten(*std::max_element(values.begin(), values.end()));
  bool known = std::isfinite(factor) && factor >= 1;
  for (size_t i = 0; known && i < values.size(); ++i) {
    const double expected = Llama3Divisor(theta, static_cast<int64_t>(i), 2 * divisors.elements(), factor);
    known = std::abs(values[i] - expected) <= kDivisorErrorMax * expected;
  }
  if (!known) {
    return absl::UnimplementedError(absl::StrCat(
        where, ": other divisors than those of Llama 3 (low_freq_factor ", kLlama3Low, ", high_freq_factor ",
        kLlama3High, ", original_max_position_embeddings ", kLlama3Context, ") are not supported"));
  }
  return Json{{"rope_type", "llama3"},
              {"factor", factor},
              {"low_freq_factor", kLlama3Low},
              {"high_freq_factor", kLlama3High},
              {"original_max_position_embeddings", kLlama3Context}};
}

void ReadRope(Keys& keys, Json& config) {
  config["rope_theta"] = keys.FloatIfAny("rope.freq_base").value_or(10000);
  keys.RequireFloat("rope.scale_linear", 1);
  const std::string type = keys.TextOr("rope.scaling.type", "none");
  const std::optional<double> factor = keys.FloatIfAny("rope.scaling.factor");
  if (type == "none") {
    if (factor && *factor != 1) keys.Fail("rope.scaling.factor", "is of no type");
    return;
  }
  Json scaling = {{"rope_type", type}, {"factor", factor.value_or(0)}};
  if (type == "yarn") {
    scaling["original_max_position_embeddings"] = keys.Integer("rope.scaling.original_context_length");
    for (const auto& [key, field] : {std::pair{"rope.scaling.yarn_attn_factor", "attention_factor"},
                                     std::pair{"rope.scaling.yarn_beta_fast", "beta_fast"},
                                     std::pair{"rope.scaling.yarn_beta_slow", "beta_slow"}}) {
      if (const std::optional<double> value = keys.FloatIfAny(key)) scaling[field] = *value;
    }
    keys.RequireFloat("rope.scaling.yarn_ext_factor", 1);
    // The converter stores a tenth of mscale_all_dim, and not mscale, which is the same in all known models.
    if (const std::optional<double> tenth = keys.FloatIfAny("rope.scaling.yarn_log_multiplier")) {
      scaling["mscale"] = scaling["mscale_all_dim"] = AsWritten(static_cast<float>(*tenth * 10));
    }
  } else if (type != "linear") {
    keys.Refuse("rope.scaling.type", Quoted(type));
  }
  config["rope_scaling"] = scaling;
}

// Numbers of a head, without latent attention.
void ReadHeads(Keys& keys, Json& config) {
  config["num_key_value_heads"] =
      keys.IntegerIfAny("attention.head_count_kv").value_or(keys.Integer("attention.head_count"));
  const std::optional<int64_t> key = keys.IntegerIfAny("attention.key_length");
  const std::optional<int64_t> value = keys.IntegerIfAny("attention.value_length");
  const int64_t heads = keys.Integer("attention.head_count"),
                even = heads > 0 ? keys.Integer("embedding_length") / heads : 0;
  const int64_t head = key.value_or(even);
  if (value.value_or(even) != head) keys.Fail("attention.value_length", "is not attention.key_length");
  if (key) config["head_dim"] = head;
  keys.RequireInteger("rope.dimension_count", head, "the size of a head");
}

void ReadLatentAttention(Keys& keys, Json& config) {
  const int64_t rank = keys.Integer("attention.kv_lora_rank"), rope = keys.Integer("rope.dimension_count");
  // Files of before the split of kv_b_proj describe heads as they are.
  const bool split = keys.Has("attention.key_length_mla");
  const int64_t key = keys.Integer(split ? "attention.key_length_mla" : "attention.key_length");
  const int64_t value = keys.Integer(split ? "attention.value_length_mla" : "attention.value_length");
  if (split) {
    keys.RequireInteger("attention.key_length", rank + rope, "attention.kv_lora_rank + rope.dimension_count");
    keys.RequireInteger("attention.value_length", rank, "attention.kv_lora_rank");
    keys.RequireInteger("attention.head_count_kv", 1, "1");
  } else {
    keys.RequireInteger("attention.head_count_kv", keys.Integer("attention.head_count"), "attention.head_count");
  }
  config["kv_lora_rank"] = rank;
  config["qk_rope_head_dim"] = rope;
  config["qk_nope_head_dim"] = key - rope;
  config["v_head_dim"] = value;
  const std::optional<int64_t> query = keys.IntegerIfAny("attention.q_lora_rank");
  config["q_lora_rank"] = query ? Json(*query) : Json();
}

void ReadDeepseek(Keys& keys, bool second, Json& config) {
  config["moe_intermediate_size"] = keys.Integer("expert_feed_forward_length");
  config["n_shared_experts"] = keys.IntegerIfAny("expert_shared_count").value_or(0);
  config["first_k_dense_replace"] = keys.IntegerIfAny("leading_dense_block_count").value_or(0);
  config["norm_topk_prob"] = keys.FlagOr("expert_weights_norm", false);
  keys.RequireInteger("nextn_predict_layers", 0, "0");
  if (!second) {
    keys.RequireFloat("expert_weights_scale", 1);
    return;
  }
  const double scale = keys.FloatIfAny("expert_weights_scale").value_or(1);
  config["routed_scaling_factor"] = scale == 0 ? 1 : scale;  // 0: none, as llama.cpp reads it.
  const int64_t groups = keys.IntegerIfAny("expert_group_count").value_or(1);
  const int64_t used = keys.IntegerIfAny("expert_group_used_count").value_or(1);
  if (groups > 1) {
    config["topk_method"] = "group_limited_greedy";
    config["n_group"] = groups;
    config["topk_group"] = used;
  }
}

void ReadFamily(Keys& keys, Family family, Json& config) {
  switch (family) {
    case Family::kOlmoe:
      if (const auto clamp = keys.FloatIfAny("attention.clamp_kqv"); clamp && *clamp != 0) config["clip_qkv"] = *clamp;
      config["norm_topk_prob"] = keys.FlagOr("expert_weights_norm", false);
      break;
    case Family::kMixtral:
      break;
    case Family::kQwen2Moe:
      config["shared_expert_intermediate_size"] = keys.Integer("expert_shared_feed_forward_length");
      [[fallthrough]];
    case Family::kQwen3Moe:
      config["moe_intermediate_size"] = keys.Integer("expert_feed_forward_length");
      config["norm_topk_prob"] = keys.FlagOr("expert_weights_norm", family == Family::kQwen3Moe);
      break;
    case Family::kDeepseek:
    case Family::kDeepseekV2:
      ReadDeepseek(keys, family == Family::kDeepseekV2, config);
      break;
    case Family::kGraniteMoe:
      for (const auto& [key, field] :
           {std::pair{"attention.scale", "attention_multiplier"}, std::pair{"embedding_scale", "embedding_multiplier"},
            std::pair{"residual_scale", "residual_multiplier"}, std::pair{"logit_scale", "logits_scaling"}}) {
        if (const std::optional<double> value = keys.FloatIfAny(key)) config[field] = *value;
      }
      break;
  }
}

std::vector<int64_t> EndTokensOf(Keys& tokenizer) {
  std::vector<int64_t> ends;
  for (const char* name : {"ggml.eos_token_id", "ggml.eot_token_id", "ggml.eom_token_id"}) {
    const std::optional<int64_t> id = tokenizer.IntegerIfAny(name);
    if (id && std::find(ends.begin(), ends.end(), *id) == ends.end()) ends.push_back(*id);
  }
  return ends;
}

int64_t VocabularyOf(const GgufFile& file, Keys& keys, Keys& tokenizer) {
  if (const std::optional<int64_t> size = keys.IntegerIfAny("vocab_size")) return *size;
  const GgufValue* const tokens = file.Find("tokenizer.ggml.tokens");
  if (tokens == nullptr || !tokens->is_array) return tokenizer.Fail("ggml.tokens", "must be a list of strings"), 0;
  return static_cast<int64_t>(tokens->count);
}

absl::Status RefuseUnread(const GgufFile& file, const std::set<std::string>& asked) {
  for (const auto& [key, value] : file.metadata()) {
    const bool told = absl::StartsWith(key, "general.") || absl::StartsWith(key, "tokenizer.") ||
                      absl::StartsWith(key, "split.") || absl::StartsWith(key, "quantize.");
    if (!told && asked.count(key) == 0) {
      return absl::UnimplementedError(absl::StrCat(file.path(), ": key ", Quoted(key), " is not supported"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<GgufFamily> FamilyOfGguf(const GgufFile& file) {
  C3PO_ASSIGN_OR_RETURN(const FamilyRow* const row, RowOf(file));
  return row->family;
}

absl::StatusOr<std::string> ConfigOfGguf(const GgufFile& file,
                                         absl::FunctionRef<const TensorView*(absl::string_view)> find) {
  C3PO_ASSIGN_OR_RETURN(const FamilyRow* const row, RowOf(file));
  const Family family = row->family.family;
  Keys keys(file, row->family.architecture), tokenizer(file, "tokenizer");
  Json config = {{"architectures", {row->class_name}}, {"model_type", row->model_type}, {"hidden_act", "silu"}};
  config["num_hidden_layers"] = keys.Integer("block_count");
  config["max_position_embeddings"] = keys.Integer("context_length");
  config["hidden_size"] = keys.Integer("embedding_length");
  config["intermediate_size"] = keys.Integer("feed_forward_length");
  config["num_attention_heads"] = keys.Integer("attention.head_count");
  if (const auto epsilon = keys.FloatIfAny("attention.layer_norm_rms_epsilon")) {
    config["rms_norm_eps"] = *epsilon;
  } else {
    keys.Fail("attention.layer_norm_rms_epsilon", "is missing");
  }
  config["vocab_size"] = VocabularyOf(file, keys, tokenizer);
  config["tie_word_embeddings"] = find("output.weight") == nullptr;
  config[row->experts] = keys.Integer("expert_count");
  config["num_experts_per_tok"] = keys.Integer("expert_used_count");
  keys.RequireInteger("expert_gating_func", 1, "softmax, 1");
  if (!keys.FlagOr("attention.causal", true)) keys.Refuse("attention.causal", "false");
  const auto has = [find](absl::string_view name) { return find(name) != nullptr; };
  const bool bias = has("blk.0.attn_q.bias") || has("blk.0.attn_q_a.bias") || has("blk.0.attn_qkv.bias");
  if (family == Family::kQwen2Moe) {
    config["qkv_bias"] = bias;
  } else if (bias && family != Family::kMixtral) {
    config["attention_bias"] = true;
  }
  family == Family::kDeepseekV2 ? ReadLatentAttention(keys, config) : ReadHeads(keys, config);
  ReadFamily(keys, family, config);
  ReadRope(keys, config);
  if (const TensorView* const divisors = find(kGgufRopeDivisors); divisors != nullptr && keys.status().ok()) {
    if (config.contains("rope_scaling")) keys.Fail("rope.scaling.type", "contradicts the tensor rope_freqs.weight");
    C3PO_ASSIGN_OR_RETURN(config["rope_scaling"], Llama3Of(file, *divisors, config["rope_theta"]));
  }
  if (const std::vector<int64_t> ends = EndTokensOf(tokenizer); !ends.empty()) config["eos_token_id"] = ends;
  C3PO_RETURN_IF_ERROR(keys.status());
  C3PO_RETURN_IF_ERROR(tokenizer.status());
  C3PO_RETURN_IF_ERROR(RefuseUnread(file, keys.asked()));
  return config.dump(1);
}

}  // namespace c3po
