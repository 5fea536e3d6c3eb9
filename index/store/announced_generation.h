#ifndef C3PO_INDEX_STORE_ANNOUNCED_GENERATION_H_
#define C3PO_INDEX_STORE_ANNOUNCED_GENERATION_H_

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <mutex>

#include "absl/time/time.h"

namespace c3po {

// The highest generation that was met so far. Thread-safe.
class AnnouncedGeneration {
 public:
  int64_t Get() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return generation_;
  }

  // A lower one changes nothing.
  void Raise(int64_t generation) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      generation_ = std::max(generation_, generation);
    }
    raised_.notify_all();
  }

  // Returns once it is above `above`, or after `timeout`, by the steady clock; what it is then.
  int64_t WaitAbove(int64_t above, absl::Duration timeout) const {
    std::unique_lock<std::mutex> lock(mutex_);
    raised_.wait_for(lock, absl::ToChronoNanoseconds(timeout), [&] { return generation_ > above; });
    return generation_;
  }

 private:
  // Not Mutex, which has no condition.
  mutable std::mutex mutex_;
  mutable std::condition_variable raised_;
  int64_t generation_ = 0;
};

}  // namespace c3po

#endif  // C3PO_INDEX_STORE_ANNOUNCED_GENERATION_H_
