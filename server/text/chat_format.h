#ifndef C3PO_SERVER_TEXT_CHAT_FORMAT_H_
#define C3PO_SERVER_TEXT_CHAT_FORMAT_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "server/text/chat_template.h"
#include "server/text/chat_templates.h"

namespace c3po {

struct ChatTurn {
  std::string role;  // "system", "user" or "assistant".
  std::string content;
};

// How a model was taught to read a conversation. These formats are known; each is recognized by what the model folder's
// chat template can write (ChatTemplate), all of which must belong to the format; no template language is run:
//   ChatML    <|im_start|>ROLE\nCONTENT<|im_end|>\n per turn, then <|im_start|>assistant\n (Qwen1.5 to 3, SmolLM2). A
//             default system message of the template goes first unless the first turn is a system turn. Qwen3's
//             template also takes <think>...</think> off earlier assistant turns.
//   Tulu      <|ROLE|>\nCONTENT\n per turn, an assistant's closed by the eos token, then <|assistant|>\n
//   (OLMoE-Instruct). Phi       <|ROLE|>\nCONTENT<|end|>\n, then <|assistant|>\n (Phi-3.5-MoE). Granite
//   <|start_of_role|>ROLE<|end_of_role|>CONTENT<|end_of_text|>\n, then <|start_of_role|>assistant<|end_of_role|>;
//             from 3.1 on the default system message tells the date.
//   DeepSeek  User: CONTENT\n\n and Assistant: CONTENT closed by the eos token, a system turn bare, then Assistant:; or
//             with <|User|> and <|Assistant|> (full-width bars) in place of these names.
//   Mixtral   [INST] CONTENT [/INST] and CONTENT closed by the eos token, in turn; a system turn, where the template
//   takes
//             one, goes into the first instruction.
// A special token written inside CONTENT is not escaped: encoding recognizes it, as with the template itself.
// A value: copyable, immutable, thread-safe.
class ChatFormat {
 public:
  // FailedPrecondition: the standard template is none of those recognized.
  static absl::StatusOr<ChatFormat> Recognize(const ChatTemplates& templates);
  // Of the folder of a tokenizer_config.json. Errors also as ChatTemplates::Read.
  static absl::StatusOr<ChatFormat> FromTokenizerConfig(const std::string& path);

  const std::string& name() const { return name_; }  // "ChatML", "Tulu", ...

  // The prompt that asks for the assistant's next turn; encode it without adding special tokens. `now` is told by
  // formats that state the date, in local time.
  // InvalidArgument: no turns ("chat.messages"), a role that is none of the three ("chat.messages[2].role"), or, where
  // the format has users and assistants take turns, one out of turn.
  absl::StatusOr<std::string> Render(absl::Span<const ChatTurn> turns, absl::Time now = absl::Now()) const;

 private:
  // What stands around a turn's content.
  struct Frame {
    std::string open;
    std::string close;
  };

  ChatFormat() = default;
  // Each returns false, leaving the format as it is, when the template is another format's.
  bool RecognizeChatMl(const ChatTemplate& source);
  bool RecognizeTulu(const ChatTemplate& source);
  bool RecognizePhi(const ChatTemplate& source);
  bool RecognizeGranite(const ChatTemplate& source);
  bool RecognizeDeepSeek(const ChatTemplate& source);
  bool RecognizeMixtral(const ChatTemplate& source);
  bool ReadGraniteSystem(const ChatTemplate& source);
  // An assistant's content as Qwen3's template writes it: thoughts kept only after the last question.
  static std::string ThoughtsApart(const std::string& content, bool after_last_query, bool last);
  absl::StatusOr<std::string> RenderInstructions(absl::Span<const ChatTurn> turns) const;
  std::string RenderTurns(absl::Span<const ChatTurn> turns, absl::Time now) const;

  std::string name_;
  std::string bos_token_;
  std::string eos_token_;

  std::string prefix_;  // Before the first turn: the bos token, or nothing.
  Frame system_;
  Frame user_;
  Frame assistant_;
  std::string last_assistant_close_;  // Of an assistant's turn that ends the conversation.
  std::string cue_;                   // What asks for the assistant's turn.
  std::string default_system_;        // Empty: none.
  std::string date_format_;           // strftime's; the date stands at date_at_ of default_system_. Empty: none.
  size_t date_at_ = 0;
  bool cue_after_assistant_ = true;  // The cue follows a conversation that the assistant ended, too.
  bool cue_needs_turn_ = false;      // A system turn alone gets no cue.
  bool drops_empty_system_ = false;
  bool takes_off_thoughts_ = false;  // Qwen3.
  bool instructions_ = false;        // Mixtral: users and assistants take turns; no cue.
  bool instructions_take_system_ = false;
};

}  // namespace c3po

#endif  // C3PO_SERVER_TEXT_CHAT_FORMAT_H_
