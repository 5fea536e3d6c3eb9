#ifndef C3PO_SERVER_PIPELINE_SCORE_TOKENS_H_
#define C3PO_SERVER_PIPELINE_SCORE_TOKENS_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/pipeline/generation_types.h"
#include "server/pipeline/prompt_text.h"

namespace c3po {

// The field that the client knows the continuations by.
absl::string_view ContinuationsField(const ScoreCall& call);

// The tokens of one Score call, made a slice at a time. The prompt is encoded once, and each continuation with what of
// the prompt it may change (PromptText::FindSeam). That is a word or two, or all of the prompt where its tokenizer has
// no safe cut, which takes seconds where both are many. Between two slices a worker can do something for others. Not
// thread-safe; slices may run on different threads.
class ScoreTokens {
 public:
  static constexpr size_t kSliceBytes = size_t{256} << 10;   // The prompt or one continuation at least.
  static constexpr size_t kTextBytesMax = size_t{32} << 20;  // Encoded, over the prompt and all continuations.

  // `text` outlives it. tokens_max: of one continuation; 0: no limit.
  ScoreTokens(const PromptText* text, ScoreCall call, int tokens_max)
      : text_(text), call_(std::move(call)), tokens_max_(tokens_max) {}

  // Makes the next slice; true: all is there. InvalidArgument names the field: what PromptText refuses, a continuation
  // of more than tokens_max tokens, or more than kTextBytesMax to encode. Cancelled, DeadlineExceeded: looked at before
  // each continuation.
  absl::StatusOr<bool> Next();

  const ScoreCall& call() const { return call_; }
  // For who renders a conversation before the first slice.
  PromptInput& input() { return call_.input; }
  // Whole once Next said so.
  PromptText::Prompt& prompt() { return prompt_; }
  std::vector<std::vector<int32_t>>& continuations() { return continuations_; }
  int completion_tokens() const { return completion_tokens_; }              // of all continuations
  double seconds() const { return seconds_ + RenderSeconds(call_.input); }  // that the slices took, and rendering

 private:
  absl::Status Begin();
  absl::Status EncodeOne();
  absl::Status CheckStillWanted() const;
  size_t PromptBytes() const;
  size_t BytesOf(size_t continuation) const;

  const PromptText* const text_;
  ScoreCall call_;
  const int tokens_max_;
  PromptText::Prompt prompt_;
  std::vector<std::vector<int32_t>> continuations_;
  bool begun_ = false;
  size_t longest_ = 0;  // tokens of a continuation
  int completion_tokens_ = 0;
  double seconds_ = 0;
};

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_SCORE_TOKENS_H_
