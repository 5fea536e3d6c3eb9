#include "server/pipeline/prompt_text.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

absl::Status InField(absl::string_view field, const absl::Status& status) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(field, ": ", status.message()));
}

}  // namespace

PromptText::PromptText(std::shared_ptr<const Tokenizer> tokenizer, absl::StatusOr<ChatFormat> chat, int context_window)
    : tokenizer_(std::move(tokenizer)), chat_(std::move(chat)), context_window_(context_window) {}

absl::StatusOr<PromptText::Prompt> PromptText::Encode(const PromptInput& input, int tokens_after) const {
  Prompt prompt;
  const char* field = "prompt";
  if (const auto* text = std::get_if<std::string>(&input)) {
    if (text->empty()) return absl::InvalidArgumentError("prompt: must not be empty");
    prompt.text = *text;
    auto tokens = tokenizer_->Encode(*text, /*add_special_tokens=*/true);
    C3PO_RETURN_IF_ERROR(InField(field, tokens.status()));
    prompt.tokens = *std::move(tokens);
  } else if (const auto* ids = std::get_if<std::vector<int32_t>>(&input)) {
    field = "token_ids";
    for (size_t i = 0; i < ids->size(); ++i) {
      if ((*ids)[i] < 0 || (*ids)[i] >= tokenizer_->vocabulary_size()) {
        return absl::InvalidArgumentError(absl::StrCat(
            "token_ids.ids[", i, "]: ", (*ids)[i], " is outside the vocabulary of ", tokenizer_->vocabulary_size()));
      }
    }
    prompt.tokens = *ids;
    prompt.text = tokenizer_->Decode(*ids, /*skip_special_tokens=*/true);
  } else {
    field = "chat";
    std::vector<ChatTurn> turns;
    for (const ChatMessage& message : std::get<std::vector<ChatMessage>>(input))
      turns.push_back({message.role, message.content});
    C3PO_RETURN_IF_ERROR(chat_.status());
    C3PO_ASSIGN_OR_RETURN(const std::string rendered, chat_->Render(turns));
    prompt.text = turns.back().content;  // The question; the frame around it is the same in every prompt.
    auto tokens = tokenizer_->Encode(rendered, /*add_special_tokens=*/false);
    C3PO_RETURN_IF_ERROR(InField(field, tokens.status()));
    prompt.tokens = *std::move(tokens);
  }
  if (prompt.tokens.empty()) return absl::InvalidArgumentError(absl::StrCat(field, ": has no tokens"));
  const auto length = static_cast<int64_t>(prompt.tokens.size());
  if (length + tokens_after > context_window_) {
    return absl::InvalidArgumentError(absl::StrCat(field, ": has ", length, " tokens and ", tokens_after,
                                                   " are to follow; the context window holds ", context_window_));
  }
  return prompt;
}

absl::StatusOr<std::vector<int32_t>> PromptText::EncodeContinuation(const std::string& prompt,
                                                                    const std::vector<int32_t>& prompt_tokens,
                                                                    const std::string& continuation) const {
  C3PO_ASSIGN_OR_RETURN(std::vector<int32_t> whole, tokenizer_->Encode(absl::StrCat(prompt, continuation), true));
  const bool prompt_kept =
      whole.size() > prompt_tokens.size() && std::equal(prompt_tokens.begin(), prompt_tokens.end(), whole.begin());
  if (prompt_kept) {
    whole.erase(whole.begin(), whole.begin() + static_cast<ptrdiff_t>(prompt_tokens.size()));
    return whole;
  }
  C3PO_ASSIGN_OR_RETURN(std::vector<int32_t> alone, tokenizer_->Encode(continuation, false));
  if (alone.empty()) return absl::InvalidArgumentError("has no tokens");
  return alone;
}

absl::StatusOr<NeighborCase> PromptText::NeighborTokens(const ReferenceRecord& record, bool with_choices) const {
  const ReferenceSample& sample = record.sample;
  NeighborCase neighbor;
  neighbor.reference_id = record.id;
  C3PO_ASSIGN_OR_RETURN(neighbor.prompt, tokenizer_->Encode(sample.prompt, true));
  const std::vector<std::string> answer_alone = {sample.answer};
  const std::vector<std::string>& texts = with_choices && !sample.choices.empty() ? sample.choices : answer_alone;
  for (size_t i = 0; i < texts.size(); ++i) {
    C3PO_ASSIGN_OR_RETURN(std::vector<int32_t> tokens, EncodeContinuation(sample.prompt, neighbor.prompt, texts[i]));
    neighbor.continuations.push_back(std::move(tokens));
    if (texts[i] == sample.answer) neighbor.gold = static_cast<int>(i);
  }
  return neighbor;
}

}  // namespace c3po
