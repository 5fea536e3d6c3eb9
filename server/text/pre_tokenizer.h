#ifndef C3PO_SERVER_TEXT_PRE_TOKENIZER_H_
#define C3PO_SERVER_TEXT_PRE_TOKENIZER_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/text/json_field.h"
#include "server/text/open_text.h"

namespace c3po {

// A stretch of normalized text on its way to becoming words.
struct TextSegment {
  std::string text;
  bool starts_input;       // It begins where the whole input begins: Metaspace's prepend_scheme "first" asks.
  bool continues = false;  // It goes on in the middle of a text, so that no step puts anything before it.
};

// The second stage: cuts text into the words that the model tokenizes one by one. Implements ByteLevel, Digits, Split,
// Metaspace, Punctuation, Whitespace, WhitespaceSplit, BertPreTokenizer, and Sequence of these. Immutable and
// thread-safe.
class PreTokenizer {
 public:
  // From the field `pre_tokenizer`; nullopt (missing or null): the text is one word. InvalidArgument: a type that is
  // not implemented, or a malformed field, naming it.
  static absl::StatusOr<PreTokenizer> FromJson(const std::optional<JsonField>& pre_tokenizer);

  // The words of `segment`, none empty, each valid UTF-8. ResourceExhausted: a pattern backtracks without end.
  absl::StatusOr<std::vector<TextSegment>> Split(TextSegment segment) const;

  // Finds the last safe cut, and what is known of the last word (open_text.h). Errors as Split.
  absl::Status Narrow(OpenText* open) const;

  // One way of cutting; internal to pre_tokenizer.cc.
  class Step;

 private:
  std::vector<std::shared_ptr<const Step>> steps_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_TEXT_PRE_TOKENIZER_H_
