#ifndef C3PO_SERVER_SCHEDULER_ENGINE_H_
#define C3PO_SERVER_SCHEDULER_ENGINE_H_

#include <atomic>
#include <deque>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "server/scheduler/continuous_batcher.h"

namespace c3po {

// What the engine had to do after its last step.
struct EngineLoad {
  int64_t running = 0;           // Sequences in the batch.
  int64_t waiting = 0;           // Sequences that have no place there yet.
  int64_t waiting_tokens = 0;    // Prompt tokens of those that the batcher has seen.
  int64_t kv_tokens_used = 0;    // Positions of the cache that are held.
  double tokens_per_second = 0;  // Generated, over the last two seconds; 0 once nothing has been computed for so long.
};

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

  EngineLoad load() const;

  // For how long there has been work without a step that ended; zero when idle. Answers also while the engine thread is
  // stuck.
  absl::Duration StalledFor() const;

 private:
  class CountedSink;
  SequenceRequest Counted(SequenceRequest request);
  void Run();
  void NoteLoad();

  ContinuousBatcher batcher_;  // Engine thread only.
  const int pending_max_;
  std::atomic<int> pending_{0};
  std::atomic<int64_t> progress_nanoseconds_{0};  // Unix time of the last step's end, or of work that ended idleness.
  mutable absl::Mutex load_mutex_;
  EngineLoad load_ ABSL_GUARDED_BY(load_mutex_);
  // Engine thread only: when so many tokens had been generated, samples of the last two seconds.
  std::deque<std::pair<absl::Time, int64_t>> generated_;
  absl::Mutex mu_;
  std::vector<SequenceRequest> inbox_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  absl::Time abort_at_ ABSL_GUARDED_BY(mu_) = absl::InfiniteFuture();
  std::thread thread_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_SCHEDULER_ENGINE_H_
