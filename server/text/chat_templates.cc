#include "server/text/chat_templates.h"

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/durable_file.h"
#include "index/base/status_macros.h"
#include "server/text/gguf_tokenizer.h"
#include "server/text/json_field.h"
#include "server/text/utf8.h"
#include "server/weights/gguf_parts.h"

namespace c3po {
namespace {

constexpr int64_t kTemplateBytesMax = int64_t{1} << 20;  // The largest published ones have some 20 KB.
constexpr char kListOfTokens[] = "additional_special_tokens";

// A token: "text", or {"content": "text"}.
absl::StatusOr<std::string> TokenText(const JsonField& token) {
  return token.is_object() ? token.StringMember("content") : token.AsString();
}

absl::Status ReadTokens(const JsonField& config, ChatTemplates* templates) {
  nlohmann::json tokens = nlohmann::json::object();
  for (const char* name :
       {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"}) {
    const std::optional<JsonField> token = config.Find(name);
    if (!token.has_value()) continue;
    C3PO_ASSIGN_OR_RETURN(std::string text, TokenText(*token));
    if (!text.empty()) tokens[name] = std::move(text);
  }
  if (const std::optional<JsonField> list = config.Find(kListOfTokens); list.has_value() && list->is_array()) {
    nlohmann::json texts = nlohmann::json::array();
    C3PO_RETURN_IF_ERROR(list->ForEachElement([&texts](size_t, const JsonField& token) -> absl::Status {
      C3PO_ASSIGN_OR_RETURN(std::string text, TokenText(token));
      texts.push_back(std::move(text));
      return absl::OkStatus();
    }));
    if (!texts.empty()) tokens[kListOfTokens] = std::move(texts);
  }
  templates->bos_token = tokens.value("bos_token", "");
  templates->eos_token = tokens.value("eos_token", "");
  templates->special_tokens_json = tokens.dump();
  return absl::OkStatus();
}

absl::Status ReadOwnTemplates(const JsonField& config, ChatTemplates* templates) {
  const std::optional<JsonField> chat_template = config.Find("chat_template");
  if (!chat_template.has_value()) return absl::OkStatus();
  if (!chat_template->is_array()) {
    C3PO_ASSIGN_OR_RETURN(templates->standard, chat_template->AsString());
    return absl::OkStatus();
  }
  return chat_template->ForEachElement([templates](size_t, const JsonField& named) -> absl::Status {
    C3PO_ASSIGN_OR_RETURN(const std::string name, named.StringMember("name"));
    C3PO_ASSIGN_OR_RETURN(std::string text, named.StringMember("template"));
    if (name == "default") templates->standard = std::move(text);
    if (name == "tool_use") templates->tool_use = std::move(text);
    return absl::OkStatus();
  });
}

absl::StatusOr<std::string> ReadTemplate(const std::string& path) {
  C3PO_ASSIGN_OR_RETURN(std::string text, ReadWholeFile(path, kTemplateBytesMax));
  if (!IsValidUtf8(text)) return absl::InvalidArgumentError(absl::StrCat(path, ": is not valid UTF-8"));
  return text;
}

// Empty where there is no such file.
absl::StatusOr<std::string> ReadTemplateIfAny(const std::string& path) {
  absl::StatusOr<std::string> text = ReadTemplate(path);
  if (absl::IsNotFound(text.status())) return "";
  return text;
}

absl::StatusOr<JsonField> ReadGguf(const std::string& path) {
  C3PO_ASSIGN_OR_RETURN(const GgufTokenizer described, ReadGgufTokenizer(path));
  return JsonField::Parse(described.config_json, path);
}

}  // namespace

std::string ChatTemplates::ConfigPath(const std::string& model) {
  return IsGgufPath(model) ? model : (std::filesystem::path(model) / "tokenizer_config.json").string();
}

absl::StatusOr<ChatTemplates> ChatTemplates::Read(const std::string& config_path, const std::string& file) {
  const std::filesystem::path folder = std::filesystem::path(config_path).parent_path();
  const bool gguf = IsGgufPath(config_path);
  std::string origin = file.empty() ? (folder / "chat_template.jinja").string() : file;
  std::string standard, tool_use;
  if (!file.empty()) {
    C3PO_ASSIGN_OR_RETURN(standard, ReadTemplate(origin));
  } else if (!gguf) {
    C3PO_ASSIGN_OR_RETURN(standard, ReadTemplateIfAny(origin));
    C3PO_ASSIGN_OR_RETURN(tool_use,
                          ReadTemplateIfAny((folder / "additional_chat_templates" / "tool_use.jinja").string()));
  }
  ChatTemplates templates;
  templates.origin = config_path;
  const absl::StatusOr<JsonField> config = gguf ? ReadGguf(config_path) : JsonField::ReadFile(config_path);
  const bool may_lack = absl::IsNotFound(config.status()) && !standard.empty();
  if (!config.ok() && !may_lack) return config.status();
  if (config.ok()) {
    if (!config->is_object()) return config->Error("is no JSON object");
    C3PO_RETURN_IF_ERROR(ReadTokens(*config, &templates));
    C3PO_RETURN_IF_ERROR(ReadOwnTemplates(*config, &templates));
  }
  if (!standard.empty() || !file.empty()) {
    templates.origin = std::move(origin);
    templates.standard = std::move(standard);
    templates.tool_use.clear();
  }
  if (!tool_use.empty()) templates.tool_use = std::move(tool_use);
  if (templates.standard.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(
        templates.origin, file.empty() ? ": has no chat_template: this model knows no conversations" : ": is empty",
        "; send a raw prompt, or name a template by --chat-template"));
  }
  return templates;
}

}  // namespace c3po
