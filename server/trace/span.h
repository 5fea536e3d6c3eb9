#ifndef C3PO_SERVER_TRACE_SPAN_H_
#define C3PO_SERVER_TRACE_SPAN_H_

#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/string_view.h"
#include "server/trace/trace_context.h"

namespace c3po {

using AttributeValue = std::variant<bool, int64_t, double, std::string, std::vector<std::string>>;

// `key` is a literal: names of OpenTelemetry's semantic conventions, or of our own, which begin with "c3po.".
struct SpanAttribute {
  // Made in its place (emplace_back): GCC 12 takes the parts of a variant that is moved for uninitialized.
  template <typename Value>
  SpanAttribute(absl::string_view key, Value value) : key(key), value(std::move(value)) {}

  absl::string_view key;
  AttributeValue value;
};
using SpanAttributes = std::vector<SpanAttribute>;

struct SpanEvent {
  absl::string_view name;  // a literal
  int64_t unix_nanoseconds = 0;
};

// A piece of work in a trace, as OpenTelemetry's data model has it. Ended: nothing of it changes any more.
struct Span {
  enum class Kind { kInternal, kServer };
  // Of `flags`, beside those of TraceContext: whether it is known if the parent is of another process, and whether it
  // is.
  static constexpr uint32_t kHasIsRemote = 0x100, kIsRemote = 0x200;

  TraceId trace_id = {};
  SpanId span_id = {}, parent_id = {};  // parent_id all zero: the root of its trace
  uint32_t flags = kHasIsRemote;
  std::string trace_state;
  std::string name;
  Kind kind = Kind::kInternal;
  int64_t begin_unix_nanoseconds = 0, end_unix_nanoseconds = 0;
  SpanAttributes attributes;
  std::vector<SpanEvent> events;
  bool failed = false;  // its status is an error, and `failure` says which
  std::string failure;
};

}  // namespace c3po

#endif  // C3PO_SERVER_TRACE_SPAN_H_
