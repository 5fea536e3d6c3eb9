#ifndef C3PO_SERVER_ADMISSION_GRANT_H_
#define C3PO_SERVER_ADMISSION_GRANT_H_

#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "index/base/mutex.h"

namespace c3po {

// What one token allows, for as long as the tokens file says so. Calls that were let in by it may ask to be told of its
// end. Thread-safe.
class Grant {
 public:
  // Ends the asking: once it is gone, its callback does not run, nor is it running, except on the thread that destroys
  // it from within the callback.
  class Hold {
   public:
    ~Hold();
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;

   private:
    friend class Grant;
    struct Call {
      std::recursive_mutex mutex;  // Held while the callback runs, which may end the hold.
      std::function<void()> on_revoked;
    };
    explicit Hold(std::shared_ptr<Call> call) : call_(std::move(call)) {}
    const std::shared_ptr<Call> call_;
  };

  // `on_revoked` runs once, on Revoke's thread, or here where that was before. It must not wait.
  std::unique_ptr<Hold> Watch(std::function<void()> on_revoked);
  void Revoke();

 private:
  static void Tell(Hold::Call& call);

  Mutex mutex_;
  bool revoked_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::weak_ptr<Hold::Call>> calls_ ABSL_GUARDED_BY(mutex_);  // Some of them gone.
  size_t sweep_at_ ABSL_GUARDED_BY(mutex_) = 64;                          // So many, and those that are gone go.
};

}  // namespace c3po

#endif  // C3PO_SERVER_ADMISSION_GRANT_H_
