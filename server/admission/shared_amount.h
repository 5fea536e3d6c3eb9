#ifndef C3PO_SERVER_ADMISSION_SHARED_AMOUNT_H_
#define C3PO_SERVER_ADMISSION_SHARED_AMOUNT_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "index/base/mutex.h"

namespace c3po {

// An amount that all calls share, such as bytes of messages or places for imports. One caller may hold half of it,
// rounded up, so that others find some whatever it does. Thread-safe.
class SharedAmount {
 public:
  // `what` is used up, in words: "places for imports". `changed`, which may be null, hears what is held, in order.
  SharedAmount(int64_t max, std::string what, std::function<void(int64_t held)> changed = nullptr);

  // ResourceExhausted, and nothing is taken: `amount` more would be beyond what all may hold, or the caller.
  absl::Status Take(const std::string& caller, int64_t amount);
  void Give(const std::string& caller, int64_t amount);
  int64_t held() const;

  // Gives back at its end what it holds.
  class Held {
   public:
    Held(SharedAmount* of, std::string caller, int64_t amount) : of_(of), caller_(std::move(caller)), amount_(amount) {}
    ~Held() { of_->Give(caller_, amount_); }
    Held(const Held&) = delete;
    Held& operator=(const Held&) = delete;

   private:
    SharedAmount* const of_;
    const std::string caller_;
    const int64_t amount_;
  };
  // One place, in an amount that counts them.
  absl::StatusOr<std::unique_ptr<Held>> TakePlace(const std::string& caller);

 private:
  const int64_t max_, of_caller_max_;
  const std::string what_;
  const std::function<void(int64_t)> changed_;
  mutable Mutex mutex_;
  int64_t held_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<std::string, int64_t> by_caller_ ABSL_GUARDED_BY(mutex_);  // those that hold any
};

}  // namespace c3po

#endif  // C3PO_SERVER_ADMISSION_SHARED_AMOUNT_H_
