#ifndef C3PO_SERVER_TRACE_OTLP_ENVIRONMENT_H_
#define C3PO_SERVER_TRACE_OTLP_ENVIRONMENT_H_

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace c3po {

using NamedTexts = std::vector<std::pair<std::string, std::string>>;

// What OpenTelemetry's own variables say (its specification, "Environment variables"), where traces are exported at
// all:
//   OTEL_EXPORTER_OTLP_TRACES_HEADERS, else OTEL_EXPORTER_OTLP_HEADERS   headers of each export: keys of a vendor,
//   which
//                                                                        therefore are no settings, and not in the log
//   OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES                          what the spans say of their server
struct OtlpEnvironment {
  NamedTexts headers;              // names in lower case, as gRPC metadata has them
  std::string service_name;        // empty: nothing says
  NamedTexts resource_attributes;  // without service.name
};

// The value of a variable; empty: it is not set.
using ReadVariable = std::function<std::string(const char* name)>;
// InvalidArgument names the variable and the entry, never its value.
absl::StatusOr<OtlpEnvironment> ReadOtlpEnvironment(const ReadVariable& read);

// "name=value,name=value", blanks around each left out, values percent-decoded. InvalidArgument: an entry without a
// name or "=", or with a percent sign that two hexadecimal digits do not follow.
absl::StatusOr<NamedTexts> ParseNamedTexts(absl::string_view list);

}  // namespace c3po

#endif  // C3PO_SERVER_TRACE_OTLP_ENVIRONMENT_H_
