#ifndef C3PO_CLIENT_CANCELLATION_H_
#define C3PO_CLIENT_CANCELLATION_H_

#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace grpc {
class ClientContext;
}

namespace c3po {

// Ends calls from another thread: every call that was given this object, running or still to come, returns CANCELLED.
// One object may serve many calls at once and must outlive them. Thread-safe; not async-signal-safe (a signal handler
// hands over to a thread first).
class Cancellation {
 public:
  Cancellation() = default;
  Cancellation(const Cancellation&) = delete;
  Cancellation& operator=(const Cancellation&) = delete;

  // Idempotent; does not wait for the calls to return.
  void Cancel();
  bool cancelled() const;
  // Makes the object usable for new calls after a Cancel(): the next question of an interactive session.
  void Reset();
  // How many calls would be ended by Cancel() now.
  int calls_in_flight() const;
  // Sleeps until cancelled or until `duration` has passed. True when cancelled.
  bool WaitFor(absl::Duration duration) const;

  // While there is one, somebody looks at cancelled() between calls: a signal that finds no call in flight has been
  // heard, too.
  class Watched {
   public:
    explicit Watched(Cancellation* cancellation);
    ~Watched();
    Watched(const Watched&) = delete;
    Watched& operator=(const Watched&) = delete;

   private:
    Cancellation* const cancellation_;
  };
  bool watched() const;

  // Puts one gRPC call under `cancellation` (null: no effect) for the life of this object.
  class Attachment {
   public:
    Attachment(Cancellation* cancellation, grpc::ClientContext* context);
    ~Attachment();
    Attachment(const Attachment&) = delete;
    Attachment& operator=(const Attachment&) = delete;

   private:
    Cancellation* const cancellation_;
    grpc::ClientContext* const context_;
  };

 private:
  mutable absl::Mutex mu_;
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;
  int watchers_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<grpc::ClientContext*> contexts_ ABSL_GUARDED_BY(mu_);
};

}  // namespace c3po

#endif  // C3PO_CLIENT_CANCELLATION_H_
