#include "server/pipeline/worker_pool.h"

#include <utility>

#include "index/base/escaped_exception.h"

namespace c3po {

WorkerPool::WorkerPool(int threads, int queue_max) : queue_max_(static_cast<size_t>(queue_max)) {
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Run(); });
}

WorkerPool::~WorkerPool() {
  {
    const absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  for (std::thread& thread : threads_) thread.join();
}

bool WorkerPool::Submit(Job job, Failed failed) {
  const absl::MutexLock lock(&mu_);
  if (jobs_.size() >= queue_max_) return false;
  jobs_.push_back({std::move(job), std::move(failed)});
  return true;
}

void WorkerPool::Run() {
  while (true) {
    Waiting next;
    {
      const absl::MutexLock lock(&mu_);
      const auto awake = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return stopping_ || !jobs_.empty(); };
      mu_.Await(absl::Condition(&awake));
      if (jobs_.empty()) return;
      next = std::move(jobs_.front());
      jobs_.pop_front();
    }
    const absl::Status status = CatchEscaped(ThreadKind::kWorker, next.job);
    if (!status.ok() && next.failed) (void)CatchEscapedIn(ThreadKind::kWorker, [&] { next.failed(status); });
    (void)CatchEscapedIn(ThreadKind::kWorker, [&] { next = Waiting(); });  // What they hold may end calls.
  }
}

}  // namespace c3po
