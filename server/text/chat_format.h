#ifndef C3PO_SERVER_TEXT_CHAT_FORMAT_H_
#define C3PO_SERVER_TEXT_CHAT_FORMAT_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace c3po {

struct ChatTurn {
  std::string role;  // "system", "user" or "assistant".
  std::string content;
};

// How a model was taught to read a conversation. Two formats are known, recognized by the text of the model folder's
// chat template; no template language is interpreted:
//   ChatML:          <|im_start|>ROLE\nCONTENT<|im_end|>\n per turn, then <|im_start|>assistant\n. Where the template
//   has a
//                    default system message (SmolLM2-Instruct does), it goes first unless the first turn is a system
//                    turn.
//   OLMoE-Instruct:  the bos token, then <|ROLE|>\nCONTENT\n per turn (an assistant's content is closed by the eos
//   token),
//                    then <|assistant|>\n.
// A special token written inside CONTENT is not escaped: encoding recognizes it, as with the template itself.
// A value: copyable, immutable, thread-safe.
class ChatFormat {
 public:
  // `path` is that of a tokenizer_config.json. NotFound: no such file. InvalidArgument: malformed, naming file and
  // field. FailedPrecondition: it has no chat template, or one that is not recognized; a raw prompt still works.
  static absl::StatusOr<ChatFormat> FromTokenizerConfig(const std::string& path);

  // The prompt that asks for the assistant's next turn; encode it without adding special tokens.
  // InvalidArgument: no turns ("chat.messages"), or a role that is none of the three ("chat.messages[2].role").
  absl::StatusOr<std::string> Render(absl::Span<const ChatTurn> turns) const;

 private:
  enum class Kind { kChatMl, kOlmoe };

  ChatFormat() = default;
  std::string RenderTurn(const ChatTurn& turn, bool is_last) const;

  Kind kind_ = Kind::kChatMl;
  std::string prefix_;          // Before the first turn: the bos token, or nothing.
  std::string default_system_;  // ChatML; empty: none.
  std::string eos_token_;       // OLMoE.
};

}  // namespace c3po

#endif  // C3PO_SERVER_TEXT_CHAT_FORMAT_H_
