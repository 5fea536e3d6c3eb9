#include "server/text/incremental_detokenizer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "server/text/utf8.h"

namespace c3po {

absl::StatusOr<IncrementalDetokenizer> IncrementalDetokenizer::Create(std::shared_ptr<const Tokenizer> tokenizer,
                                                                      std::vector<std::string> stop,
                                                                      bool skip_special_tokens,
                                                                      absl::Span<const int32_t> prompt) {
  for (size_t i = 0; i < stop.size(); ++i) {
    if (stop[i].empty()) return absl::InvalidArgumentError(absl::StrCat("stop[", i, "]: is empty"));
    if (!IsValidUtf8(stop[i])) return absl::InvalidArgumentError(absl::StrCat("stop[", i, "]: is not valid UTF-8"));
  }
  Tokenizer::Stream stream = tokenizer->StartDecodingAfter(prompt, skip_special_tokens);
  return IncrementalDetokenizer(std::move(tokenizer), std::move(stop), std::move(stream));
}

IncrementalDetokenizer IncrementalDetokenizer::Clone() const {
  IncrementalDetokenizer copy(tokenizer_, stop_, stream_.Clone());
  copy.pending_ = pending_;
  copy.stop_index_ = stop_index_;
  copy.flushed_ = flushed_;
  return copy;
}

IncrementalDetokenizer::IncrementalDetokenizer(std::shared_ptr<const Tokenizer> tokenizer,
                                               std::vector<std::string> stop, Tokenizer::Stream stream)
    : tokenizer_(std::move(tokenizer)), stream_(std::move(stream)), stop_(std::move(stop)) {}

std::string IncrementalDetokenizer::Append(absl::Span<const int32_t> ids) {
  if (flushed_ || stopped()) return "";
  for (const int32_t id : ids) pending_.append(stream_.Append(id));
  CutAtStop();
  const size_t safe = stopped() ? pending_.size() : pending_.size() - HeldLength();
  std::string text = pending_.substr(0, safe);
  pending_.erase(0, safe);
  return text;
}

std::string IncrementalDetokenizer::Flush() {
  if (flushed_ || stopped()) return "";
  flushed_ = true;
  pending_.append(stream_.Finish());
  CutAtStop();
  return std::exchange(pending_, "");
}

// All that was returned before cannot hold the start of a match, so the pending text is all there is to search.
void IncrementalDetokenizer::CutAtStop() {
  size_t first_begin = 0;
  size_t first_end = std::string::npos;
  for (size_t i = 0; i < stop_.size(); ++i) {
    const size_t begin = pending_.find(stop_[i]);
    if (begin == std::string::npos) continue;
    const size_t end = begin + stop_[i].size();
    if (end > first_end || (end == first_end && begin >= first_begin)) continue;
    first_begin = begin;
    first_end = end;
    stop_index_ = static_cast<int>(i);
  }
  if (stopped()) pending_.resize(first_begin);
}

// The length of the longest end of pending_ that is a proper prefix of a stop string. Both are valid UTF-8, so it
// begins at a character.
size_t IncrementalDetokenizer::HeldLength() const {
  size_t held = 0;
  const absl::string_view pending = pending_;
  for (const std::string& stop : stop_) {
    for (size_t length = std::min(stop.size() - 1, pending.size()); length > held; --length) {
      if (pending.substr(pending.size() - length) == absl::string_view(stop).substr(0, length)) held = length;
    }
  }
  return held;
}

}  // namespace c3po
