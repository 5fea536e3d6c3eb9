#include "server/admission/rate_limiter.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/types/status_details.h"

namespace c3po {
namespace {

constexpr double kSecondsPerMinute = 60;
// Who comes back when it was told to must not fail for the last bit of a level.
constexpr double kRounding = 1e-6;
// When a call in flight ends is not known.
constexpr absl::Duration kPauseInFlight = absl::Seconds(1);

// The time after which a bucket that holds `level` and fills by `per_minute` holds `wanted`.
absl::Duration TimeUntil(double wanted, double level, int64_t per_minute) {
  return absl::Seconds(std::max(0.0, wanted - level) * kSecondsPerMinute / static_cast<double>(per_minute));
}

}  // namespace

RateLimiter::Call::~Call() {
  const absl::MutexLock lock(&limiter_->mu_);
  const auto found = limiter_->callers_.find(caller_);
  if (found != limiter_->callers_.end()) --found->second.in_flight;
}

absl::Status RateLimiter::Call::Charge(int64_t tokens) {
  if (limits_.tokens_per_minute == 0 || tokens <= 0) return absl::OkStatus();
  const absl::MutexLock lock(&limiter_->mu_);
  State& state = limiter_->Filled(caller_, limits_);
  C3PO_RETURN_IF_ERROR(
      limiter_->CheckTokens(state, limits_, static_cast<double>(std::min(tokens, limits_.tokens_per_minute))));
  state.tokens -= static_cast<double>(tokens);
  charged_ += tokens;
  return absl::OkStatus();
}

void RateLimiter::Call::Owe(int64_t tokens) {
  if (limits_.tokens_per_minute == 0) return;
  const absl::MutexLock lock(&limiter_->mu_);
  limiter_->Filled(caller_, limits_).tokens -= static_cast<double>(std::max<int64_t>(0, tokens));
}

void RateLimiter::Call::GiveBack(int64_t tokens) {
  if (limits_.tokens_per_minute == 0) return;
  const absl::MutexLock lock(&limiter_->mu_);
  State& state = limiter_->Filled(caller_, limits_);
  state.tokens = std::min(static_cast<double>(limits_.tokens_per_minute),
                          state.tokens + static_cast<double>(std::max<int64_t>(0, tokens)));
}

absl::Status RateLimiter::Call::CheckPaid() {
  if (limits_.tokens_per_minute == 0) return absl::OkStatus();
  const absl::MutexLock lock(&limiter_->mu_);
  return limiter_->CheckTokens(limiter_->Filled(caller_, limits_), limits_, 0);
}

void RateLimiter::Call::Used(int64_t tokens) {
  if (limits_.tokens_per_minute == 0) return;
  const absl::MutexLock lock(&limiter_->mu_);
  if (charged_ == 0) return;
  State& state = limiter_->Filled(caller_, limits_);
  const int64_t unused = charged_ - std::max<int64_t>(0, tokens);
  state.tokens = std::min(static_cast<double>(limits_.tokens_per_minute), state.tokens + static_cast<double>(unused));
  charged_ = 0;
}

absl::StatusOr<std::shared_ptr<RateLimiter::Call>> RateLimiter::Admit(const std::string& caller,
                                                                      const CallerRates& rates) {
  RateLimits limits = defaults_;
  limits.calls_per_minute = rates.calls_per_minute.value_or(defaults_.calls_per_minute);
  limits.tokens_per_minute = rates.tokens_per_minute.value_or(defaults_.tokens_per_minute);
  const absl::MutexLock lock(&mu_);
  State& state = Filled(caller, limits);
  if (limits.calls_at_once > 0 && state.in_flight >= limits.calls_at_once) {
    return Refuse(Metrics::RefusedCall::kCallsAtOnce,
                  absl::StrCat("the caller's ", limits.calls_at_once, " calls at once"), kPauseInFlight);
  }
  if (limits.calls_per_minute > 0 && state.calls < 1 - kRounding) {
    return Refuse(Metrics::RefusedCall::kCallsPerMinute,
                  absl::StrCat("the caller's ", limits.calls_per_minute, " calls a minute"),
                  TimeUntil(1, state.calls, limits.calls_per_minute));
  }
  if (limits.tokens_per_minute > 0) C3PO_RETURN_IF_ERROR(CheckTokens(state, limits, 0));
  if (limits.calls_per_minute > 0) state.calls -= 1;
  ++state.in_flight;
  return std::shared_ptr<Call>(new Call(shared_from_this(), caller, limits));
}

RateLimiter::State& RateLimiter::Filled(const std::string& caller, const RateLimits& limits) {
  auto found = callers_.find(caller);
  if (found == callers_.end()) {
    if (callers_.size() >= kCallersMax) MakeRoom();
    found = callers_.emplace(caller, State()).first;
  }
  State& state = found->second;
  const absl::Time now = clock_();
  const double minutes = state.fresh ? 1 : absl::ToDoubleSeconds(now - state.filled) / kSecondsPerMinute;
  const auto fill = [&](double& level, int64_t per_minute) {
    const auto most = static_cast<double>(per_minute);
    level = std::min(most, level + most * minutes);
  };
  fill(state.calls, limits.calls_per_minute);
  fill(state.tokens, limits.tokens_per_minute);
  state.filled = now;
  state.fresh = false;
  return state;
}

// A caller whose last event was a minute ago owes nothing, unless it charged more than a minute's worth at once.
void RateLimiter::MakeRoom() {
  std::vector<std::pair<absl::Time, std::string>> idle;
  for (const auto& [name, state] : callers_) {
    if (state.in_flight == 0) idle.emplace_back(state.filled, name);
  }
  // A sixteenth at a time, so that a crowd of new names does not sort all of them for each.
  const size_t leaving = std::min(idle.size(), kCallersMax / 16);
  std::partial_sort(idle.begin(), idle.begin() + static_cast<std::ptrdiff_t>(leaving), idle.end());
  for (size_t i = 0; i < leaving; ++i) callers_.erase(idle[i].second);
}

absl::Status RateLimiter::CheckTokens(const State& state, const RateLimits& limits, double wanted) const {
  if (state.tokens >= wanted - kRounding) return absl::OkStatus();
  return Refuse(Metrics::RefusedCall::kTokensPerMinute,
                absl::StrCat("the caller's ", limits.tokens_per_minute, " tokens through the model a minute"),
                TimeUntil(wanted, state.tokens, limits.tokens_per_minute));
}

absl::Status RateLimiter::Refuse(Metrics::RefusedCall limit, absl::string_view what, absl::Duration pause) const {
  if (metrics_ != nullptr) metrics_->CountRefusedCall(limit);
  const absl::Status status = absl::ResourceExhaustedError(absl::StrCat(what, " are used up"));
  return WithRetryAfter(WithReason(status, kRateReason), pause);
}

size_t RateLimiter::callers() const {
  const absl::MutexLock lock(&mu_);
  return callers_.size();
}

}  // namespace c3po
