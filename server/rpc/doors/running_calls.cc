#include "server/rpc/doors/running_calls.h"

namespace c3po {

RunningCalls::Place::~Place() {
  const MutexLock lock(calls_->mutex_);
  calls_->calls_.erase(at_);
}

std::unique_ptr<RunningCalls::Place> RunningCalls::Enter(const std::string& caller, const std::string& id,
                                                         std::function<void()> abort) {
  if (id.empty()) return nullptr;
  const MutexLock lock(mutex_);
  return std::unique_ptr<Place>(new Place(this, calls_.emplace(std::make_pair(caller, id), std::move(abort))));
}

int RunningCalls::Abort(const std::string& caller, const std::string& id) {
  const MutexLock lock(mutex_);
  const auto [first, last] = calls_.equal_range({caller, id});
  int aborted = 0;
  for (auto at = first; at != last; ++at, ++aborted) at->second();
  return aborted;
}

}  // namespace c3po
