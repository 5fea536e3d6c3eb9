#ifndef C3PO_SERVER_PROCESS_PROCESS_SIGNALS_H_
#define C3PO_SERVER_PROCESS_PROCESS_SIGNALS_H_

#include <functional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace c3po {

// What the process does on signals, on a thread of its own:
//   SIGTERM, SIGINT   before Serving(): ends the process at once with exit code 0, as nothing was let in yet;
//                     after it: AwaitStop returns, and a second one ends the process at once, with 128 + its number
//   SIGHUP            calls what OnReload was given
//   SIGPIPE, SIGXFSZ  nothing: the write that caused it returns an error
// One for a process, made before any other thread, since threads inherit which signals are blocked.
class ProcessSignals {
 public:
  // `before_exit` runs before the process ends at once; it must not take long.
  explicit ProcessSignals(std::function<void()> before_exit);
  ~ProcessSignals();
  ProcessSignals(const ProcessSignals&) = delete;
  ProcessSignals& operator=(const ProcessSignals&) = delete;

  // What SIGHUP does; null: nothing. Returns when what it did before is not running. A SIGHUP that came before the
  // first call is not kept: what would be read again has just been read.
  void OnReload(std::function<void()> reload);
  void Serving();
  // Until the first SIGTERM or SIGINT, or StopServing.
  void AwaitStop();
  // As the first of them, after Serving(). Any thread.
  void StopServing();

 private:
  void Run();
  void Stop(int signal);

  const std::function<void()> before_exit_;
  absl::Mutex mu_;
  bool serving_ ABSL_GUARDED_BY(mu_) = false;
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
  bool ending_ ABSL_GUARDED_BY(mu_) = false;  // The destructor's.
  absl::Mutex reload_mu_;
  std::function<void()> reload_ ABSL_GUARDED_BY(reload_mu_);
  std::thread thread_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_PROCESS_PROCESS_SIGNALS_H_
