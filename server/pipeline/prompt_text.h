#ifndef C3PO_SERVER_PIPELINE_PROMPT_TEXT_H_
#define C3PO_SERVER_PIPELINE_PROMPT_TEXT_H_

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "index/types/reference_record.h"
#include "server/pipeline/generation_types.h"
#include "server/text/tokenizer.h"
#include "server/types/neighborhood_objective.h"

namespace c3po {

class ChatRenderer;

// From what a client sends to token ids. Immutable and thread-safe.
class PromptText {
 public:
  // `chat`: what renders the model's chat template, or why there is none (FailedPrecondition for requests that need
  // it). `vocabulary_size` is the model's. It may be larger than the tokenizer's, whose table is often padded; the ids
  // in between are the model's all the same, and decode to nothing.
  PromptText(std::shared_ptr<const Tokenizer> tokenizer, absl::StatusOr<std::shared_ptr<ChatRenderer>> chat,
             int context_window, int vocabulary_size);

  const std::shared_ptr<const Tokenizer>& tokenizer() const { return tokenizer_; }
  // Ids below are known to the model or to its tokenizer. Those that only the model has decode to nothing.
  int ids_end() const { return std::max(vocabulary_size_, tokenizer_->vocabulary_size()); }
  bool has_chat() const;  // And it can be rendered.

  // A text that the tokenizer cuts into given tokens.
  struct Spelling {
    std::string text;
    bool add_special_tokens;
  };
  struct Prompt {
    std::string text;  // what is embedded
    std::vector<int32_t> tokens;
    std::optional<Spelling> spelling;     // not of token ids, where FindSpelling has to look for it
    std::optional<Tokenizer::Seam> seam;  // once FindSeam has looked for it
  };
  // InvalidArgument names the field: prompt, token_ids, chat.messages[...]: empty, not UTF-8, outside the model's
  // vocabulary, or with `tokens_after` more (at least 1) beyond the context window.
  // A conversation that is not rendered yet is rendered first; where RendersElsewhere, that waits for another process.
  absl::StatusOr<Prompt> Encode(const PromptInput& input, int tokens_after) const;

  // Whether `input` is a conversation that another process has to render. Render starts that and returns; see
  // ChatRenderer::Render. Errors begin with the field, as "chat.messages[0].role: ..." or "chat: ...".
  bool RendersElsewhere(const PromptInput& input) const;
  using Rendered = std::function<void(absl::StatusOr<RenderedChat>)>;
  void Render(Conversation conversation, std::function<absl::Status()> check, Rendered done) const;

  // The tokens of `continuation` after `prompt`, such that the text of prompt and tokens is that of the prompt and
  // `continuation`. They are encoded together, so that a word across the seam is cut as the model knows it. Where that
  // changes the prompt's own tokens, `continuation` is encoded as the middle of a text. With prompt.seam only what can
  // differ there is encoded, with the same result. InvalidArgument: not UTF-8, or no tokens.
  absl::StatusOr<std::vector<int32_t>> EncodeContinuation(const Prompt& prompt, const std::string& continuation) const;

  // The prompt of token ids. InvalidArgument: ids outside the model's vocabulary, as "[3]: ...".
  absl::StatusOr<Prompt> OfTokens(std::vector<int32_t> ids) const;
  // A text of these token ids. nullopt: they have none, as a context that lost its beginning in mid-word.
  std::optional<Spelling> FindSpelling(const std::vector<int32_t>& tokens) const;

  // Makes EncodeContinuation of this prompt cost what the continuation costs, wherever the tokenizer has a safe cut
  // (Tokenizer::FindSeam). Costs one encoding. A prompt without a spelling has no seam.
  void FindSeam(Prompt& prompt) const;
  // Bytes of the prompt that EncodeContinuation encodes anew.
  static size_t BytesBefore(const Prompt& prompt);

  // InvalidArgument names `field`: the prompt and `tokens_after` more do not fit the context window.
  absl::Status CheckLength(absl::string_view field, size_t prompt_tokens, int tokens_after) const;

  // A reference as the objective wants it: its answer alone, or all its choices with the answer marked. InvalidArgument
  // names the field, as Encode and EncodeContinuation; the context window is not looked at.
  absl::StatusOr<NeighborCase> NeighborTokens(const ReferenceRecord& record, bool with_choices) const;

 private:
  // first: the place of ids[0], for the message.
  absl::Status CheckIds(absl::Span<const int32_t> ids, size_t first = 0) const;
  absl::StatusOr<std::vector<int32_t>> EncodeSpelling(const Spelling& spelling) const;

  const std::shared_ptr<const Tokenizer> tokenizer_;
  const absl::StatusOr<std::shared_ptr<ChatRenderer>> chat_;
  const int context_window_;
  const int vocabulary_size_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_PROMPT_TEXT_H_
