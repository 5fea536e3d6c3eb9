#include "client/retry.h"

#include <gtest/gtest.h>

namespace c3po {
namespace {

using grpc::StatusCode;

RetryPolicy NoJitter() {
  RetryPolicy policy;
  policy.attempts_max = 10;
  policy.initial_backoff = absl::Milliseconds(100);
  policy.backoff_max = absl::Milliseconds(500);
  policy.jitter = 0;
  return policy;
}

TEST(PauseBeforeRetry, GrowsGeometricallyUpToItsBound) {
  const double expected_ms[] = {100, 200, 400, 500, 500};
  for (int attempt = 1; attempt <= 5; ++attempt) {
    EXPECT_EQ(PauseBeforeRetry(NoJitter(), attempt, StatusCode::UNAVAILABLE, {}, 0.5),
              absl::Milliseconds(expected_ms[attempt - 1]))
        << attempt;
  }
}

TEST(PauseBeforeRetry, JitterSpansBothSides) {
  RetryPolicy policy = NoJitter();
  policy.jitter = 0.2;
  EXPECT_EQ(PauseBeforeRetry(policy, 1, StatusCode::UNAVAILABLE, {}, 0.0), absl::Milliseconds(80));
  EXPECT_EQ(PauseBeforeRetry(policy, 1, StatusCode::UNAVAILABLE, {}, 0.75), absl::Milliseconds(110));
}

TEST(PauseBeforeRetry, OnlyUnavailableAndResourceExhaustedAreTriedAgain) {
  for (int code = 1; code <= 16; ++code) {
    const bool expected = code == StatusCode::UNAVAILABLE || code == StatusCode::RESOURCE_EXHAUSTED;
    EXPECT_EQ(PauseBeforeRetry(NoJitter(), 1, static_cast<StatusCode>(code), {}, 0.5).has_value(), expected) << code;
  }
}

TEST(PauseBeforeRetry, StopsWhenTheAttemptsAreSpent) {
  EXPECT_TRUE(PauseBeforeRetry(NoJitter(), 9, StatusCode::UNAVAILABLE, {}, 0.5).has_value());
  EXPECT_FALSE(PauseBeforeRetry(NoJitter(), 10, StatusCode::UNAVAILABLE, {}, 0.5).has_value());
}

TEST(PauseBeforeRetry, PushbackReplacesTheBackoff) {
  ServerAdvice advice;
  advice.pushback = absl::Milliseconds(7);
  advice.retry_delay = absl::Seconds(9);
  EXPECT_EQ(PauseBeforeRetry(NoJitter(), 3, StatusCode::RESOURCE_EXHAUSTED, advice, 0.5), absl::Milliseconds(7));
}

TEST(PauseBeforeRetry, RetryInfoIsALowerBound) {
  ServerAdvice advice;
  advice.retry_delay = absl::Milliseconds(150);
  EXPECT_EQ(PauseBeforeRetry(NoJitter(), 1, StatusCode::UNAVAILABLE, advice, 0.5), absl::Milliseconds(150));
  EXPECT_EQ(PauseBeforeRetry(NoJitter(), 2, StatusCode::UNAVAILABLE, advice, 0.5), absl::Milliseconds(200));
}

TEST(PauseBeforeRetry, TheServerMayForbidItOrAskForTooLongAPause) {
  ServerAdvice never;
  never.never = true;
  EXPECT_FALSE(PauseBeforeRetry(NoJitter(), 1, StatusCode::UNAVAILABLE, never, 0.5).has_value());
  ServerAdvice long_pause;
  long_pause.retry_delay = absl::Hours(1);
  EXPECT_FALSE(PauseBeforeRetry(NoJitter(), 1, StatusCode::UNAVAILABLE, long_pause, 0.5).has_value());
}

}  // namespace
}  // namespace c3po
