#ifndef C3PO_SERVER_TEXT_INCREMENTAL_DETOKENIZER_H_
#define C3PO_SERVER_TEXT_INCREMENTAL_DETOKENIZER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/text/tokenizer.h"

namespace c3po {

// Turns a growing sequence of token ids after a prompt into text that may be sent at once. What Append and Flush
// return, concatenated, is Tokenizer::Decode of prompt and ids less that of the prompt, cut where a stop string begins,
// however the ids are divided among the calls. Never returns part of a character, nor a text whose end could still turn
// out to start a stop string. The stop string that is complete first counts (the earliest to begin, when several are
// complete at the same byte); it is not part of the text. One thread at a time.
class IncrementalDetokenizer {
 public:
  // InvalidArgument: a stop string that is empty or not UTF-8, naming its place, "stop[2]". O(prompt).
  static absl::StatusOr<IncrementalDetokenizer> Create(std::shared_ptr<const Tokenizer> tokenizer,
                                                       std::vector<std::string> stop, bool skip_special_tokens,
                                                       absl::Span<const int32_t> prompt = {});
  // Another one in the same state, for a further answer to the same prompt.
  IncrementalDetokenizer Clone() const;

  // The text now safe to send. Empty once stopped: later ids are ignored.
  std::string Append(absl::Span<const int32_t> ids);

  // No more ids: what was held back, unless it completes a stop string. Later calls return nothing.
  std::string Flush();

  // A stop string was found; which one, by its place in `stop`.
  bool stopped() const { return stop_index_.has_value(); }
  std::optional<int> stop_index() const { return stop_index_; }

 private:
  IncrementalDetokenizer(std::shared_ptr<const Tokenizer> tokenizer, std::vector<std::string> stop,
                         Tokenizer::Stream stream);

  void CutAtStop();
  size_t HeldLength() const;

  std::shared_ptr<const Tokenizer> tokenizer_;  // Outlives stream_.
  Tokenizer::Stream stream_;
  std::vector<std::string> stop_;
  std::string pending_;  // Decoded, not yet returned. Between calls: a proper prefix of a stop string, or empty.
  std::optional<int> stop_index_;
  bool flushed_ = false;
};

}  // namespace c3po

#endif  // C3PO_SERVER_TEXT_INCREMENTAL_DETOKENIZER_H_
