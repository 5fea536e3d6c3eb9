#ifndef C3PO_CLIENT_CLI_JSON_OUTPUT_H_
#define C3PO_CLIENT_CLI_JSON_OUTPUT_H_

#include <google/protobuf/message.h>

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace c3po {

// A message as one line of protobuf JSON: the .proto's snake_case names; empty lists and zeros are written, so that a
// reader finds every field that is not `optional` or of a oneof.
absl::StatusOr<std::string> ToJsonLine(const google::protobuf::Message& message);

// A text as a JSON string, quotes included. The text is UTF-8.
std::string JsonText(const std::string& text);

// Prints it to stdout with a newline and flushes. Unavailable stdout (a closed pipe) is an error.
absl::Status PrintJsonLine(const google::protobuf::Message& message);

}  // namespace c3po

#endif  // C3PO_CLIENT_CLI_JSON_OUTPUT_H_
