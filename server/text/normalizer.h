#ifndef C3PO_SERVER_TEXT_NORMALIZER_H_
#define C3PO_SERVER_TEXT_NORMALIZER_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/text/json_field.h"

namespace c3po {

// The first stage: rewrites text before it is cut into words. Implements NFC, NFD, NFKC, NFKD, Prepend, Replace,
// Lowercase, Strip, BertNormalizer, and Sequence of these. Immutable and thread-safe.
class Normalizer {
 public:
  // From the field `normalizer`; nullopt (the field is missing or null): text passes unchanged. InvalidArgument: a type
  // that is not implemented, or a malformed field, naming it.
  static absl::StatusOr<Normalizer> FromJson(const std::optional<JsonField>& normalizer);

  // Rewrites *text, valid UTF-8 before and after. Where it `continues` another text, Prepend puts nothing before it.
  // ResourceExhausted: a pattern backtracks without end.
  absl::Status Normalize(std::string* text, bool continues = false) const;

  // Whether, for every X that ends before `c` and every Y that begins with it, the normal form of X + Y is that of X
  // followed by that of Y as what `continues`. True of steps that rewrite character by character (Prepend, Lowercase, a
  // Replace of one character), and of Unicode's forms by StartsNormalization. All others, and a second form behind
  // characters that the first one may have composed, look across.
  bool SplitsBefore(char32_t c) const;

  // One rewriting; internal to normalizer.cc.
  class Step;

 private:
  std::vector<std::shared_ptr<const Step>> steps_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_TEXT_NORMALIZER_H_
