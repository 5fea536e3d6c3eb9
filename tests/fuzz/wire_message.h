#ifndef C3PO_TESTS_FUZZ_WIRE_MESSAGE_H_
#define C3PO_TESTS_FUZZ_WIRE_MESSAGE_H_

#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/text_format.h>

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/rpc/wire.h"

namespace c3po {

class SilentCollector : public google::protobuf::io::ErrorCollector {
 public:
  void AddError(int, google::protobuf::io::ColumnNumber, const std::string&) override {}
};

// What a service reads of these bytes, if it is a message at all: its wire format, or where '#' comes first its text
// format.
template <typename Request>
absl::StatusOr<Request> ReadMessage(absl::string_view input) {
  std::string bytes(input);
  if (!bytes.empty() && bytes[0] == '#') {
    Request request;
    google::protobuf::TextFormat::Parser parser;
    SilentCollector silent;
    parser.RecordErrorsTo(&silent);
    if (!parser.ParseFromString(bytes.substr(1), &request)) return absl::InvalidArgumentError("no text format");
    bytes = request.SerializeAsString();
  }
  const grpc::Slice slice(bytes);
  return ParseRequest<Request>(grpc::ByteBuffer(&slice, 1));
}

}  // namespace c3po

#endif  // C3PO_TESTS_FUZZ_WIRE_MESSAGE_H_
