#ifndef C3PO_SERVER_SCHEDULER_ADMISSION_ORDER_H_
#define C3PO_SERVER_SCHEDULER_ADMISSION_ORDER_H_

#include <cstddef>
#include <map>

#include "absl/strings/string_view.h"
#include "server/types/sequence_request.h"

namespace c3po {

// Of the sequences that wait, in the order of arrival, finds the one to admit next: the highest priority first; among
// equals, the caller with the fewest sequences running; then the first come. Offer all of them, one after the other.
class AdmissionOrder {
 public:
  // A sequence of `caller` is running. Call for all that are, first; callers outlive this object.
  void CountRunning(absl::string_view caller) { ++running_[caller]; }

  void Offer(size_t index, const SequenceRequest& request) {
    const Rank rank{request.priority, running_[request.caller]};
    if (any_ && !rank.Before(best_)) return;
    any_ = true;
    best_ = rank;
    next_ = index;
  }

  // The index offered with the best of them; 0 before any was.
  size_t next() const { return next_; }
  // Sequences of its caller that run.
  int running() const { return best_.running; }

 private:
  struct Rank {
    Priority priority = Priority::kLow;
    int running = 0;
    bool Before(const Rank& other) const {
      return priority > other.priority || (priority == other.priority && running < other.running);
    }
  };

  std::map<absl::string_view, int> running_;
  Rank best_;
  bool any_ = false;
  size_t next_ = 0;
};

}  // namespace c3po

#endif  // C3PO_SERVER_SCHEDULER_ADMISSION_ORDER_H_
