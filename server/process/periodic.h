#ifndef C3PO_SERVER_PROCESS_PERIODIC_H_
#define C3PO_SERVER_PROCESS_PERIODIC_H_

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

#include "absl/time/time.h"

namespace c3po {

// Calls `look` every so often, by the steady clock, on a thread of its own. The destructor returns once `look` is not
// running and will not run again. An exception of `look` is caught (escaped_exception.h), and it is called again.
class Periodic {
 public:
  Periodic(absl::Duration every, std::function<void()> look);
  ~Periodic();
  Periodic(const Periodic&) = delete;
  Periodic& operator=(const Periodic&) = delete;

 private:
  void Run();

  const absl::Duration every_;
  const std::function<void()> look_;
  // Not absl::Mutex: its timed waits are by the wall clock, and last as long as that is set back.
  std::mutex mu_;
  std::condition_variable ending_changed_;
  bool ending_ = false;  // Under mu_.
  std::thread thread_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_PROCESS_PERIODIC_H_
