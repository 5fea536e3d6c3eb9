#ifndef C3PO_SERVER_PIPELINE_PROMPT_TEXT_H_
#define C3PO_SERVER_PIPELINE_PROMPT_TEXT_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "index/types/reference_record.h"
#include "server/pipeline/generation_types.h"
#include "server/text/chat_format.h"
#include "server/text/tokenizer.h"
#include "server/types/neighborhood_objective.h"

namespace c3po {

// From what a client sends to token ids. Immutable and thread-safe.
class PromptText {
 public:
  // `chat`: the model's chat format, or why it has none (FailedPrecondition for requests that need it).
  PromptText(std::shared_ptr<const Tokenizer> tokenizer, absl::StatusOr<ChatFormat> chat, int context_window);

  const std::shared_ptr<const Tokenizer>& tokenizer() const { return tokenizer_; }
  bool has_chat() const { return chat_.ok(); }

  struct Prompt {
    std::string text;  // what is embedded; empty for token ids that came without text
    std::vector<int32_t> tokens;
  };
  // InvalidArgument names the field: prompt, token_ids, chat.messages[...]: empty, not UTF-8, outside the vocabulary,
  // or with `tokens_after` more (at least 1) beyond the context window.
  absl::StatusOr<Prompt> Encode(const PromptInput& input, int tokens_after) const;

  // The tokens of `continuation` after `prompt`: encoded together, so that a word across the seam is cut as the model
  // knows it; where the prompt's own tokens change by that, encoded apart. InvalidArgument: not UTF-8, or no tokens.
  absl::StatusOr<std::vector<int32_t>> EncodeContinuation(const std::string& prompt,
                                                          const std::vector<int32_t>& prompt_tokens,
                                                          const std::string& continuation) const;

  // A reference as the objective wants it: its answer alone, or all its choices with the answer marked.
  absl::StatusOr<NeighborCase> NeighborTokens(const ReferenceRecord& record, bool with_choices) const;

 private:
  const std::shared_ptr<const Tokenizer> tokenizer_;
  const absl::StatusOr<ChatFormat> chat_;
  const int context_window_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_PROMPT_TEXT_H_
