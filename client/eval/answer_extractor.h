#ifndef C3PO_CLIENT_EVAL_ANSWER_EXTRACTOR_H_
#define C3PO_CLIENT_EVAL_ANSWER_EXTRACTOR_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace c3po {

// Takes the answer out of a generated text by a regular expression in PCRE's syntax. Thread-safe after Create.
class AnswerExtractor {
 public:
  // An empty pattern takes the whole text. InvalidArgument: the pattern does not compile (says where).
  static absl::StatusOr<std::unique_ptr<AnswerExtractor>> Create(absl::string_view pattern);
  ~AnswerExtractor();
  AnswerExtractor(const AnswerExtractor&) = delete;
  AnswerExtractor& operator=(const AnswerExtractor&) = delete;

  // The last match: its first group if the pattern has one that took part, else all of it. Empty without a match, and
  // where the pattern backtracks without an end (PCRE's match limit).
  std::string Extract(absl::string_view text) const;

 private:
  struct Pattern;
  explicit AnswerExtractor(std::unique_ptr<Pattern> pattern);
  const std::unique_ptr<Pattern> pattern_;  // Null: the whole text.
};

// What two answers are compared by: white space trimmed and collapsed, letters in lower case (ASCII), a leading dollar
// sign, commas between digits, closing punctuation (".,;:!?") and the zeros of "42.00" left out. Pure.
std::string NormalizeAnswer(absl::string_view text);

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_ANSWER_EXTRACTOR_H_
