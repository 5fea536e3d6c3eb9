#ifndef C3PO_SERVER_TEXT_PATTERN_FIELD_H_
#define C3PO_SERVER_TEXT_PATTERN_FIELD_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/text/json_field.h"
#include "server/text/regex.h"

namespace c3po {

// Reads the member `pattern` of a stage, {"String": literal} or {"Regex": expression}. InvalidArgument names the field.
absl::StatusOr<Regex> ReadPattern(const JsonField& stage);

// `text` with every match of `pattern` replaced by `content`. ResourceExhausted as Regex::FindAll.
absl::StatusOr<std::string> ReplaceAll(const Regex& pattern, absl::string_view content, absl::string_view text);

}  // namespace c3po

#endif  // C3PO_SERVER_TEXT_PATTERN_FIELD_H_
