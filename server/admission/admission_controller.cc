#include "server/admission/admission_controller.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "index/base/steady_time.h"
#include "server/types/status_details.h"

namespace c3po {
namespace {

constexpr double kPlannedShare = 0.8;  // Of the time left: estimates are means, and half of all requests take longer.
constexpr absl::Duration kPauseUnknown = absl::Milliseconds(500);  // Until something has been measured.
constexpr absl::Duration kPauseMin = absl::Milliseconds(100), kPauseMax = absl::Seconds(30);

std::string Text(absl::Duration duration) { return absl::FormatDuration(absl::Ceil(duration, absl::Milliseconds(1))); }

}  // namespace

absl::StatusOr<std::unique_ptr<AdmissionController::Permit>> AdmissionController::Enter(const std::string& caller) {
  const absl::MutexLock lock(&mu_);
  if (pending_ >= limits_.requests_max) {
    return Refuse(absl::StrCat("the queue is full: ", limits_.requests_max, " requests are waiting or running"));
  }
  const auto found = by_caller_.find(caller);
  const int held = found == by_caller_.end() ? 0 : found->second;
  const int callers = static_cast<int>(by_caller_.size()) + (held == 0 ? 1 : 0);
  const int share = std::max(1, limits_.requests_max / callers);
  if (2 * pending_ >= limits_.requests_max && held >= share) {
    return Refuse(absl::StrCat("the caller's share of the queue is full: ", held, " of its requests are waiting or ",
                               "running, beside those of ", callers - 1, " others"));
  }
  ++pending_;
  ++by_caller_[caller];
  return std::unique_ptr<Permit>(new Permit(this, caller));
}

int AdmissionController::pending() const {
  const absl::MutexLock lock(&mu_);
  return pending_;
}

// A place is free again after the service time of a request, divided by how many run at once.
absl::Status AdmissionController::Refuse(std::string message) const {
  const int running = std::max(1, std::min(pending_, limits_.running_max));
  const absl::Duration pause = estimates_.fresh(SteadyNow())
                                   ? std::min(std::max(estimates_.Service() / running, kPauseMin), kPauseMax)
                                   : kPauseUnknown;
  return WithRetryAfter(absl::ResourceExhaustedError(std::move(message)), pause);
}

// Those that do not run yet leave one by one, as places come free; the last of them is the request that asks.
absl::Duration AdmissionController::QueueEstimate() const {
  const int waiting = std::max(0, pending_ - limits_.running_max);
  return estimates_.Service() * waiting / limits_.running_max;
}

void AdmissionController::Leave(const Permit& permit) {
  const absl::MutexLock lock(&mu_);
  --pending_;
  tokens_ -= permit.tokens_;
  const auto found = by_caller_.find(permit.caller_);
  if (--found->second == 0) by_caller_.erase(found);
}

AdmissionController::Permit::~Permit() { controller_->Leave(*this); }

absl::Status AdmissionController::FitToDeadline(RequestWork& work, absl::Duration left) const {
  const absl::Duration queue = QueueEstimate(), fixed = estimates_.WithoutSteps(work), step = estimates_.PerStep();
  const absl::Duration at_least = fixed + step * std::min(work.steps, 1);
  if (at_least > left) {
    return absl::DeadlineExceededError(absl::StrCat("the deadline cannot be met: the first result takes about ",
                                                    Text(at_least), ", and ", Text(left), " are left"));
  }
  if (queue + at_least > left) {
    return WithRetryAfter(
        absl::ResourceExhaustedError(absl::StrCat("the queue is too long for the deadline: about ", Text(queue),
                                                  " of waiting, and ", Text(left), " are left")),
        queue);
  }
  const absl::Duration planned = left * kPlannedShare;
  if (step > absl::ZeroDuration() && queue + fixed + step * work.steps > planned) {
    const double fitting = absl::FDivDuration(planned - queue - fixed, step);
    work.steps = std::min(work.steps, std::max(1, static_cast<int>(fitting)));
  }
  return absl::OkStatus();
}

absl::Status AdmissionController::Permit::Take(RequestWork& work, absl::Time deadline) {
  AdmissionController& c = *controller_;
  const absl::Time now = SteadyNow();
  const absl::MutexLock lock(&c.mu_);
  const int64_t tokens = int64_t{work.prompt_tokens} + work.output_tokens;
  if (c.tokens_ > 0 && c.tokens_ + tokens > c.limits_.tokens_max) {
    return c.Refuse(absl::StrCat("the queue is full: its requests hold ", c.tokens_, " tokens of ",
                                 c.limits_.tokens_max, ", and this one needs ", tokens));
  }
  if (deadline != absl::InfiniteFuture() && c.estimates_.fresh(now)) {
    C3PO_RETURN_IF_ERROR(c.FitToDeadline(work, deadline - now));
  }
  c.tokens_ += tokens;
  tokens_ = tokens;
  work_ = work;
  return absl::OkStatus();
}

void AdmissionController::Permit::Observe(const MeasuredStages& stages) {
  const absl::MutexLock lock(&controller_->mu_);
  controller_->estimates_.Observe(work_, stages, SteadyNow());
}

}  // namespace c3po
