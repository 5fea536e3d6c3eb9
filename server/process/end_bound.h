#ifndef C3PO_SERVER_PROCESS_END_BOUND_H_
#define C3PO_SERVER_PROCESS_END_BOUND_H_

#include <functional>

#include "absl/time/time.h"
#include "server/process/periodic.h"

namespace c3po {

// Ends the process at once, with kLateExitCode, unless this has gone within `limit`. gRPC waits without end for a call
// that was lost, such as one for which there was no memory.
class EndBound {
 public:
  static constexpr int kLateExitCode = 3;

  // `before_exit` runs on a thread of its own before the process ends; it must not take long.
  EndBound(absl::Duration limit, std::function<void()> before_exit);

 private:
  Periodic periodic_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_PROCESS_END_BOUND_H_
