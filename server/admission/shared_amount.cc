#include "server/admission/shared_amount.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"

namespace c3po {

SharedAmount::SharedAmount(int64_t max, std::string what, std::function<void(int64_t)> changed)
    : max_(max), of_caller_max_(max - max / 2), what_(std::move(what)), changed_(std::move(changed)) {}

absl::Status SharedAmount::Take(const std::string& caller, int64_t amount) {
  const MutexLock lock(mutex_);
  if (amount > max_ - held_) {
    return absl::ResourceExhaustedError(absl::StrCat("no ", what_, " are left: ", held_, " of ", max_, " are taken"));
  }
  const auto found = by_caller_.find(caller);
  const int64_t own = found == by_caller_.end() ? 0 : found->second;
  if (amount > of_caller_max_ - own) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the caller has ", own, " of the ", of_caller_max_, " ", what_, " that are its share"));
  }
  if (amount > 0) by_caller_[caller] = own + amount;
  held_ += amount;
  if (changed_) changed_(held_);
  return absl::OkStatus();
}

void SharedAmount::Give(const std::string& caller, int64_t amount) {
  const MutexLock lock(mutex_);
  const auto found = by_caller_.find(caller);
  if (found == by_caller_.end()) return;
  held_ -= amount;
  if ((found->second -= amount) <= 0) by_caller_.erase(found);
  if (changed_) changed_(held_);
}

int64_t SharedAmount::held() const {
  const MutexLock lock(mutex_);
  return held_;
}

absl::StatusOr<std::unique_ptr<SharedAmount::Held>> SharedAmount::TakePlace(const std::string& caller) {
  C3PO_RETURN_IF_ERROR(Take(caller, 1));
  return std::make_unique<Held>(this, caller, 1);
}

}  // namespace c3po
