#ifndef C3PO_SERVER_TEXT_CHAT_TEMPLATES_H_
#define C3PO_SERVER_TEXT_CHAT_TEMPLATES_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace c3po {

// The chat templates of a model folder, found as transformers finds them, and the special tokens that they may write.
struct ChatTemplates {
  std::string origin;    // The file of `standard`, for messages.
  std::string standard;  // Of conversations.
  std::string tool_use;  // Of conversations with tools; empty: `standard`.
  std::string bos_token, eos_token;
  // A JSON object: bos_token, eos_token, unk_token, sep_token, pad_token, cls_token, mask_token, each where the
  // tokenizer has it, and additional_special_tokens, a list.
  std::string special_tokens_json = "{}";

  const std::string& For(bool tools) const { return tools && !tool_use.empty() ? tool_use : standard; }

  // The `config_path` of a model folder or a GGUF file.
  static std::string ConfigPath(const std::string& model);

  // `config_path` is that of a GGUF file, whose metadata hold templates and tokens, or of a tokenizer_config.json,
  // whose chat_template is a text, or several texts with names: "default" and "tool_use". The files chat_template.jinja
  // and additional_chat_templates/tool_use.jinja beside it come first, and before all of these `file`, unless its name
  // is empty. NotFound: `file`, or the config where no file stands in for its template. InvalidArgument: malformed,
  // naming file and field. FailedPrecondition: no template.
  static absl::StatusOr<ChatTemplates> Read(const std::string& config_path, const std::string& file = "");
};

}  // namespace c3po

#endif  // C3PO_SERVER_TEXT_CHAT_TEMPLATES_H_
