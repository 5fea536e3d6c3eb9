#include "server/admission/rate_limiter.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/types/status_details.h"

namespace c3po {
namespace {

using CallPtr = std::shared_ptr<RateLimiter::Call>;

class RateLimiterTest : public testing::Test {
 protected:
  std::shared_ptr<RateLimiter> Make(const RateLimits& limits) {
    return RateLimiter::Make(limits, &metrics_, [this] { return now_; });
  }
  // How many of `attempts` calls of `caller` are let in, each ended at once.
  static int LetIn(RateLimiter& limiter, const std::string& caller, int attempts, const CallerRates& rates = {}) {
    int let_in = 0;
    for (int i = 0; i < attempts; ++i) let_in += limiter.Admit(caller, rates).ok() ? 1 : 0;
    return let_in;
  }
  bool Says(const std::string& line) const { return metrics_.PrometheusText().find(line + "\n") != std::string::npos; }
  // Refused, for the caller's own use, with this time to come back after.
  static void ExpectPause(const absl::Status& status, absl::Duration pause) {
    EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
    EXPECT_EQ(ReasonOf(status), "RATE");
    EXPECT_EQ(RetryAfterOf(status), pause) << status;
  }

  Metrics metrics_{"model", "0"};
  absl::Time now_ = absl::UnixEpoch() + absl::Hours(1);
};

TEST_F(RateLimiterTest, NothingIsLimitedWhereNothingSaysSo) {
  const auto limiter = Make({});
  EXPECT_EQ(LetIn(*limiter, "ann", 10000), 10000);
  const CallPtr call = *limiter->Admit("ann", {});
  EXPECT_TRUE(call->Charge(int64_t{1} << 40).ok());
}

TEST_F(RateLimiterTest, CallsOfAMinuteComeBackEvenlyAndEachCallerHasItsOwn) {
  const auto limiter = Make({60, 0, 0});
  EXPECT_EQ(LetIn(*limiter, "ann", 100), 60);
  ExpectPause(limiter->Admit("ann", {}).status(), absl::Seconds(1));
  EXPECT_EQ(LetIn(*limiter, "ben", 100), 60);
  now_ += absl::Milliseconds(400);
  ExpectPause(limiter->Admit("ann", {}).status(), absl::Milliseconds(600));
  now_ += absl::Milliseconds(600);
  EXPECT_EQ(LetIn(*limiter, "ann", 100), 1);
  now_ += absl::Seconds(10);
  EXPECT_EQ(LetIn(*limiter, "ann", 100), 10);
  now_ += absl::Hours(100);
  EXPECT_EQ(LetIn(*limiter, "ann", 100), 60) << "a minute's worth at most";
  EXPECT_TRUE(
      Says(absl::StrCat("c3po_calls_refused_total{limit=\"calls_per_minute\"} ", 40 + 1 + 40 + 1 + 99 + 90 + 40)));
}

TEST_F(RateLimiterTest, ATokensLineGoesBeforeTheServersDefault) {
  const auto limiter = Make({60, 100, 0});
  EXPECT_EQ(LetIn(*limiter, "few", 100, {2, {}}), 2);
  EXPECT_EQ(LetIn(*limiter, "unlimited", 100, {0, {}}), 100);
  EXPECT_TRUE((*limiter->Admit("much", {{}, 0}))->Charge(1000).ok());
  EXPECT_TRUE((*limiter->Admit("much", {{}, 0}))->Charge(1000).ok());
  EXPECT_EQ(LetIn(*limiter, "default", 100), 60);
}

TEST_F(RateLimiterTest, TokensAreChargedAndWhatWasNotUsedIsGivenBack) {
  const auto limiter = Make({0, 600, 0});
  const CallPtr first = *limiter->Admit("ann", {});
  const CallPtr second = *limiter->Admit("ann", {});
  EXPECT_TRUE(first->Charge(500).ok());
  ExpectPause(second->Charge(200), absl::Seconds(10));
  first->Used(100);
  first->Used(0);  // Only the first time counts.
  EXPECT_TRUE(second->Charge(500).ok());
  ExpectPause(second->Charge(1), absl::Milliseconds(100));
  EXPECT_TRUE(Says("c3po_calls_refused_total{limit=\"tokens_per_minute\"} 2"));
}

// What a call costs is an estimate: more neighbors may be found than were charged for.
TEST_F(RateLimiterTest, WhatWasUsedBeyondTheChargeIsOwed) {
  const auto limiter = Make({0, 600, 0});
  const CallPtr call = *limiter->Admit("ann", {});
  EXPECT_TRUE(call->Charge(500).ok());
  call->Used(700);
  call->Used(700);  // Only the first time counts.
  ExpectPause(limiter->Admit("ann", {}).status(), absl::Seconds(10));
}

TEST_F(RateLimiterTest, WhatIsUsedInAnyCaseIsOwedUntilItIsPaid) {
  const auto limiter = Make({0, 600, 0});
  const CallPtr call = *limiter->Admit("ann", {});
  call->Owe(600);
  EXPECT_TRUE(call->CheckPaid().ok()) << "nothing is left, and nothing is owed";
  call->Owe(100);
  ExpectPause(call->CheckPaid(), absl::Seconds(10));
  ExpectPause(limiter->Admit("ann", {}).status(), absl::Seconds(10));
  EXPECT_TRUE(limiter->Admit("ben", {}).ok());
  now_ += absl::Seconds(10);
  EXPECT_TRUE(call->CheckPaid().ok());
  EXPECT_TRUE(Says("c3po_calls_refused_total{limit=\"tokens_per_minute\"} 2"));
}

TEST_F(RateLimiterTest, WhatWasOwedForNothingIsGivenBackAndNeverMoreThanAMinutesWorth) {
  const auto limiter = Make({0, 600, 0});
  const CallPtr call = *limiter->Admit("ann", {});
  call->Owe(800);
  call->GiveBack(100);
  ExpectPause(call->CheckPaid(), absl::Seconds(10));
  call->GiveBack(100);
  EXPECT_TRUE(call->CheckPaid().ok());
  call->GiveBack(-100);
  EXPECT_TRUE(call->CheckPaid().ok());
  call->GiveBack(5000);
  EXPECT_TRUE(call->Charge(600).ok());
  ExpectPause(call->Charge(1), absl::Milliseconds(100));
}

TEST_F(RateLimiterTest, MoreThanAMinutesWorthIsTakenFromAFullBucketAndOwed) {
  const auto limiter = Make({0, 600, 0});
  {
    const CallPtr call = *limiter->Admit("ann", {});
    EXPECT_TRUE(call->Charge(1).ok());
    ExpectPause(call->Charge(1500), absl::Milliseconds(100));
    now_ += absl::Milliseconds(100);
    EXPECT_TRUE(call->Charge(1500).ok());
  }
  ExpectPause(limiter->Admit("ann", {}).status(), absl::Seconds(90));  // 900 are owed, 10 a second.
  now_ += absl::Seconds(90);
  EXPECT_TRUE(limiter->Admit("ann", {}).ok());
}

TEST_F(RateLimiterTest, CallsInFlightAreBounded) {
  const auto limiter = Make({0, 0, 2});
  CallPtr first = *limiter->Admit("ann", {});
  const CallPtr second = *limiter->Admit("ann", {});
  EXPECT_TRUE(absl::IsResourceExhausted(limiter->Admit("ann", {}).status()));
  EXPECT_TRUE(limiter->Admit("ben", {}).ok());
  EXPECT_TRUE(Says("c3po_calls_refused_total{limit=\"calls_at_once\"} 1"));
  first.reset();
  EXPECT_TRUE(limiter->Admit("ann", {}).ok());
}

TEST_F(RateLimiterTest, ACallMayOutliveTheLimitersOwner) {
  auto limiter = Make({0, 600, 2});
  const CallPtr call = *limiter->Admit("ann", {});
  limiter.reset();
  EXPECT_TRUE(call->Charge(500).ok());
  EXPECT_FALSE(call->Charge(500).ok());
}

TEST_F(RateLimiterTest, ManyCallersAreForgottenButForThoseInFlight) {
  const auto limiter = Make({1, 0, 1});
  const CallPtr held = *limiter->Admit("held", {});
  now_ += absl::Seconds(1);
  for (size_t i = 0; i < 3 * RateLimiter::kCallersMax; ++i) {
    now_ += absl::Milliseconds(1);
    EXPECT_TRUE(limiter->Admit(absl::StrCat("caller ", i), {}).ok());
    ASSERT_LE(limiter->callers(), RateLimiter::kCallersMax);
  }
  EXPECT_TRUE(absl::IsResourceExhausted(limiter->Admit("held", {}).status()));
  // The latest one is still known.
  EXPECT_FALSE(limiter->Admit(absl::StrCat("caller ", 3 * RateLimiter::kCallersMax - 1), {}).ok());
}

// Over any span, no more is let in than a bucket's worth and what has come in since: counted from the outside.
TEST_F(RateLimiterTest, NoSpanOfTimeLetsMoreInThanItsShare) {
  const int seed = 20250401;
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  constexpr int64_t kPerMinute = 90;
  const auto limiter = Make({kPerMinute, 0, 0});
  std::vector<absl::Time> let_in;
  for (int i = 0; i < 5000; ++i) {
    now_ += absl::Milliseconds(std::uniform_int_distribution<int>(0, 900)(random));
    if (limiter->Admit("ann", {}).ok()) let_in.push_back(now_);
  }
  ASSERT_GT(let_in.size(), 1000u);
  for (size_t i = 0; i < let_in.size(); i += 7) {
    for (size_t j = i; j < let_in.size(); j += 5) {
      const double minutes = absl::ToDoubleMinutes(let_in[j] - let_in[i]);
      EXPECT_LE(static_cast<double>(j - i + 1), kPerMinute * (1 + minutes) + 1e-3);
    }
  }
}

}  // namespace
}  // namespace c3po
