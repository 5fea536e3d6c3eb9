#ifndef C3PO_SERVER_PROCESS_JOB_THREAD_H_
#define C3PO_SERVER_PROCESS_JOB_THREAD_H_

#include <cstddef>
#include <deque>
#include <functional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

namespace c3po {

// A thread that does jobs one after the other. Thread-safe.
class JobThread {
 public:
  struct Job {
    std::function<void()> run;                          // On the thread. An exception ends this job alone.
    std::function<void(const absl::Status&)> not_done;  // In place of `run`; must not block.
  };
  // At most `waiting_max` wait; one more is ResourceExhausted with the message `full`. `at_end` is called on the
  // thread, last.
  JobThread(size_t waiting_max, std::string full, std::function<void()> at_end);
  // Ends as Stop does.
  ~JobThread();

  // Calls `not_done` on this thread where the job is not taken. Unavailable: Stop was called.
  void Give(Job job) ABSL_LOCKS_EXCLUDED(mu_);
  // Waits for the job that is being done; those that wait are not done, Unavailable.
  void Stop() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  void Run();

  const size_t waiting_max_;
  const std::string full_;
  const std::function<void()> at_end_;
  absl::Mutex mu_;
  std::deque<Job> jobs_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_PROCESS_JOB_THREAD_H_
