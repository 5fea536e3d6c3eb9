#include "server/pipeline/prompt_text.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "index/base/steady_time.h"
#include "server/text/chat_renderer.h"

namespace c3po {
namespace {

absl::Status InField(absl::string_view field, const absl::Status& status) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(field, ": ", status.message()));
}

// The frame around it is the same in every prompt.
std::string QuestionOf(const Conversation& conversation) {
  return conversation.messages.empty() ? "" : conversation.messages.back().content;
}

// What CheckIds says of the tokens of a text.
absl::Status OfTheText(const absl::Status& status) {
  if (status.ok()) return status;
  return absl::InvalidArgumentError(absl::StrCat("its token ", status.message()));
}

}  // namespace

PromptText::PromptText(std::shared_ptr<const Tokenizer> tokenizer, absl::StatusOr<std::shared_ptr<ChatRenderer>> chat,
                       int context_window, int vocabulary_size)
    : tokenizer_(std::move(tokenizer)),
      chat_(std::move(chat)),
      context_window_(context_window),
      vocabulary_size_(vocabulary_size) {}

absl::Status PromptText::CheckIds(absl::Span<const int32_t> ids, size_t first) const {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < vocabulary_size_) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("[", first + i, "]: ", ids[i], " is outside the model's vocabulary of ", vocabulary_size_));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> PromptText::EncodeSpelling(const Spelling& spelling) const {
  C3PO_ASSIGN_OR_RETURN(std::vector<int32_t> ids, tokenizer_->Encode(spelling.text, spelling.add_special_tokens));
  C3PO_RETURN_IF_ERROR(OfTheText(CheckIds(ids)));
  return ids;
}

absl::StatusOr<PromptText::Prompt> PromptText::OfTokens(std::vector<int32_t> ids) const {
  C3PO_RETURN_IF_ERROR(CheckIds(ids));
  Prompt prompt;
  prompt.text = tokenizer_->Decode(ids, /*skip_special_tokens=*/true);
  prompt.tokens = std::move(ids);
  return prompt;
}

std::optional<PromptText::Spelling> PromptText::FindSpelling(const std::vector<int32_t>& tokens) const {
  // Special tokens alone are no text for a continuation to go on with: it is cut as one that starts.
  const bool no_text = tokenizer_->Decode(tokens, /*skip_special_tokens=*/true).empty();
  for (const bool skip_special_tokens : {true, false}) {
    for (const bool add_special_tokens : {true, false}) {
      Spelling spelling{tokenizer_->Decode(tokens, skip_special_tokens), add_special_tokens};
      if (!skip_special_tokens && no_text) continue;
      const auto encoded = tokenizer_->Encode(spelling.text, spelling.add_special_tokens);
      if (encoded.ok() && *encoded == tokens) return spelling;
    }
  }
  return std::nullopt;
}

absl::Status PromptText::CheckLength(absl::string_view field, size_t prompt_tokens, int tokens_after) const {
  const auto length = static_cast<int64_t>(prompt_tokens);
  if (length + tokens_after <= context_window_) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, ": has ", length, " tokens and ", tokens_after,
                                                 " are to follow; the context window holds ", context_window_));
}

absl::StatusOr<PromptText::Prompt> PromptText::Encode(const PromptInput& input, int tokens_after) const {
  Prompt prompt;
  const char* field = "prompt";
  if (const auto* text = std::get_if<std::string>(&input)) {
    if (text->empty()) return absl::InvalidArgumentError("prompt: must not be empty");
    prompt.text = *text;
    prompt.spelling = Spelling{*text, true};
  } else if (const auto* ids = std::get_if<std::vector<int32_t>>(&input)) {
    field = "token_ids";
    auto read = OfTokens(*ids);
    if (!read.ok()) return absl::InvalidArgumentError(absl::StrCat("token_ids.ids", read.status().message()));
    prompt = *std::move(read);
  } else {
    field = "chat";
    RenderedChat chat;
    if (const auto* conversation = std::get_if<Conversation>(&input)) {
      C3PO_RETURN_IF_ERROR(chat_.status());
      C3PO_ASSIGN_OR_RETURN(chat.prompt, (*chat_)->RenderNow(*conversation));
      chat.question = QuestionOf(*conversation);
    } else {
      chat = std::get<RenderedChat>(input);
    }
    prompt.text = std::move(chat.question);
    prompt.spelling = Spelling{std::move(chat.prompt), false};
  }
  if (!std::holds_alternative<std::vector<int32_t>>(input)) {
    auto tokens = EncodeSpelling(*prompt.spelling);
    C3PO_RETURN_IF_ERROR(InField(field, tokens.status()));
    prompt.tokens = *std::move(tokens);
  }
  if (prompt.tokens.empty()) return absl::InvalidArgumentError(absl::StrCat(field, ": has no tokens"));
  C3PO_RETURN_IF_ERROR(CheckLength(field, prompt.tokens.size(), tokens_after));
  return prompt;
}

