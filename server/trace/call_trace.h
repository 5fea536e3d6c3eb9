#ifndef C3PO_SERVER_TRACE_CALL_TRACE_H_
#define C3PO_SERVER_TRACE_CALL_TRACE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "index/base/mutex.h"
#include "server/trace/span.h"

namespace c3po {

// The span of one call that is traced, and those of its stages under it, as they become known. When it ends, or goes
// without an end, all of them are given to `deliver` at once, from whichever thread that is. What comes later is
// dropped. A call has at most kSpansMax stages, kAttributesMax attributes a span, and kValueBytesMax bytes in a text;
// what is beyond is left out or cut. Times are SteadyNow's; in the spans they are by the time of day that was at the
// call's beginning. Thread-safe.
class CallTrace : public std::enable_shared_from_this<CallTrace> {
 public:
  static constexpr size_t kSpansMax = 64, kAttributesMax = 64, kValueBytesMax = 1024;
  using Deliver = std::function<void(std::vector<Span>)>;
  using NewSpanId = std::function<SpanId()>;

  // `call` has its ids, flags, state, name and kind. `unix_nanoseconds`: the time of day at `begin`.
  CallTrace(Span call, absl::Time begin, int64_t unix_nanoseconds, NewSpanId new_span_id, Deliver deliver);
  ~CallTrace();
  CallTrace(const CallTrace&) = delete;
  CallTrace& operator=(const CallTrace&) = delete;

  const TraceId& trace_id() const { return trace_id_; }
  const SpanId& span_id() const { return span_id_; }
  absl::Time begin() const { return begin_; }

  // An attribute of the call's span; of a key that is there already the value is replaced.
  void Set(absl::string_view key, AttributeValue value);
  // A stage of the call: a span under the call's. One that ends before it begins has no length.
  void AddStage(absl::string_view name, absl::Time begin, absl::Time end, SpanAttributes attributes = {});
  // The same; where the call has a stage of that name, that one ends at `end` instead: work done in pieces.
  void ExtendStage(absl::string_view name, absl::Time begin, absl::Time end);
  // What happened in the last stage that was added.
  void AddEvent(absl::string_view name, absl::Time at);
  bool HasStage(absl::string_view name) const;
  // The end of the last stage that was added; begin() where there is none.
  absl::Time StagesEnd() const;

  // One of the requests of a call that answers several, one after the other: a span under the call's, with stages of
  // its own, that ends by itself.
  std::shared_ptr<CallTrace> BeginRequest(absl::string_view name, absl::Time begin);

  // The end, by whatever way; the first counts. `failure` says what failed on the server, and is read where `failed`.
  void End(absl::Time at, bool failed, absl::string_view failure);

 private:
  Span StageOf(absl::string_view name, absl::Time begin, absl::Time end) const;
  int64_t UnixNanoseconds(absl::Time at) const;

  const TraceId trace_id_;
  const SpanId span_id_;
  const uint32_t flags_;  // of spans under it: their parent is here
  const std::string trace_state_;
  const absl::Time begin_;
  const int64_t begin_unix_nanoseconds_;
  const NewSpanId new_span_id_;
  const Deliver deliver_;
  mutable Mutex mutex_;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Time stages_end_ ABSL_GUARDED_BY(mutex_);
  std::vector<Span> spans_ ABSL_GUARDED_BY(mutex_);  // The call's own is the first.
};

}  // namespace c3po

#endif  // C3PO_SERVER_TRACE_CALL_TRACE_H_
