#include "server/embed/bert_config.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "index/base/durable_file.h"
#include "index/base/python_json.h"
#include "index/base/status_macros.h"
#include "server/weights/checkpoint.h"

namespace c3po {
namespace {

using nlohmann::json;

constexpr int64_t kJsonBytesMax = 4 << 20;

// One JSON file with errors that name it and the field.
class Settings {
 public:
  static absl::StatusOr<Settings> Parse(const std::string& path, const std::string& text) {
    json value = json::parse(QuoteNonFinite(text), nullptr, /*allow_exceptions=*/false);
    if (value.is_discarded()) return absl::InvalidArgumentError(absl::StrCat(path, ": not JSON"));
    return Settings(path, std::move(value));
  }

  const json& value() const { return value_; }
  // Null when the field is missing, null, or the file holds no object.
  const json* Find(const char* field) const {
    if (!value_.is_object()) return nullptr;
    const auto found = value_.find(field);
    return found == value_.end() || found->is_null() ? nullptr : &*found;
  }
  absl::Status Refuse(absl::string_view field, absl::string_view problem) const {
    return absl::InvalidArgumentError(absl::StrCat(path_, ": ", field, " ", problem));
  }
  // `missing`: the value of a missing field; negative: it must be there.
  absl::Status ReadInt(const char* field, int min, int max, int missing, int* out) const {
    const json* value = Find(field);
    if (value == nullptr && missing >= 0) {
      *out = missing;
      return absl::OkStatus();
    }
    if (value == nullptr) return Refuse(field, "is missing");
    if (!value->is_number_integer() || *value < min || *value > max) {
      return Refuse(field, absl::StrCat("must be an integer in [", min, ", ", max, "]"));
    }
    *out = value->get<int>();
    return absl::OkStatus();
  }
  // Refuses any value but `only`; a missing field counts as `only`.
  absl::Status Require(const char* field, const json& only) const {
    const json* value = Find(field);
    if (value == nullptr || *value == only) return absl::OkStatus();
    return Refuse(field, absl::StrCat("= ", Show(*value), " is not supported, only ", Show(only)));
  }

 private:
  Settings(std::string path, json value) : path_(std::move(path)), value_(std::move(value)) {}
  static std::string Show(const json& value) {
    return value.dump(-1, ' ', false, json::error_handler_t::replace).substr(0, 80);
  }

  std::string path_;
  json value_;
};

// A file that may be absent: then nothing, no error.
absl::StatusOr<Settings> ReadOptional(const std::string& path) {
  absl::StatusOr<std::string> text = ReadWholeFile(path, kJsonBytesMax);
  if (absl::IsNotFound(text.status())) text = "{}";
  C3PO_RETURN_IF_ERROR(text.status());
  return Settings::Parse(path, *text);
}

absl::Status CheckPipeline(const std::string& folder) {
  C3PO_ASSIGN_OR_RETURN(const Settings modules, ReadOptional(folder + "/modules.json"));
  std::string pooling_folder = "1_Pooling";
  if (modules.value().is_array()) {
    for (const json& module : modules.value()) {
      const std::string type = module.is_object() && module.contains("type") && module["type"].is_string()
                                   ? module["type"].get<std::string>()
                                   : "";
      if (!absl::EndsWith(type, ".Transformer") && !absl::EndsWith(type, ".Pooling") &&
          !absl::EndsWith(type, ".Normalize")) {
        return modules.Refuse("type", absl::StrCat("\"", type, "\" is not supported"));
      }
      const bool has_path = module.is_object() && module.contains("path") && module["path"].is_string();
      if (absl::EndsWith(type, ".Pooling") && has_path) pooling_folder = module["path"].get<std::string>();
      if (absl::EndsWith(type, ".Transformer") && has_path && !module["path"].get<std::string>().empty())
        return modules.Refuse("path", "of the Transformer must be empty: its files lie in the folder itself");
    }
  }
  C3PO_ASSIGN_OR_RETURN(const Settings prompts, ReadOptional(folder + "/config_sentence_transformers.json"));
  C3PO_RETURN_IF_ERROR(prompts.Require("default_prompt_name", nullptr));  // It would go before every text.
  C3PO_ASSIGN_OR_RETURN(const Settings pooling,
                        ReadOptional(absl::StrCat(folder, "/", pooling_folder, "/config.json")));
  C3PO_RETURN_IF_ERROR(pooling.Require("pooling_mode_mean_tokens", true));
  for (const char* other : {"pooling_mode_cls_token", "pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens",
                            "pooling_mode_weightedmean_tokens", "pooling_mode_lasttoken"}) {
    C3PO_RETURN_IF_ERROR(pooling.Require(other, false));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<BertConfig> ReadBertConfig(const std::string& folder, const std::string& config_json) {
  C3PO_ASSIGN_OR_RETURN(const Settings settings, Settings::Parse(folder + "/config.json", config_json));
  if (settings.Find("model_type") == nullptr) return settings.Refuse("model_type", "is missing");
  C3PO_RETURN_IF_ERROR(settings.Require("model_type", "bert"));
  C3PO_RETURN_IF_ERROR(settings.Require("hidden_act", "gelu"));
  C3PO_RETURN_IF_ERROR(settings.Require("position_embedding_type", "absolute"));
  C3PO_RETURN_IF_ERROR(settings.Require("is_decoder", false));
  C3PO_RETURN_IF_ERROR(settings.Require("add_cross_attention", false));

  BertConfig config;
  C3PO_RETURN_IF_ERROR(settings.ReadInt("vocab_size", 1, 10'000'000, -1, &config.vocabulary));
  C3PO_RETURN_IF_ERROR(settings.ReadInt("hidden_size", 1, 65'536, -1, &config.hidden));
  C3PO_RETURN_IF_ERROR(settings.ReadInt("num_hidden_layers", 1, 1'000, -1, &config.layers));
  C3PO_RETURN_IF_ERROR(settings.ReadInt("num_attention_heads", 1, config.hidden, -1, &config.heads));
  if (config.hidden % config.heads != 0) return settings.Refuse("num_attention_heads", "does not divide hidden_size");
  C3PO_RETURN_IF_ERROR(settings.ReadInt("intermediate_size", 1, 1'000'000, -1, &config.intermediate));
  C3PO_RETURN_IF_ERROR(settings.ReadInt("max_position_embeddings", 2, 1'000'000, -1, &config.positions));
  C3PO_RETURN_IF_ERROR(settings.ReadInt("type_vocab_size", 1, 1'000, 2, &config.token_types));
  const json* eps = settings.Find("layer_norm_eps");
  if (eps != nullptr && !(eps->is_number() && *eps > 0 && *eps < 1)) {
    return settings.Refuse("layer_norm_eps", "must be a number in (0, 1)");
  }
  config.norm_eps = eps == nullptr ? 1e-12 : eps->get<double>();

  C3PO_RETURN_IF_ERROR(CheckPipeline(folder));
  C3PO_ASSIGN_OR_RETURN(const Settings sentence, ReadOptional(folder + "/sentence_bert_config.json"));
  C3PO_RETURN_IF_ERROR(sentence.Require("do_lower_case", false));
  C3PO_RETURN_IF_ERROR(sentence.ReadInt("max_seq_length", 2, config.positions, config.positions, &config.max_tokens));
  return config;
}

}  // namespace c3po
