#ifndef C3PO_SERVER_TRACE_SPAN_QUEUE_H_
#define C3PO_SERVER_TRACE_SPAN_QUEUE_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "absl/time/time.h"
#include "server/trace/span.h"

namespace c3po {

struct ExportLimits {
  size_t queued_spans_max = 8192;                    // that wait or are being sent; further ones are dropped
  size_t batch_spans = 512;                          // a batch is sent as soon as so many wait,
  absl::Duration batch_wait_max = absl::Seconds(1);  // or once its first span has waited so long
  absl::Duration send_max = absl::Seconds(10);       // for one attempt
  absl::Duration first_pause = absl::Seconds(1);     // after an attempt that failed; twice as long each time,
  absl::Duration pause_max = absl::Seconds(30);      // at most
  absl::Duration flush_max = absl::Seconds(5);       // for what waits when the server stops
  absl::Duration told_every = absl::Minutes(1);      // a line of the log about dropped spans, at most
};

// Spans of ended calls that wait to be sent, and when that is due. A call's spans stay together: they are taken or
// dropped as a whole, and go in one batch, which may thus be larger than batch_spans by those of one call. Memory is
// bounded by queued_spans_max. No clock and no thread of its own; one caller at a time.
class SpanQueue {
 public:
  explicit SpanQueue(const ExportLimits& limits) : limits_(limits) {}

  // False: no room, and none of them are kept.
  bool Add(std::vector<Span> spans, absl::Time now);

  // When the next attempt is to be made; InfinitePast: now, InfiniteFuture: nothing waits.
  absl::Time Due() const;

  // The batch to attempt next: that of the last attempt, where Retry was called, else the oldest calls. Until Sent or
  // Retry. Empty: nothing waits.
  std::vector<Span> Take();
  // The batch was sent, or is given up: its room is free, and there is no pause before the next one.
  void Finished(size_t spans);
  // The attempt failed, and the same batch is to be tried again: after `asked`, where the receiver said when, else
  // after the next pause, times `jitter`.
  void Retry(std::vector<Span> batch, absl::Time now, absl::Duration asked, double jitter);

  size_t spans() const { return held_; }  // that wait or were taken

 private:
  struct Call {
    absl::Time added;
    std::vector<Span> spans;
  };

  const ExportLimits limits_;
  std::deque<Call> calls_;
  std::vector<Span> failed_;  // the batch to try again
  size_t held_ = 0;           // spans of calls_, of failed_, and of the batch that was taken
  size_t waiting_ = 0;        // of calls_
  absl::Time retry_at_ = absl::InfinitePast();
  absl::Duration pause_ = absl::ZeroDuration();  // before the last retry; zero: the last attempt went well
};

}  // namespace c3po

#endif  // C3PO_SERVER_TRACE_SPAN_QUEUE_H_
