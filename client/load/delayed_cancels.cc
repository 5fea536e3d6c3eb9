#include "client/load/delayed_cancels.h"

#include <algorithm>

#include "absl/time/clock.h"

namespace c3po {
namespace {

constexpr absl::Duration kLook = absl::Milliseconds(10);  // How late a moment may be kept, or an interrupt seen.
constexpr absl::Duration kShortest = absl::Milliseconds(1);

}  // namespace

DelayedCancels::DelayedCancels(Cancellation& interrupt) : interrupt_(interrupt), thread_([this] { Run(); }) {}

DelayedCancels::~DelayedCancels() {
  {
    absl::MutexLock lock(&mu_);
    ending_ = true;
  }
  thread_.join();
}

void DelayedCancels::Run() {
  absl::MutexLock lock(&mu_);
  while (!ending_) {
    const bool interrupted = interrupt_.cancelled();
    const absl::Time now = absl::Now();
    absl::Time next = now + kLook;
    // A few dozen entries at most: only calls that are meant to be cancelled are here. Cancelled under the lock, so
    // that no entry leaves meanwhile.
    for (auto& [call, moment] : pending_) {
      if (interrupted || moment <= now) {
        call->Cancel();
        moment = absl::InfiniteFuture();
      }
      next = std::min(next, moment);
    }
    mu_.AwaitWithTimeout(absl::Condition(&ending_), std::max(next - now, kShortest));
  }
}

DelayedCancels::Entry::Entry(DelayedCancels& cancels, absl::Duration delay, Cancellation& call)
    : cancels_(cancels), call_(call) {
  absl::MutexLock lock(&cancels_.mu_);
  cancels_.pending_[&call_] = absl::Now() + delay;
}

DelayedCancels::Entry::~Entry() {
  absl::MutexLock lock(&cancels_.mu_);
  cancels_.pending_.erase(&call_);
}

}  // namespace c3po
