#ifndef C3PO_SERVER_RPC_CALL_SPAN_H_
#define C3PO_SERVER_RPC_CALL_SPAN_H_

#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/metrics/metrics.h"
#include "server/trace/call_trace.h"
#include "server/trace/trace_context.h"
#include "server/trace/tracer.h"

namespace c3po {

// The server span of a call, by OpenTelemetry's semantic conventions. Of gRPC: its name is the method's full one,
// "c3po.v1.GenerationService/Generate", its attributes are rpc.* and network.peer.*. Of HTTP: "POST /v1/completions",
// http.request.method and http.route; HttpCall adds http.response.status_code. Its status is an error where the fault
// is the server's.

// "c3po.v1.GenerationService", of a gRPC method's service; "OpenAI", of HTTP's.
std::string FullServiceName(Metrics::Rpc rpc);

// Null: the call is not recorded. `peer` is the address, as gRPC writes it.
std::shared_ptr<CallTrace> BeginCallSpan(const Tracer& tracer, const std::optional<TraceContext>& parent,
                                         Metrics::Rpc rpc, const std::string& peer, absl::Time arrival);

// The end of the span of a call, or of one of its requests. `trace` may be null. Where there is no memory for it, the
// span is lost.
void EndCallSpan(CallTrace* trace, Metrics::Rpc rpc, const absl::Status& status) noexcept;

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_CALL_SPAN_H_
