#ifndef C3PO_CLIENT_REQUEST_TEXT_H_
#define C3PO_CLIENT_REQUEST_TEXT_H_

#include <google/protobuf/message.h>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace c3po {

// True for well-formed UTF-8 (Unicode table 3-7: no overlong forms, no surrogates, nothing above U+10FFFF).
bool IsUtf8(absl::string_view text);

// protobuf would send a string that is not UTF-8, and the server could only answer that the message does not parse.
// InvalidArgument, naming the first such field by its dotted path ("chat.messages[1].content: not valid UTF-8"); OK
// when there is none. Pure and thread-safe.
absl::Status CheckText(const google::protobuf::Message& message);

}  // namespace c3po

#endif  // C3PO_CLIENT_REQUEST_TEXT_H_
