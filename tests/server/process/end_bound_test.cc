#include "server/process/end_bound.h"

#include <gtest/gtest.h>

#include <cstdio>

#include "absl/time/clock.h"

namespace c3po {
namespace {

TEST(EndBoundDeathTest, WhatDoesNotEndIsEndedAndSaysSo) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto hang = [] {
    const EndBound bound(absl::Milliseconds(50), [] { fputs("calls were lost\n", stderr); });
    absl::SleepFor(absl::Seconds(60));
  };
  EXPECT_EXIT(hang(), testing::ExitedWithCode(EndBound::kLateExitCode), "calls were lost");
}

TEST(EndBound, WhatEndsInTimeIsLeftAlone) {
  bool late = false;
  {
    const EndBound bound(absl::Seconds(600), [&] { late = true; });
  }
  EXPECT_FALSE(late);
}

}  // namespace
}  // namespace c3po
