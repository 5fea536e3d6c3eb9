#ifndef C3PO_SERVER_SCHEDULER_ENGINE_H_
#define C3PO_SERVER_SCHEDULER_ENGINE_H_

#include <atomic>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "server/scheduler/continuous_batcher.h"

namespace c3po {

// The thread that owns the device. Requests from any thread land in an inbox; the thread moves them into the batcher
// and steps it while there is work, and sleeps otherwise. An exception of a request's sink or task, std::bad_alloc too,
// ends that request (Internal, ResourceExhausted); one of a step itself ends all that are in hand. Thread-safe.
class Engine {
 public:
  // `model` and `metrics` are not owned and outlive the engine. pending_max: requests waiting or running; beyond it
  // Submit refuses.
  Engine(ModelRunner* model, const BatcherLimits& limits, int pending_max, Metrics* metrics);
  // As Stop.
  ~Engine();

  // The request ends through its sink, unless an error is returned here, and then the sink is not called.
  // ResourceExhausted: pending_max reached. Unavailable: stopping.
  absl::Status Submit(SequenceRequest request);

  // One more sequence of a call that Submit took: neither a full queue nor Stop refuses it. Called from a sink of such
  // a sequence only, so on the engine thread.
  void Continue(SequenceRequest request);

  // Takes no more requests, and waits up to `limit` for those in hand; what is left then ends with Unavailable.
  // Idempotent.
  void Stop(absl::Duration limit);

  int pending() const { return pending_.load(std::memory_order_relaxed); }

  // For how long there has been work without a step that ended; zero when idle. Answers also while the engine thread is
  // stuck.
  absl::Duration StalledFor() const;

 private:
  class CountedSink;
  SequenceRequest Counted(SequenceRequest request);
  void Run();

  ContinuousBatcher batcher_;  // Engine thread only.
  const int pending_max_;
  std::atomic<int> pending_{0};
  std::atomic<int64_t> progress_nanoseconds_{0};  // Unix time of the last step's end, or of work that ended idleness.
  absl::Mutex mu_;
  std::vector<SequenceRequest> inbox_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  absl::Time abort_at_ ABSL_GUARDED_BY(mu_) = absl::InfiniteFuture();
  std::thread thread_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_SCHEDULER_ENGINE_H_
