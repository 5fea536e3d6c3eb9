#include "server/admission/grant.h"

#include <algorithm>
#include <utility>

namespace c3po {

Grant::Hold::~Hold() {
  const std::lock_guard<std::recursive_mutex> lock(call_->mutex);
  call_->on_revoked = nullptr;
}

void Grant::Tell(Hold::Call& call) {
  const std::lock_guard<std::recursive_mutex> lock(call.mutex);
  const std::function<void()> told = std::exchange(call.on_revoked, nullptr);
  if (told) told();
}

std::unique_ptr<Grant::Hold> Grant::Watch(std::function<void()> on_revoked) {
  const auto call = std::make_shared<Hold::Call>();
  call->on_revoked = std::move(on_revoked);
  auto hold = std::unique_ptr<Hold>(new Hold(call));
  bool revoked = false;
  {
    const MutexLock lock(mutex_);
    revoked = revoked_;
    if (calls_.size() >= sweep_at_) {
      std::erase_if(calls_, [](const std::weak_ptr<Hold::Call>& each) { return each.expired(); });
      sweep_at_ = std::max<size_t>(64, 2 * calls_.size());
    }
    if (!revoked) calls_.push_back(call);
  }
  if (revoked) Tell(*call);
  return hold;
}

void Grant::Revoke() {
  std::vector<std::weak_ptr<Hold::Call>> calls;
  {
    const MutexLock lock(mutex_);
    if (std::exchange(revoked_, true)) return;
    calls.swap(calls_);
  }
  for (const std::weak_ptr<Hold::Call>& each : calls) {
    if (const std::shared_ptr<Hold::Call> call = each.lock()) Tell(*call);
  }
}

}  // namespace c3po
