#ifndef C3PO_CLIENT_LOAD_DELAYED_CANCELS_H_
#define C3PO_CLIENT_LOAD_DELAYED_CANCELS_H_

#include <map>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "client/cancellation.h"

namespace c3po {

// Cancels calls at moments that were set before, or all of them once `interrupt` is cancelled (10 ms late at most). One
// thread of its own. Thread-safe.
class DelayedCancels {
 public:
  // `interrupt` is not owned and outlives this object.
  explicit DelayedCancels(Cancellation& interrupt);
  ~DelayedCancels();
  DelayedCancels(const DelayedCancels&) = delete;
  DelayedCancels& operator=(const DelayedCancels&) = delete;

  // Has `call` cancelled after `delay` for the life of this object, no longer.
  class Entry {
   public:
    Entry(DelayedCancels& cancels, absl::Duration delay, Cancellation& call);
    ~Entry();
    Entry(const Entry&) = delete;
    Entry& operator=(const Entry&) = delete;

   private:
    DelayedCancels& cancels_;
    Cancellation& call_;
  };

 private:
  void Run();

  Cancellation& interrupt_;
  absl::Mutex mu_;
  bool ending_ ABSL_GUARDED_BY(mu_) = false;
  std::map<Cancellation*, absl::Time> pending_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace c3po

#endif  // C3PO_CLIENT_LOAD_DELAYED_CANCELS_H_
