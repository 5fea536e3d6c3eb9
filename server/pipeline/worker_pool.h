#ifndef C3PO_SERVER_PIPELINE_WORKER_POOL_H_
#define C3PO_SERVER_PIPELINE_WORKER_POOL_H_

#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

namespace c3po {

// A few threads for what must run neither in a transport's callback nor on the engine thread: tokenizing, embedding,
// searching. First come, first served; bounded. An exception of a job, std::bad_alloc too, ends that job alone.
// Thread-safe.
class WorkerPool {
 public:
  WorkerPool(int threads, int queue_max);
  // Runs what is queued, then returns.
  ~WorkerPool();

  using Job = std::function<absl::Status()>;
  using Failed = std::function<void(const absl::Status&)>;
  // Runs `job`; what it returns other than OK, or what its exception becomes (escaped_exception.h), goes to `failed`.
  // False, and `job` is not taken, when queue_max jobs wait.
  bool Submit(Job job, Failed failed);

 private:
  struct Waiting {
    Job job;
    Failed failed;
  };
  void Run();

  const size_t queue_max_;
  absl::Mutex mu_;
  std::deque<Waiting> jobs_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_WORKER_POOL_H_
