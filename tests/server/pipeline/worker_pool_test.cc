#include "server/pipeline/worker_pool.h"

#include <gtest/gtest.h>

#include <new>
#include <stdexcept>
#include <vector>

#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/notification.h"
#include "index/base/escaped_exception.h"

namespace c3po {
namespace {

TEST(WorkerPool, AnExceptionEndsItsJobAloneAndTheThreadGoesOn) {
  const int64_t before = EscapedExceptions(ThreadKind::kWorker);
  std::vector<absl::Status> failures;
  absl::BlockingCounter ended(4);
  {
    WorkerPool pool(1, 16);
    const auto failed = [&](const absl::Status& status) {
      failures.push_back(status);
      ended.DecrementCount();
    };
    EXPECT_TRUE(pool.Submit([]() -> absl::Status { throw std::bad_alloc(); }, failed));
    EXPECT_TRUE(pool.Submit([]() -> absl::Status { throw std::runtime_error("wrong"); }, failed));
    EXPECT_TRUE(pool.Submit([] { return absl::NotFoundError("no"); }, failed));
    EXPECT_TRUE(pool.Submit(
        [&] {
          ended.DecrementCount();
          return absl::OkStatus();
        },
        failed));
    ended.Wait();
  }
  ASSERT_EQ(failures.size(), 3U);
  EXPECT_TRUE(absl::IsResourceExhausted(failures[0])) << failures[0];
  EXPECT_TRUE(absl::IsInternal(failures[1])) << failures[1];
  EXPECT_TRUE(absl::IsNotFound(failures[2])) << failures[2];
  EXPECT_EQ(EscapedExceptions(ThreadKind::kWorker), before + 2);
}

TEST(WorkerPool, AFailureThatThrowsEndsNothingElse) {
  WorkerPool pool(1, 16);
  absl::Notification ran;
  const auto throws = [](const absl::Status&) { throw std::bad_alloc(); };
  EXPECT_TRUE(pool.Submit([] { return absl::NotFoundError("no"); }, throws));
  EXPECT_TRUE(pool.Submit(
      [&] {
        ran.Notify();
        return absl::OkStatus();
      },
      throws));
  ran.WaitForNotification();
}

TEST(WorkerPool, TakesNoMoreThanItsQueueHolds) {
  absl::Notification go, started;
  WorkerPool pool(1, 1);
  const auto job = [&] {
    if (!started.HasBeenNotified()) started.Notify();
    go.WaitForNotification();
    return absl::OkStatus();
  };
  EXPECT_TRUE(pool.Submit(job, nullptr));
  started.WaitForNotification();
  EXPECT_TRUE(pool.Submit(job, nullptr));
  EXPECT_FALSE(pool.Submit(job, nullptr));
  go.Notify();
}

}  // namespace
}  // namespace c3po
