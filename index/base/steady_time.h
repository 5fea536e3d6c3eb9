#ifndef C3PO_INDEX_BASE_STEADY_TIME_H_
#define C3PO_INDEX_BASE_STEADY_TIME_H_

#include <chrono>

#include "absl/time/time.h"

namespace c3po {

// The clock for durations and deadlines: it neither stops nor jumps when somebody sets the time of day. Its readings
// are instants since an unknown beginning: only their differences mean anything, and they must never meet absl::Now(),
// which is for stamps that people read.
inline absl::Time SteadyNow() {
  return absl::UnixEpoch() + absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
}

}  // namespace c3po

#endif  // C3PO_INDEX_BASE_STEADY_TIME_H_
