#ifndef C3PO_SERVER_TEXT_JINJA_REPLY_H_
#define C3PO_SERVER_TEXT_JINJA_REPLY_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace c3po {

// One reply of the renderer's process; jinja_renderer.py says what each kind means.
struct JinjaReply {
  enum class Kind { kReady, kMissing, kPrompt, kRefused, kFailed, kMalformed, kTooLong, kNoMemory };
  Kind kind;
  std::string text;  // UTF-8.
};

// InvalidArgument: anything but a JSON object with one of the known members, a string. A process whose template broke
// out of its sandbox may write what it likes. Pure.
absl::StatusOr<JinjaReply> ParseJinjaReply(absl::string_view json);

}  // namespace c3po

#endif  // C3PO_SERVER_TEXT_JINJA_REPLY_H_
