#include "server/text/tokenizer_class.h"

#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "index/base/status_macros.h"
#include "server/text/json_field.h"

namespace c3po {
namespace {

enum class Flags { kIgnored, kHeeded, kHeededWithBosByDefault };

Flags FlagsOf(absl::string_view tokenizer_class) {
  absl::ConsumeSuffix(&tokenizer_class, "Fast");
  for (const absl::string_view name : {"LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer"}) {
    if (tokenizer_class == name) return Flags::kHeededWithBosByDefault;
  }
  return tokenizer_class == "GPTNeoXTokenizer" ? Flags::kHeeded : Flags::kIgnored;
}

// The class that transformers takes where tokenizer_config.json names none.
absl::StatusOr<std::string> ClassOfModel(const std::string& config_path) {
  std::error_code ignored;
  if (!std::filesystem::exists(config_path, ignored)) return "";
  C3PO_ASSIGN_OR_RETURN(const JsonField config, JsonField::ReadFile(config_path));
  C3PO_ASSIGN_OR_RETURN(const std::string named, config.StringMember("tokenizer_class", ""));
  if (!named.empty()) return named;
  C3PO_ASSIGN_OR_RETURN(const std::string type, config.StringMember("model_type", ""));
  for (const absl::string_view llama : {"mixtral", "deepseek_v2", "deepseek_v3", "llama"}) {
    if (type == llama) return "LlamaTokenizer";
  }
  return type == "olmoe" || type == "gpt_neox" ? "GPTNeoXTokenizer" : "";
}

// nullopt: the flag is not set.
absl::StatusOr<std::optional<std::string>> TokenIfSet(const JsonField& config, absl::string_view token, bool fallback) {
  const std::string flag = absl::StrCat("add_", token);
  C3PO_ASSIGN_OR_RETURN(const bool set, config.BoolMember(flag, fallback));
  if (!set) return std::nullopt;
  const std::optional<JsonField> field = config.Find(token);
  if (!field.has_value()) {
    const char* why = config.Find(flag).has_value() ? " is set" : " is the default of the tokenizer_class";
    return config.Error(absl::StrCat(flag, why, ", but there is no ", token));
  }
  C3PO_ASSIGN_OR_RETURN(std::string piece, field->is_object() ? field->StringMember("content") : field->AsString());
  return std::optional<std::string>(std::move(piece));
}

}  // namespace

absl::StatusOr<std::optional<SurroundingTokens>> ReadSurroundingTokens(const std::string& folder) {
  const std::filesystem::path path(folder);
  const std::string config_path = (path / "tokenizer_config.json").string();
  std::error_code ignored;
  if (!std::filesystem::exists(config_path, ignored)) return std::nullopt;
  C3PO_ASSIGN_OR_RETURN(const JsonField config, JsonField::ReadFile(config_path));
  if (config.Find("backend").has_value()) return std::nullopt;
  C3PO_ASSIGN_OR_RETURN(std::string tokenizer_class, config.StringMember("tokenizer_class", ""));
  if (tokenizer_class.empty()) {
    C3PO_ASSIGN_OR_RETURN(tokenizer_class, ClassOfModel((path / "config.json").string()));
  }
  const Flags flags = FlagsOf(tokenizer_class);
  if (flags == Flags::kIgnored) return std::nullopt;
  SurroundingTokens tokens;
  C3PO_ASSIGN_OR_RETURN(tokens.before,
                        TokenIfSet(config, "bos_token", /*fallback=*/flags == Flags::kHeededWithBosByDefault));
  C3PO_ASSIGN_OR_RETURN(tokens.after, TokenIfSet(config, "eos_token", /*fallback=*/false));
  return std::optional<SurroundingTokens>(std::move(tokens));
}

}  // namespace c3po
