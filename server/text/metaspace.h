#ifndef C3PO_SERVER_TEXT_METASPACE_H_
#define C3PO_SERVER_TEXT_METASPACE_H_

#include <string>

#include "absl/status/statusor.h"
#include "server/text/json_field.h"

namespace c3po {

// Options of Metaspace, which writes each space as a visible mark (U+2581 as a rule), shared by the pre-tokenizer and
// the decoder of that name.
struct MetaspaceOptions {
  enum class Prepend {
    kAlways,  // Every segment of text gets a mark in front, unless it has one.
    kFirst,   // Only the one that starts the input.
    kNever,
  };

  // From {"type": "Metaspace", "replacement", "prepend_scheme", "split"}; older files say "add_prefix_space" in place
  // of "prepend_scheme". InvalidArgument names the field, also when the two disagree.
  static absl::StatusOr<MetaspaceOptions> FromJson(const JsonField& json);

  std::string mark;  // One character, UTF-8.
  Prepend prepend;
  bool split;  // A new word begins at each mark.
};

}  // namespace c3po

#endif  // C3PO_SERVER_TEXT_METASPACE_H_
