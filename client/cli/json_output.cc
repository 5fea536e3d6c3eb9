#include "client/cli/json_output.h"

#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>

#include <cstdio>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"

namespace c3po {

absl::StatusOr<std::string> ToJsonLine(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  options.always_print_primitive_fields = true;
  std::string json;
  const auto status = google::protobuf::util::MessageToJsonString(message, &json, options);
  if (!status.ok()) {
    return absl::InternalError(absl::StrCat("the answer cannot be written as JSON: ", status.message().ToString()));
  }
  return json;
}

std::string JsonText(const std::string& text) {
  google::protobuf::Value value;
  value.set_string_value(text);
  std::string json;
  // A text alone always has a JSON form.
  return google::protobuf::util::MessageToJsonString(value, &json).ok() ? json : "\"\"";
}

absl::Status PrintJsonLine(const google::protobuf::Message& message) {
  C3PO_ASSIGN_OR_RETURN(const std::string json, ToJsonLine(message));
  if (std::puts(json.c_str()) < 0 || std::fflush(stdout) != 0) return absl::DataLossError("stdout cannot be written");
  return absl::OkStatus();
}

}  // namespace c3po
