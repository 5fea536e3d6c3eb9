#include "server/process/job_thread.h"

#include <utility>

#include "index/base/escaped_exception.h"

namespace c3po {
namespace {

absl::Status Stopped() { return absl::UnavailableError("the server is shutting down"); }

}  // namespace

JobThread::JobThread(size_t waiting_max, std::string full, std::function<void()> at_end)
    : waiting_max_(waiting_max), full_(std::move(full)), at_end_(std::move(at_end)), thread_([this] { Run(); }) {}

JobThread::~JobThread() { Stop(); }

void JobThread::Stop() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  if (thread_.joinable()) thread_.join();
}

void JobThread::Give(Job job) {
  absl::Status refused;
  {
    absl::MutexLock lock(&mu_);
    if (stopping_) {
      refused = Stopped();
    } else if (jobs_.size() >= waiting_max_) {
      refused = absl::ResourceExhaustedError(full_);
    } else {
      jobs_.push_back(std::move(job));
      return;
    }
  }
  job.not_done(refused);
}

void JobThread::Run() {
  while (true) {
    std::deque<Job> left;
    Job job;
    {
      const auto wakes = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return stopping_ || !jobs_.empty(); };
      absl::MutexLock lock(&mu_, absl::Condition(&wakes));
      if (stopping_) {
        left.swap(jobs_);
      } else {
        job = std::move(jobs_.front());
        jobs_.pop_front();
      }
    }
    for (const Job& unserved : left) (void)CatchEscapedIn(ThreadKind::kWorker, [&] { unserved.not_done(Stopped()); });
    if (job.run == nullptr) break;
    job.not_done = nullptr;  // What it holds goes once the job is done, and not later.
    (void)CatchEscapedIn(ThreadKind::kWorker, job.run);
  }
  at_end_();
}

}  // namespace c3po
