#ifndef C3PO_SERVER_RPC_OTLP_TRACING_H_
#define C3PO_SERVER_RPC_OTLP_TRACING_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/config/server_config.h"
#include "server/metrics/metrics.h"
#include "server/trace/otlp_environment.h"
#include "server/trace/span_exporter.h"
#include "server/trace/tracer.h"

namespace c3po {

// Tracing as the configuration and OpenTelemetry's variables ask for it: what decides which calls are traced, and what
// sends their spans.
class OtlpTracing {
 public:
  // Null: config.otlp_traces_endpoint is empty, and nothing else is read. `metrics` outlives it. Connects later: a
  // collector that is away does not keep the server from starting. InvalidArgument names the setting or the variable.
  static absl::StatusOr<std::unique_ptr<OtlpTracing>> Make(const ServerConfig& config, const std::string& version,
                                                           Metrics* metrics, const ReadVariable& read);

  // Outlives every call that it traces.
  const Tracer& tracer() const { return tracer_; }
  // SpanExporter::Stop: after the calls have ended.
  void Stop() { exporter_.Stop(); }

 private:
  OtlpTracing(std::unique_ptr<SpanSender> sender, const ServerConfig& config, Metrics* metrics);

  SpanExporter exporter_;
  const Tracer tracer_;
};

// The value of an environment variable; empty: it is not set.
std::string EnvironmentVariable(const char* name);

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_OTLP_TRACING_H_