bool PromptText::has_chat() const { return chat_.ok() && (*chat_)->usable(); }

bool PromptText::RendersElsewhere(const PromptInput& input) const {
  const auto* conversation = std::get_if<Conversation>(&input);
  return conversation != nullptr && chat_.ok() && (*chat_)->NeedsJinja(*conversation);
}

void PromptText::Render(Conversation conversation, std::function<absl::Status()> check, Rendered done) const {
  if (!chat_.ok()) return done(chat_.status());
  std::string question = QuestionOf(conversation);
  const absl::Time start = SteadyNow();
  const auto take = [done = std::move(done), question = std::move(question),
                     start](absl::StatusOr<std::string> prompt) {
    if (!prompt.ok()) return done(prompt.status());
    done(RenderedChat{*std::move(prompt), question, absl::ToDoubleSeconds(SteadyNow() - start)});
  };
  (*chat_)->Render(std::move(conversation), std::move(check), take);
}

void PromptText::FindSeam(Prompt& prompt) const {
  if (!prompt.spelling.has_value()) return;
  prompt.seam = tokenizer_->FindSeam(prompt.spelling->text, prompt.spelling->add_special_tokens, prompt.tokens);
}

size_t PromptText::BytesBefore(const Prompt& prompt) {
  if (prompt.seam.has_value()) return prompt.seam->bytes();
  return prompt.spelling.has_value() ? prompt.spelling->text.size() : 0;
}

absl::StatusOr<std::vector<int32_t>> PromptText::EncodeContinuation(const Prompt& prompt,
                                                                    const std::string& continuation) const {
  if (prompt.spelling.has_value()) {
    const size_t kept = prompt.seam.has_value() ? prompt.seam->ids_kept : 0;
    auto encoded = prompt.seam.has_value() ? tokenizer_->EncodeAfter(*prompt.seam, continuation)
                                           : tokenizer_->Encode(absl::StrCat(prompt.spelling->text, continuation),
                                                                prompt.spelling->add_special_tokens);
    C3PO_ASSIGN_OR_RETURN(std::vector<int32_t> rest, std::move(encoded));
    C3PO_RETURN_IF_ERROR(OfTheText(CheckIds(rest, kept)));
    const absl::Span<const int32_t> prompts = absl::MakeConstSpan(prompt.tokens).subspan(kept);
    if (rest.size() > prompts.size() && std::equal(prompts.begin(), prompts.end(), rest.begin())) {
      rest.erase(rest.begin(), rest.begin() + static_cast<ptrdiff_t>(prompts.size()));
      return rest;
    }
  }
  // A prompt of special tokens alone has no text: the continuation starts it.
  C3PO_ASSIGN_OR_RETURN(std::vector<int32_t> alone, prompt.text.empty() ? tokenizer_->Encode(continuation, false)
                                                                        : tokenizer_->EncodeContinuing(continuation));
  if (alone.empty()) return absl::InvalidArgumentError("has no tokens");
  C3PO_RETURN_IF_ERROR(OfTheText(CheckIds(alone)));
  return alone;
}

absl::StatusOr<NeighborCase> PromptText::NeighborTokens(const ReferenceRecord& record, bool with_choices) const {
  const ReferenceSample& sample = record.sample;
  NeighborCase neighbor;
  neighbor.reference_id = record.id;
  Prompt prompt{sample.prompt, {}, Spelling{sample.prompt, true}, std::nullopt};
  auto prompt_tokens = EncodeSpelling(*prompt.spelling);
  C3PO_RETURN_IF_ERROR(InField("prompt", prompt_tokens.status()));
  prompt.tokens = *std::move(prompt_tokens);
  if (prompt.tokens.empty()) return absl::InvalidArgumentError("prompt: has no tokens");
  const bool are_choices = with_choices && !sample.choices.empty();
  const std::vector<std::string> answer_alone = {sample.answer};
  const std::vector<std::string>& texts = are_choices ? sample.choices : answer_alone;
  if (texts.size() > 1) FindSeam(prompt);  // Which costs as much as it saves of one.
  for (size_t i = 0; i < texts.size(); ++i) {
    auto tokens = EncodeContinuation(prompt, texts[i]);
    C3PO_RETURN_IF_ERROR(InField(are_choices ? absl::StrCat("choices[", i, "]") : "answer", tokens.status()));
    neighbor.continuations.push_back(*std::move(tokens));
    if (texts[i] == sample.answer) neighbor.gold = static_cast<int>(i);
  }
  neighbor.texts = texts;
  neighbor.prompt = std::move(prompt.tokens);
  return neighbor;
}

}  // namespace c3po
