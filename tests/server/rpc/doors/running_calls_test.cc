#include "server/rpc/doors/running_calls.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

namespace c3po {
namespace {

TEST(RunningCalls, AbortsTheCallersOwnCallsWithThisIdOnly) {
  RunningCalls calls;
  int mine = 0, twin = 0, other_id = 0, other_caller = 0;
  const auto a = calls.Enter("ann", "1", [&] { ++mine; });
  const auto b = calls.Enter("ann", "1", [&] { ++twin; });
  const auto c = calls.Enter("ann", "2", [&] { ++other_id; });
  const auto d = calls.Enter("bob", "1", [&] { ++other_caller; });
  EXPECT_EQ(calls.Abort("ann", "1"), 2);
  EXPECT_EQ(calls.Abort("eve", "1"), 0);
  EXPECT_EQ(calls.Abort("ann", ""), 0);
  EXPECT_EQ(std::make_pair(mine, twin), std::make_pair(1, 1));
  EXPECT_EQ(std::make_pair(other_id, other_caller), std::make_pair(0, 0));
}

TEST(RunningCalls, ForgetsACallThatHasLeft) {
  RunningCalls calls;
  int aborted = 0;
  auto first = calls.Enter("ann", "1", [&] { ++aborted; });
  const auto second = calls.Enter("ann", "1", [&] { aborted += 10; });
  first = nullptr;
  EXPECT_EQ(calls.Abort("ann", "1"), 1);
  EXPECT_EQ(aborted, 10);
}

TEST(RunningCalls, ACallWithoutAnIdCannotBeAborted) {
  RunningCalls calls;
  EXPECT_EQ(calls.Enter("ann", "", [] { FAIL(); }), nullptr);
  EXPECT_EQ(calls.Abort("ann", ""), 0);
}

// For ThreadSanitizer: a place is left while another thread aborts; afterwards its function is not called.
TEST(RunningCalls, LeavingAndAbortingMayMeet) {
  RunningCalls calls;
  std::atomic<bool> stop{false};
  std::thread aborter([&] {
    while (!stop) calls.Abort("ann", "1");
  });
  std::vector<int> gone;
  for (int i = 0; i < 2000; ++i) {
    auto alive = std::make_unique<std::atomic<bool>>(true);
    auto place = calls.Enter("ann", "1", [at = alive.get()] { EXPECT_TRUE(at->load()); });
    place = nullptr;
    alive->store(false);
  }
  stop = true;
  aborter.join();
}

}  // namespace
}  // namespace c3po
