#include "server/admission/grant.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

namespace c3po {
namespace {

TEST(Grant, TellsThoseThatWatchOnceAndThoseThatComeLaterAtOnce) {
  Grant grant;
  int first = 0, second = 0, gone = 0, late = 0;
  const auto a = grant.Watch([&] { ++first; });
  const auto b = grant.Watch([&] { ++second; });
  grant.Watch([&] { ++gone; });  // Ended at once.
  EXPECT_EQ(first + second, 0);
  grant.Revoke();
  grant.Revoke();
  EXPECT_EQ(std::pair(first, second), std::pair(1, 1));
  EXPECT_EQ(gone, 0);
  const auto c = grant.Watch([&] { ++late; });
  EXPECT_EQ(late, 1);
}

TEST(Grant, ACallbackMayEndItsOwnHold) {
  Grant grant;
  std::unique_ptr<Grant::Hold> hold;
  int told = 0;
  hold = grant.Watch([&] {
    hold.reset();
    ++told;
  });
  grant.Revoke();
  EXPECT_EQ(told, 1);
}

TEST(Grant, ManyCallsThatCameAndWentAreForgotten) {
  Grant grant;
  int told = 0;
  const auto one = grant.Watch([&] { ++told; });
  for (int i = 0; i < 10000; ++i) grant.Watch([&] { ++told; });
  grant.Revoke();
  EXPECT_EQ(told, 1);
}

// Whatever comes first: who watches is told exactly once, and never after its hold is gone.
TEST(Grant, NobodyIsToldAfterItsHoldIsGone) {
  for (int round = 0; round < 200; ++round) {
    Grant grant;
    std::vector<std::thread> threads;
    std::atomic<int> kept_told{0}, late{0};
    std::vector<std::unique_ptr<Grant::Hold>> kept(4);
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        for (int i = 0; i < 20; ++i) {
          auto alive = std::make_unique<std::atomic<bool>>(true);
          auto hold = grant.Watch([&late, raw = alive.get()] { late += raw->load() ? 0 : 1; });
          hold.reset();
          alive->store(false);
        }
        kept[t] = grant.Watch([&] { ++kept_told; });
      });
    }
    threads.emplace_back([&] { grant.Revoke(); });
    for (std::thread& thread : threads) thread.join();
    ASSERT_EQ(late, 0);
    ASSERT_EQ(kept_told, 4);
  }
}

}  // namespace
}  // namespace c3po
