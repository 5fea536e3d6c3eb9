#include "server/pipeline/score_tokens.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "index/base/steady_time.h"
#include "server/pipeline/request_admission.h"

namespace c3po {

absl::string_view ContinuationsField(const ScoreCall& call) { return call.choose ? "choices" : "continuations"; }

size_t ScoreTokens::PromptBytes() const { return prompt_.spelling.has_value() ? prompt_.spelling->text.size() : 0; }

size_t ScoreTokens::BytesOf(size_t continuation) const {
  return PromptText::BytesBefore(prompt_) + call_.continuations[continuation].size();
}

absl::Status ScoreTokens::CheckStillWanted() const {
  const CallContext& context = call_.context;
  if (context.cancelled && context.cancelled->load(std::memory_order_relaxed))
    return absl::CancelledError("the client cancelled the request");
  if (SteadyNow() >= context.deadline)
    return absl::DeadlineExceededError("the deadline passed while the request was tokenized");
  return absl::OkStatus();
}

absl::Status ScoreTokens::Begin() {
  C3PO_RETURN_IF_ERROR(CheckStillWanted());
  C3PO_ASSIGN_OR_RETURN(prompt_, text_->Encode(call_.input, 1));
  if (!prompt_.spelling.has_value()) prompt_.spelling = text_->FindSpelling(prompt_.tokens);
  text_->FindSeam(prompt_);
  begun_ = true;
  size_t bytes = PromptBytes();
  for (size_t i = 0; i < call_.continuations.size(); ++i) bytes += BytesOf(i);
  if (bytes <= kTextBytesMax) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(ContinuationsField(call_), ": ", call_.continuations.size(),
                                                 " of them, each with ", PromptText::BytesBefore(prompt_),
                                                 " bytes of the prompt, are ", bytes, " bytes to tokenize, more than ",
                                                 kTextBytesMax, "; score fewer at once"));
}

absl::Status ScoreTokens::EncodeOne() {
  C3PO_RETURN_IF_ERROR(CheckStillWanted());
  const size_t i = continuations_.size();
  auto tokens = text_->EncodeContinuation(prompt_, call_.continuations[i]);
  const std::string field = absl::StrCat(ContinuationsField(call_), "[", i, "]");
  if (!tokens.ok()) return absl::Status(tokens.status().code(), absl::StrCat(field, ": ", tokens.status().message()));
  C3PO_RETURN_IF_ERROR(CheckTokens(field, tokens->size(), tokens_max_));
  longest_ = std::max(longest_, tokens->size());
  completion_tokens_ += static_cast<int>(tokens->size());
  continuations_.push_back(*std::move(tokens));
  return absl::OkStatus();
}

absl::StatusOr<bool> ScoreTokens::Next() {
  const absl::Time start = SteadyNow();
  size_t bytes = 0;
  if (!begun_) {
    C3PO_RETURN_IF_ERROR(Begin());
    bytes = PromptBytes();
  }
  while (continuations_.size() < call_.continuations.size() && bytes < kSliceBytes) {
    bytes += BytesOf(continuations_.size());
    C3PO_RETURN_IF_ERROR(EncodeOne());
  }
  seconds_ += absl::ToDoubleSeconds(SteadyNow() - start);
  if (continuations_.size() < call_.continuations.size()) return false;
  C3PO_RETURN_IF_ERROR(text_->CheckLength(FieldOf(call_.input), prompt_.tokens.size(), static_cast<int>(longest_)));
  return true;
}

}  // namespace c3po
