#ifndef C3PO_SERVER_TEXT_TOKEN_MODEL_H_
#define C3PO_SERVER_TEXT_TOKEN_MODEL_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/text/json_field.h"
#include "server/text/vocabulary.h"

namespace c3po {

// The stage that turns one word, as the pre-tokenizer cut it, into pieces of a vocabulary. Immutable and thread-safe.
class TokenModel {
 public:
  virtual ~TokenModel() = default;

  // From the field `model` of a tokenizer.json: BPE or WordPiece. InvalidArgument: another type, an option that is not
  // implemented, or a malformed field, naming it.
  static absl::StatusOr<std::unique_ptr<const TokenModel>> FromJson(const JsonField& model);

  // Appends the ids of `word` (valid UTF-8, not empty) to *ids.
  virtual void Tokenize(absl::string_view word, std::vector<int32_t>* ids) const = 0;

  // Whether, for every X that ends with `left` and every Y that begins with `right`, the ids of the word X + Y are
  // those of X followed by those of Y.
  virtual bool NeverJoins(char32_t left, char32_t right) const = 0;

  virtual const Vocabulary& vocabulary() const = 0;
};

}  // namespace c3po

#endif  // C3PO_SERVER_TEXT_TOKEN_MODEL_H_
