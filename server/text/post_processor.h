#ifndef C3PO_SERVER_TEXT_POST_PROCESSOR_H_
#define C3PO_SERVER_TEXT_POST_PROCESSOR_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "server/text/json_field.h"

namespace c3po {

// The last stage of encoding: puts special tokens around a sequence, [CLS] x [SEP] for instance. Implements ByteLevel
// (which changes offsets only, so nothing here), TemplateProcessing, and Sequence.
// As in the library, every item of a template is a part of its own for the template that follows it in a Sequence.
// A template is `single` for one part and `pair` for two, of which $A and $B are the first and the second, special
// tokens or not. For more the library has no template either. Immutable and thread-safe.
class PostProcessor {
 public:
  // From the field `post_processor`; nullopt (missing or null): nothing is added. InvalidArgument: a type that is not
  // implemented, a template after one of more than two items, or a malformed field, naming it.
  static absl::StatusOr<PostProcessor> FromJson(const std::optional<JsonField>& post_processor);

  // Puts `before` and `after` around the sequence.
  static PostProcessor Around(const std::vector<int32_t>& before, const std::vector<int32_t>& after);

  std::vector<int32_t> AddSpecialTokens(std::vector<int32_t> ids) const;

  // What it puts before and after every sequence, which stays in one piece.
  struct Surroundings {
    std::vector<int32_t> before;
    std::vector<int32_t> after;
  };
  Surroundings AroundSequence() const;

 private:
  // Either special tokens, or a part of what came before: 0 is $A, 1 is $B.
  struct Item {
    std::optional<int> part;
    std::vector<int32_t> ids;
  };
  using Template = std::vector<Item>;

  // *parts: how many the processors up to here give.
  static absl::Status Append(const JsonField& json, int depth, size_t* parts, std::vector<Template>* templates);
  static absl::StatusOr<Template> ReadTemplate(const JsonField& json, size_t parts);

  std::vector<Template> templates_;  // Applied in order.
};

}  // namespace c3po

#endif  // C3PO_SERVER_TEXT_POST_PROCESSOR_H_
