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

// What is kept for callers that hold none.
int64_t Kept(int64_t all) { return all / 8; }

std::string Text(absl::Duration duration) { return absl::FormatDuration(absl::Ceil(duration, absl::Milliseconds(1))); }

}  // namespace

absl::StatusOr<std::unique_ptr<AdmissionController::Permit>> AdmissionController::Enter(const std::string& caller) {
  const absl::MutexLock lock(&mu_);
  if (pending_ >= limits_.requests_max) {
    return Refuse(absl::StrCat("the queue is full: ", limits_.requests_max, " requests are waiting or running"));
  }
  const auto found = by_caller_.find(caller);
  const int held = found == by_caller_.end() ? 0 : found->second.requests;
  const int callers = static_cast<int>(by_caller_.size()) + (held == 0 ? 1 : 0);
  const int open = limits_.requests_max - static_cast<int>(Kept(limits_.requests_max));
  const int share = std::max(1, open / callers);
  if (held > 0 && (pending_ >= open || (2 * pending_ >= limits_.requests_max && held >= share))) {
    return Refuse(absl::StrCat("the caller's share of the queue is full: ", held, " of its requests are waiting or ",
                               "running, beside those of ", callers - 1, " others"));
  }
  ++pending_;
  ++by_caller_[caller].requests;
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

// Those that do not run yet leave one by one, as places come free; the last of them is the request that asks. Of each
// other caller the engine takes as many as of this one before that.
absl::Duration AdmissionController::QueueEstimate(const std::string& caller) const {
  const int own = by_caller_.at(caller).requests;
  int before = own;
  for (const auto& [other, held] : by_caller_) {
    if (other != caller) before += std::min(own, held.requests);
  }
  const int waiting = std::max(0, before - limits_.running_max);
  // Where all places are taken, even the next one waits for the first of them that comes free.
  const int full = pending_ > limits_.running_max ? 1 : 0;
  return estimates_.Service() * std::max(waiting, full) / limits_.running_max;
}

void AdmissionController::Leave(const Permit& permit) {
  const absl::MutexLock lock(&mu_);
  --pending_;
  cost_ -= permit.cost_;
  const auto found = by_caller_.find(permit.caller_);
  found->second.cost -= permit.cost_;
  if (--found->second.requests == 0) by_caller_.erase(found);
}

AdmissionController::Permit::~Permit() { controller_->Leave(*this); }

absl::Status AdmissionController::FitToDeadline(const std::string& caller, RequestWork& work,
                                                absl::Duration left) const {
  const absl::Duration queue = QueueEstimate(caller), fixed = estimates_.WithoutSteps(work),
                       step = estimates_.PerStep(work);
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

// A request that costs more than a caller may hold counts as all of that, so that others find what is kept for them.
int64_t AdmissionController::Charged(const RequestWork& work) const {
  return std::min(work.Cost(), limits_.cost_max - Kept(limits_.cost_max));
}

absl::Status AdmissionController::FindRoom(const Permit& permit, int64_t cost) const {
  const int64_t held = by_caller_.at(permit.caller_).cost, open = limits_.cost_max - Kept(limits_.cost_max);
  if (cost_ == 0) return absl::OkStatus();
  if (cost_ + cost > (held > 0 ? open : limits_.cost_max)) {
    return Refuse(absl::StrCat("the queue is full: its requests cost ", cost_, " tokens of ", limits_.cost_max,
                               ", and this one ", cost));
  }
  const auto callers = static_cast<int64_t>(by_caller_.size());
  if (held > 0 && 2 * cost_ >= limits_.cost_max && held + cost > open / callers) {
    return Refuse(absl::StrCat("the caller's share of the queue is full: its requests cost ", held, " tokens of ",
                               limits_.cost_max, ", and this one ", cost));
  }
  return absl::OkStatus();
}

absl::Status AdmissionController::Permit::Take(RequestWork& work, absl::Time deadline) {
  AdmissionController& c = *controller_;
  const absl::Time now = SteadyNow();
  const absl::MutexLock lock(&c.mu_);
  C3PO_RETURN_IF_ERROR(c.FindRoom(*this, c.Charged(work)));
  if (deadline != absl::InfiniteFuture() && c.estimates_.fresh(now)) {
    C3PO_RETURN_IF_ERROR(c.FitToDeadline(caller_, work, deadline - now));
  }
  cost_ = c.Charged(work);  // Of what is left of it.
  c.cost_ += cost_;
  c.by_caller_[caller_].cost += cost_;
  work_ = work;
  return absl::OkStatus();
}

void AdmissionController::Permit::Observe(const RequestWork& done, const MeasuredStages& stages) {
  const absl::MutexLock lock(&controller_->mu_);
  controller_->estimates_.Observe(done, stages, SteadyNow());
}

void AdmissionController::Permit::ObserveLate(double seconds) {
  const absl::MutexLock lock(&controller_->mu_);
  controller_->estimates_.ObserveAtLeast(work_, seconds, SteadyNow());
}

}  // namespace c3po
