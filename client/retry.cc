#include "client/retry.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "client/error_details.h"

namespace c3po {
namespace {

class SystemRetryClock : public RetryClock {
 public:
  absl::Time Now() override { return absl::Now(); }
  void Sleep(absl::Duration duration, Cancellation* cancellation) override {
    if (cancellation != nullptr) {
      cancellation->WaitFor(duration);
    } else {
      absl::SleepFor(duration);
    }
  }
};

}  // namespace

RetryClock& RetryClock::System() {
  static SystemRetryClock* const clock = new SystemRetryClock;
  return *clock;
}

ServerAdvice ReadServerAdvice(const grpc::ClientContext& context, const grpc::Status& status) {
  ServerAdvice advice;
  advice.retry_delay = RetryDelayOf(status);
  const auto& metadata = context.GetServerTrailingMetadata();
  const auto pushback = metadata.find("grpc-retry-pushback-ms");
  if (pushback == metadata.end()) return advice;
  int64_t milliseconds = 0;
  if (absl::SimpleAtoi(absl::string_view(pushback->second.data(), pushback->second.size()), &milliseconds) &&
      milliseconds >= 0) {
    advice.pushback = absl::Milliseconds(milliseconds);
  } else {
    advice.never = true;
  }
  return advice;
}

std::optional<absl::Duration> PauseBeforeRetry(const RetryPolicy& policy, int attempts_made, grpc::StatusCode code,
                                               const ServerAdvice& advice, double uniform) {
  if (code != grpc::StatusCode::UNAVAILABLE && code != grpc::StatusCode::RESOURCE_EXHAUSTED) return std::nullopt;
  if (advice.never || attempts_made >= policy.attempts_max) return std::nullopt;
  const std::optional<absl::Duration> asked = advice.pushback ? advice.pushback : advice.retry_delay;
  if (asked && *asked > policy.server_delay_max) return std::nullopt;
  if (advice.pushback) return advice.pushback;
  const absl::Duration nominal =
      std::min(policy.backoff_max, policy.initial_backoff * std::pow(policy.multiplier, attempts_made - 1));
  const absl::Duration backoff = nominal * (1.0 + policy.jitter * (2.0 * uniform - 1.0));
  return std::max(backoff, advice.retry_delay.value_or(absl::ZeroDuration()));
}

}  // namespace c3po
