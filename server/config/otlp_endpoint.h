#ifndef C3PO_SERVER_CONFIG_OTLP_ENDPOINT_H_
#define C3PO_SERVER_CONFIG_OTLP_ENDPOINT_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace c3po {

// Where spans are collected, over gRPC.
struct OtlpEndpoint {
  std::string target;  // HOST:PORT
  bool tls = false;
  bool local = false;  // on this machine
};

// Of "http://HOST[:PORT]" or "https://HOST[:PORT]", as OTEL_EXPORTER_OTLP_TRACES_ENDPOINT has it for gRPC; an IPv6 host
// stands in brackets, the port is 4317 where none is given, and a "/" may follow. InvalidArgument says what is wrong:
// no scheme or another one, no host, a path, a query or a user.
absl::StatusOr<OtlpEndpoint> ParseOtlpEndpoint(absl::string_view url);

}  // namespace c3po

#endif  // C3PO_SERVER_CONFIG_OTLP_ENDPOINT_H_
