#ifndef C3PO_SERVER_RPC_OTLP_SENDER_H_
#define C3PO_SERVER_RPC_OTLP_SENDER_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/config/otlp_endpoint.h"
#include "server/trace/otlp_environment.h"
#include "server/trace/span_exporter.h"

namespace opentelemetry::proto::collector::trace::v1 {
class ExportTraceServiceRequest;
}

namespace c3po {

// Sends spans to a collector by OpenTelemetry's protocol over gRPC (opentelemetry.proto.collector.trace.v1, method
// Export). Connects when there is something to send, and again whenever the connection was lost.
class OtlpSender final : public SpanSender {
 public:
  struct Options {
    OtlpEndpoint endpoint;
    std::string ca;       // certificates in PEM that sign the collector's; empty: the system's
    NamedTexts headers;   // metadata of each export
    NamedTexts resource;  // attributes of the server that the spans are of
    std::string version;  // of the server
  };
  explicit OtlpSender(Options options);
  ~OtlpSender() override;

  // What may be sent again is what the protocol's specification lists: CANCELLED, DEADLINE_EXCEEDED, ABORTED,
  // OUT_OF_RANGE, UNAVAILABLE, DATA_LOSS, and RESOURCE_EXHAUSTED where the collector says when. The status has the
  // collector's message.
  SendOutcome Send(const std::vector<Span>& batch, absl::Duration limit) override;
  void Cancel() override;

 private:
  struct Connection;
  const Options options_;
  const std::unique_ptr<Connection> connection_;
};

// The message of a batch: one resource, one scope, the spans in their order.
opentelemetry::proto::collector::trace::v1::ExportTraceServiceRequest SpansToProto(const std::vector<Span>& batch,
                                                                                   const NamedTexts& resource,
                                                                                   const std::string& version);

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_OTLP_SENDER_H_
