#ifndef C3PO_CLIENT_CLI_INTERRUPT_H_
#define C3PO_CLIENT_CLI_INTERRUPT_H_

#include <thread>

#include "client/cancellation.h"

namespace c3po {

// Turns SIGINT and SIGTERM into Cancel() for the life of this object; one per process. A signal that finds no call to
// end and nobody who watches for it (Cancellation::Watched), or a second one while the first is being obeyed, ends the
// process with kExitCancelled: reads of stdin cannot be cancelled. Signals within half a second of the one before are
// the same wish.
class InterruptWatcher {
 public:
  explicit InterruptWatcher(Cancellation* cancellation);
  ~InterruptWatcher();
  InterruptWatcher(const InterruptWatcher&) = delete;
  InterruptWatcher& operator=(const InterruptWatcher&) = delete;

 private:
  void Watch();

  Cancellation* const cancellation_;
  int read_end_ = -1;
  std::thread thread_;
};

}  // namespace c3po

#endif  // C3PO_CLIENT_CLI_INTERRUPT_H_
