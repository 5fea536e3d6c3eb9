#ifndef C3PO_SERVER_TRACE_TRACE_CONTEXT_H_
#define C3PO_SERVER_TRACE_TRACE_CONTEXT_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace c3po {

using TraceId = std::array<uint8_t, 16>;  // in the order of its hexadecimal digits; not all zero
using SpanId = std::array<uint8_t, 8>;    // the same

// Where a caller is in its trace, as W3C Trace Context (https://www.w3.org/TR/trace-context-2/) carries it in the
// headers `traceparent` and `tracestate`.
struct TraceContext {
  static constexpr uint8_t kSampledFlag = 1, kRandomFlag = 2;

  TraceId trace_id = {};
  SpanId span_id = {};  // the caller's span, which is the parent of the server's
  uint8_t flags = 0;    // kSampledFlag and kRandomFlag; what else the caller set is not kept
  std::string state;    // what other systems keep in the trace: `tracestate`, passed on as it came

  bool sampled() const { return (flags & kSampledFlag) != 0; }
};

// Most bytes of TraceContext::state. Of a longer `tracestate` the members of more than kLongMemberBytes go first, then
// the last ones, as the specification has it.
inline constexpr size_t kTraceStateBytesMax = 512, kLongMemberBytes = 128;

// The context of the two headers, of gRPC metadata or of HTTP; nothing where `traceparent` is empty or not valid:
//   version "-" trace-id "-" parent-id "-" trace-flags     2, 32, 16 and 2 hexadecimal digits, in lower case
// Neither id may be zero, and version ff is invalid. Version 00 is exactly that; of a later version whatever follows a
// further "-" is passed over. A `tracestate` that is not valid is left out: `key=value` members between commas, at most
// 32, no key twice. Several header lines of `tracestate` are one list: join them with a comma. Pure and thread-safe;
// any bytes at all are safe.
std::optional<TraceContext> ParseTraceContext(absl::string_view traceparent, absl::string_view tracestate);

// Hexadecimal digits of an id, in lower case.
std::string TraceHex(absl::Span<const uint8_t> id);

}  // namespace c3po

#endif  // C3PO_SERVER_TRACE_TRACE_CONTEXT_H_
