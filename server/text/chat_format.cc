#include "server/text/chat_format.h"

#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "index/base/status_macros.h"
#include "server/text/json_field.h"

namespace c3po {
namespace {

// A token of the config: "text", {"content": "text"}, or null.
absl::StatusOr<std::string> TokenMember(const JsonField& config, absl::string_view key) {
  const std::optional<JsonField> token = config.Find(key);
  if (!token.has_value()) return "";
  return token->is_object() ? token->StringMember("content") : token->AsString();
}

// The template's text: a string, or of several named templates the one called "default".
absl::StatusOr<std::string> DefaultTemplate(const JsonField& config) {
  const std::optional<JsonField> chat_template = config.Find("chat_template");
  if (!chat_template.has_value()) return "";
  if (!chat_template->is_array()) return chat_template->AsString();
  std::string text;
  C3PO_RETURN_IF_ERROR(chat_template->ForEachElement([&](size_t, const JsonField& named) -> absl::Status {
    C3PO_ASSIGN_OR_RETURN(const std::string name, named.StringMember("name"));
    if (name != "default") return absl::OkStatus();
    C3PO_ASSIGN_OR_RETURN(text, named.StringMember("template"));
    return absl::OkStatus();
  }));
  return text;
}

// The literal system message that the template inserts by itself: what stands between "<|im_start|>system\n" and
// "<|im_end|>" inside one string. `text` has its line breaks unescaped.
std::string DefaultSystemMessage(absl::string_view text) {
  constexpr absl::string_view kOpen = "<|im_start|>system\n";
  for (size_t at = text.find(kOpen); at != absl::string_view::npos; at = text.find(kOpen, at + 1)) {
    const absl::string_view rest = text.substr(at + kOpen.size());
    const size_t close = rest.find("<|im_end|>");
    if (close == absl::string_view::npos || close == 0) continue;
    const absl::string_view message = rest.substr(0, close);
    if (message.find_first_of("'\"{}") == absl::string_view::npos) return std::string(message);
  }
  return "";
}

}  // namespace

absl::StatusOr<ChatFormat> ChatFormat::FromTokenizerConfig(const std::string& path) {
  C3PO_ASSIGN_OR_RETURN(const JsonField config, JsonField::ReadFile(path));
  if (!config.is_object()) return config.Error("is no JSON object");
  C3PO_ASSIGN_OR_RETURN(const std::string source, DefaultTemplate(config));
  if (source.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": has no chat_template: this model knows no conversations; send a raw prompt"));
  }
  C3PO_ASSIGN_OR_RETURN(const std::string bos_token, TokenMember(config, "bos_token"));
  const std::string text = absl::StrReplaceAll(source, {{"\\n", "\n"}});
  // Spelling that does not matter: blanks, kinds of quotes, m.role for m['role'], whitespace control.
  const std::string bare =
      absl::StrReplaceAll(absl::StrReplaceAll(text, {{" ", ""}, {"\"", "'"}, {"{{-", "{{"}, {"-}}", "}}"}}),
                          {{"message.role", "message['role']"}, {"message.content", "message['content']"}});
  ChatFormat format;
  if (absl::StrContains(bare, "{{bos_token}}")) {
    format.prefix_ = bos_token;
  } else if (absl::StrContains(bare, "bos_token")) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": chat_template uses bos_token in a way that is not recognized; send a raw prompt"));
  }
  if (absl::StrContains(bare, "'<|im_start|>'+message['role']+'\n'+message['content']+'<|im_end|>")) {
    format.kind_ = Kind::kChatMl;
    format.default_system_ = DefaultSystemMessage(text);
    return format;
  }
  if (absl::StrContains(bare, "'<|user|>\n'+message['content']+'\n'") &&
      absl::StrContains(bare, "'<|assistant|>\n'+message['content']+eos_token")) {
    format.kind_ = Kind::kOlmoe;
    C3PO_ASSIGN_OR_RETURN(format.eos_token_, TokenMember(config, "eos_token"));
    return format;
  }
  return absl::FailedPreconditionError(
      absl::StrCat(path, ": chat_template is none of those recognized (ChatML, OLMoE-Instruct); send a raw prompt"));
}

absl::StatusOr<std::string> ChatFormat::Render(absl::Span<const ChatTurn> turns) const {
  if (turns.empty()) return absl::InvalidArgumentError("chat.messages: is empty");
  std::string prompt = prefix_;
  if (!default_system_.empty() && turns[0].role != "system") {
    prompt.append(RenderTurn({"system", default_system_}, /*is_last=*/false));
  }
  for (size_t i = 0; i < turns.size(); ++i) {
    const std::string& role = turns[i].role;
    if (role != "system" && role != "user" && role != "assistant") {
      return absl::InvalidArgumentError(
          absl::StrCat("chat.messages[", i, "].role: \"", role, "\" is none of system, user, assistant"));
    }
    prompt.append(RenderTurn(turns[i], i + 1 == turns.size()));
  }
  prompt.append(kind_ == Kind::kChatMl ? "<|im_start|>assistant\n" : "<|assistant|>\n");
  return prompt;
}

std::string ChatFormat::RenderTurn(const ChatTurn& turn, bool is_last) const {
  if (kind_ == Kind::kChatMl) return absl::StrCat("<|im_start|>", turn.role, "\n", turn.content, "<|im_end|>\n");
  if (turn.role != "assistant") return absl::StrCat("<|", turn.role, "|>\n", turn.content, "\n");
  // The template ends a closing assistant turn without a line break.
  return absl::StrCat("<|assistant|>\n", turn.content, eos_token_, is_last ? "" : "\n");
}

}  // namespace c3po
