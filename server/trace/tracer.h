#ifndef C3PO_SERVER_TRACE_TRACER_H_
#define C3PO_SERVER_TRACE_TRACER_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/trace/call_trace.h"
#include "server/trace/trace_context.h"

namespace c3po {

// Whether a trace of this id is recorded where `ratio` of all are: with R the number of its last 56 bits, as
// OpenTelemetry's probability sampler has it,
//   R >= (1 - ratio) 2^56
// Whoever samples by the same rule and at least the same ratio records it too. ratio in [0, 1]. Pure.
bool SampledByRatio(const TraceId& id, double ratio);

TraceId NewTraceId();  // random, thread-safe
SpanId NewSpanId();    // the same

// Says which calls are traced, and begins their traces:
//   a caller's trace       is recorded where the caller's sampled flag says so, and in no other case
//   a call without one     begins a trace of its own, recorded by SampledByRatio
// Thread-safe.
class Tracer {
 public:
  // `deliver` takes the spans of ended calls, from any thread, and does not block. sample_ratio in [0, 1].
  Tracer(double sample_ratio, CallTrace::Deliver deliver) : sample_ratio_(sample_ratio), deliver_(std::move(deliver)) {}

  // The trace of a call that arrived at `arrival` (SteadyNow) and is answered here; null: it is not recorded. `parent`
  // is what ParseTraceContext made of its headers.
  std::shared_ptr<CallTrace> Begin(const std::optional<TraceContext>& parent, absl::string_view name,
                                   absl::Time arrival) const;

 private:
  const double sample_ratio_;
  const CallTrace::Deliver deliver_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_TRACE_TRACER_H_
