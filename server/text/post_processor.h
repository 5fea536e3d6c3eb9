#ifndef C3PO_SERVER_TEXT_POST_PROCESSOR_H_
#define C3PO_SERVER_TEXT_POST_PROCESSOR_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "server/text/json_field.h"

namespace c3po {

// The last stage of encoding: puts special tokens around a sequence, [CLS] x [SEP] for instance. Implements ByteLevel
// (which changes offsets only, so nothing here), TemplateProcessing's `single`, and Sequence. Immutable and
// thread-safe.
class PostProcessor {
 public:
  // From the field `post_processor`; nullopt (missing or null): nothing is added. InvalidArgument: a type that is not
  // implemented, or a malformed field, naming it.
  static absl::StatusOr<PostProcessor> FromJson(const std::optional<JsonField>& post_processor);

  // Puts `before` and `after` around the sequence.
  static PostProcessor Around(const std::vector<int32_t>& before, const std::vector<int32_t>& after);

  std::vector<int32_t> AddSpecialTokens(std::vector<int32_t> ids) const;

 private:
  // A template's items: nullopt stands for the sequence, a number for a special token's id.
  using Template = std::vector<std::optional<int32_t>>;

  static absl::Status Append(const JsonField& json, int depth, std::vector<Template>* templates);

  std::vector<Template> templates_;  // Applied in order.
};

}  // namespace c3po

#endif  // C3PO_SERVER_TEXT_POST_PROCESSOR_H_
