#ifndef C3PO_SERVER_PIPELINE_WORKER_POOL_H_
#define C3PO_SERVER_PIPELINE_WORKER_POOL_H_

#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace c3po {

// A few threads for what must run neither in a transport's callback nor on the engine thread: tokenizing, embedding,
// searching. First come, first served; bounded. Thread-safe.
class WorkerPool {
 public:
  WorkerPool(int threads, int queue_max);
  // Runs what is queued, then returns.
  ~WorkerPool();

  // False, and `job` is not taken, when queue_max jobs wait.
  bool Submit(std::function<void()> job);

 private:
  void Run();

  const size_t queue_max_;
  absl::Mutex mu_;
  std::deque<std::function<void()>> jobs_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_WORKER_POOL_H_
