#ifndef C3PO_SERVER_TRACE_SPAN_EXPORTER_H_
#define C3PO_SERVER_TRACE_SPAN_EXPORTER_H_

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/metrics/metrics.h"
#include "server/trace/span_queue.h"

namespace c3po {

// What came of one attempt to send a batch.
struct SendOutcome {
  absl::Status status;
  bool retry = false;                                 // of one that failed: the same batch may be sent again
  absl::Duration retry_after = absl::ZeroDuration();  // where the receiver says when
  int64_t rejected = 0;                               // of one that succeeded: spans that the receiver refused
};

// Sends spans to where they are collected.
class SpanSender {
 public:
  virtual ~SpanSender() = default;
  // Waits for the receiver's answer, for `limit` at most.
  virtual SendOutcome Send(const std::vector<Span>& batch, absl::Duration limit) = 0;
  // Ends a Send that waits, and lets later ones fail at once. From another thread.
  virtual void Cancel() = 0;
};

// Hands the spans of ended calls to a SpanSender, in batches, on a thread of its own. Where the receiver is away, spans
// wait until the queue is full; those of further calls are dropped and counted, and nobody waits for them. The log has
// a warning (`traces_not_sent`) when attempts begin to fail, a line (`traces_sent`) when they succeed again, and at
// most one a minute (`trace_spans_dropped`) while spans are dropped. Thread-safe.
class SpanExporter {
 public:
  // `metrics` may be null; it outlives the exporter. `endpoint`: of the log.
  SpanExporter(std::unique_ptr<SpanSender> sender, std::string endpoint, const ExportLimits& limits, Metrics* metrics);
  // As Stop.
  ~SpanExporter();
  SpanExporter(const SpanExporter&) = delete;
  SpanExporter& operator=(const SpanExporter&) = delete;

  // Takes a lock for as long as it takes to move `spans`; never waits for the receiver.
  void Add(std::vector<Span> spans);

  // Sends what waits, each batch once, until that is done, an attempt fails or flush_max is over; the rest is dropped.
  // What is added later is dropped as well.
  void Stop();

 private:
  void Run();
  // One attempt, unlocked in between. False: the thread is to end.
  bool SendOnce(std::unique_lock<std::mutex>& lock);
  void Tell(const absl::Status& status);
  void Drop(size_t spans);

  const std::unique_ptr<SpanSender> sender_;
  const std::string endpoint_;
  const ExportLimits limits_;
  Metrics* const metrics_;
  // Not absl::Mutex: its timed waits are by the wall clock.
  std::mutex mutex_;
  std::condition_variable changed_, done_changed_;
  SpanQueue queue_;                                // Under mutex_.
  bool ending_ = false, done_ = false;             // Under mutex_.
  absl::Time flush_end_ = absl::InfiniteFuture();  // Under mutex_.
  std::atomic<int64_t> dropped_{0};
  // Of the thread alone.
  bool failing_ = false;
  int64_t dropped_told_ = 0;
  absl::Time told_at_ = absl::InfinitePast();
  std::minstd_rand jitter_{std::random_device()()};
  std::thread thread_;  // Last: it uses all of the above.
};

}  // namespace c3po

#endif  // C3PO_SERVER_TRACE_SPAN_EXPORTER_H_
