#include "index/base/escaped_exception.h"

#include <gtest/gtest.h>

#include <new>
#include <stdexcept>
#include <string>

namespace c3po {
namespace {

std::string& Told() {
  static std::string told;
  return told;
}

TEST(EscapedException, BecomesAStatusAndIsCountedAndTold) {
  ReportEscapedTo([](ThreadKind, absl::string_view what) { Told() = std::string(what); });
  const int64_t before = EscapedExceptions(ThreadKind::kWorker);
  const absl::Status wrong =
      CatchEscaped(ThreadKind::kWorker, []() -> absl::Status { throw std::runtime_error("wrong"); });
  EXPECT_EQ(wrong, absl::InternalError("an exception escaped: wrong"));
  EXPECT_EQ(Told(), "wrong");
  const absl::Status memory = CatchEscapedIn(ThreadKind::kWorker, [] { throw std::bad_alloc(); });
  EXPECT_EQ(memory, absl::ResourceExhaustedError("out of memory"));
  EXPECT_EQ(Told(), "out of memory");
  EXPECT_TRUE(absl::IsInternal(CatchEscapedIn(ThreadKind::kWorker, [] { throw 7; })));
  EXPECT_EQ(EscapedExceptions(ThreadKind::kWorker), before + 3);
  ReportEscapedTo(nullptr);
}

TEST(EscapedException, WhatTheReporterThrowsIsDropped) {
  ReportEscapedTo([](ThreadKind, absl::string_view) { throw std::bad_alloc(); });
  EXPECT_FALSE(CatchEscapedIn(ThreadKind::kEngine, [] { throw std::bad_alloc(); }).ok());
  ReportEscapedTo(nullptr);
}

TEST(EscapedException, WhatEndsWellIsPassedOn) {
  const int64_t before = EscapedExceptions(ThreadKind::kEngine);
  EXPECT_TRUE(CatchEscapedIn(ThreadKind::kEngine, [] {}).ok());
  EXPECT_EQ(CatchEscaped(ThreadKind::kEngine, [] { return absl::NotFoundError("no"); }), absl::NotFoundError("no"));
  const auto seven = CatchEscapedOr<int>(ThreadKind::kEngine, []() -> absl::StatusOr<int> { return 7; });
  ASSERT_TRUE(seven.ok());
  EXPECT_EQ(*seven, 7);
  EXPECT_EQ(EscapedExceptions(ThreadKind::kEngine), before);
  EXPECT_FALSE(CatchEscapedOr<int>(ThreadKind::kEngine, []() -> absl::StatusOr<int> { throw std::bad_alloc(); }).ok());
}

}  // namespace
}  // namespace c3po
