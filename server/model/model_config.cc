#include "server/model/model_config.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

using Json = nlohmann::json;

constexpr int kDimensionMax = 1 << 20;  // Far above any model; keeps products of two dimensions in int64.

// Typed reads of one JSON object; the first error sticks.
class Fields {
 public:
  Fields(const Json& object, const std::string& path) : object_(object), path_(path) {}

  bool Has(const char* name) const { return object_.contains(name) && !object_[name].is_null(); }

  int Dimension(const char* name) {
    if (!Has(name)) return Fail(name, "is missing"), 0;
    const Json& value = object_[name];
    if (!value.is_number_integer()) return Fail(name, "must be an integer"), 0;
    const auto number = value.get<int64_t>();
    if (number < 1 || number > kDimensionMax)
      return Fail(name, absl::StrCat("is ", number, ", must be in [1, ", kDimensionMax, "]")), 0;
    return static_cast<int>(number);
  }
  int DimensionOr(const char* name, int fallback) { return Has(name) ? Dimension(name) : fallback; }

  double PositiveOr(const char* name, double fallback) {
    if (!Has(name)) return fallback;
    const Json& value = object_[name];
    if (!value.is_number() || !(value.get<double>() > 0) || !std::isfinite(value.get<double>())) {
      return Fail(name, "must be a positive number"), fallback;
    }
    return value.get<double>();
  }
  bool FlagOr(const char* name, bool fallback) {
    if (!Has(name)) return fallback;
    if (!object_[name].is_boolean()) return Fail(name, "must be true or false"), fallback;
    return object_[name].get<bool>();
  }
  std::string TextOr(const char* name, std::string fallback) {
    if (!Has(name)) return fallback;
    if (!object_[name].is_string()) return Fail(name, "must be a string"), fallback;
    return object_[name].get<std::string>();
  }

  void Fail(absl::string_view name, absl::string_view what) {
    if (status_.ok()) status_ = absl::InvalidArgumentError(absl::StrCat(path_, ": ", name, " ", what));
  }
  void Refuse(absl::string_view name, absl::string_view what) {
    if (status_.ok())
      status_ = absl::UnimplementedError(absl::StrCat(path_, ": ", name, " ", what, " is not supported"));
  }
  const absl::Status& status() const { return status_; }

 private:
  const Json& object_;
  const std::string& path_;
  absl::Status status_;
};

void ReadRope(const Json& json, Fields& fields, const std::string& path, ModelConfig& config) {
  config.rope_theta = fields.PositiveOr("rope_theta", 10000);
  for (const char* name : {"rope_scaling", "rope_parameters"}) {
    if (!fields.Has(name)) continue;
    if (!json[name].is_object()) return fields.Fail(name, "must be an object");
    Fields rope(json[name], path);
    const std::string type = rope.TextOr("rope_type", rope.TextOr("type", "default"));
    if (type != "default") return fields.Refuse(absl::StrCat(name, ".rope_type"), absl::StrCat("\"", type, "\""));
    config.rope_theta = rope.PositiveOr("rope_theta", config.rope_theta);
    if (!rope.status().ok()) return fields.Fail(name, rope.status().message());
  }
}

void ReadEndOfSequence(const Json& json, Fields& fields, ModelConfig& config) {
  if (!fields.Has("eos_token_id")) return;
  const Json list = json["eos_token_id"].is_array() ? json["eos_token_id"] : Json::array({json["eos_token_id"]});
  for (const Json& id : list) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() >= config.vocabulary_size) {
      return fields.Fail("eos_token_id", "must be token ids of the vocabulary");
    }
    config.eos_token_ids.push_back(id.get<int32_t>());
  }
}

void CheckConsistency(Fields& fields, const ModelConfig& config) {
  if (config.heads % config.kv_heads != 0) fields.Fail("num_key_value_heads", "must divide num_attention_heads");
  if (config.head_dim % 2 != 0) fields.Fail("head_dim", "must be even");
  if (config.experts_per_token > config.experts) {
    fields.Fail("num_experts_per_tok",
                absl::StrCat("is ", config.experts_per_token, ", above the ", config.experts, " experts"));
  }
  if (int64_t{config.experts} * config.intermediate_size * config.hidden_size > (int64_t{1} << 40)) {
    fields.Fail("intermediate_size", "makes layers of over 2^40 parameters");
  }
}

}  // namespace

absl::StatusOr<ModelConfig> ModelConfig::Parse(absl::string_view text, const std::string& path) {
  const Json json = Json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return absl::InvalidArgumentError(absl::StrCat(path, ": not a JSON object"));
  Fields fields(json, path);
  ModelConfig config;
  if (!json.contains("architectures") || !json["architectures"].is_array() || json["architectures"].size() != 1 ||
      !json["architectures"][0].is_string()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": architectures must name one class"));
  }
  config.architecture = json["architectures"][0].get<std::string>();
  if (config.architecture == "OlmoeForCausalLM") {
    config.family = Family::kOlmoe;
    config.qk_norm = true;
    config.experts = fields.DimensionOr("num_experts", 64);
    config.experts_per_token = fields.DimensionOr("num_experts_per_tok", 8);
    config.norm_topk_prob = fields.FlagOr("norm_topk_prob", false);
    if (fields.FlagOr("attention_bias", false)) fields.Refuse("attention_bias", "true");
    if (fields.Has("clip_qkv")) config.clip_qkv = fields.PositiveOr("clip_qkv", 0);
  } else if (config.architecture == "MixtralForCausalLM") {
    config.family = Family::kMixtral;
    config.norm_topk_prob = true;
    config.experts = fields.DimensionOr("num_local_experts", 8);
    config.experts_per_token = fields.DimensionOr("num_experts_per_tok", 2);
    if (fields.Has("sliding_window")) fields.Refuse("sliding_window", "other than null");
  } else {
    return absl::UnimplementedError(
        absl::StrCat(path, ": architecture \"", config.architecture,
                     "\" is not supported; supported are OlmoeForCausalLM and MixtralForCausalLM"));
  }
  config.hidden_size = fields.Dimension("hidden_size");
  config.layers = fields.Dimension("num_hidden_layers");
  config.heads = fields.Dimension("num_attention_heads");
  config.kv_heads = fields.DimensionOr("num_key_value_heads", config.heads);
  config.intermediate_size = fields.Dimension("intermediate_size");
  config.vocabulary_size = fields.Dimension("vocab_size");
  config.context_window = fields.DimensionOr("max_position_embeddings", 4096);
  config.tied_embeddings = fields.FlagOr("tie_word_embeddings", false);
  config.rms_norm_eps = fields.PositiveOr("rms_norm_eps", 1e-5);
  if (const std::string act = fields.TextOr("hidden_act", "silu"); act != "silu") {
    fields.Refuse("hidden_act", absl::StrCat("\"", act, "\""));
  }
  C3PO_RETURN_IF_ERROR(fields.status());
  if (!fields.Has("head_dim") && config.hidden_size % config.heads != 0) {
    fields.Fail("num_attention_heads", "must divide hidden_size");
  }
  config.head_dim = fields.DimensionOr("head_dim", config.hidden_size / config.heads);
  ReadRope(json, fields, path, config);
  ReadEndOfSequence(json, fields, config);
  C3PO_RETURN_IF_ERROR(fields.status());
  CheckConsistency(fields, config);
  C3PO_RETURN_IF_ERROR(fields.status());
  return config;
}

}  // namespace c3po
