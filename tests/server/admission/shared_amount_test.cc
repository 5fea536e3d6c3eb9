#include "server/admission/shared_amount.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace c3po {
namespace {

TEST(SharedAmount, OneCallerHoldsHalfOfItAndOthersFindTheRest) {
  SharedAmount bytes(100, "bytes");
  EXPECT_TRUE(bytes.Take("ann", 50).ok());
  const absl::Status beyond = bytes.Take("ann", 1);
  EXPECT_TRUE(absl::IsResourceExhausted(beyond));
  EXPECT_EQ(beyond.message(), "the caller has 50 of the 50 bytes that are its share");
  EXPECT_TRUE(bytes.Take("ben", 30).ok());
  EXPECT_TRUE(bytes.Take("cleo", 20).ok());
  EXPECT_EQ(bytes.Take("cleo", 1).message(), "no bytes are left: 100 of 100 are taken");
  bytes.Give("ann", 50);
  EXPECT_EQ(bytes.held(), 50);
  EXPECT_TRUE(bytes.Take("ann", 50).ok());
}

TEST(SharedAmount, AnAmountLargerThanCountsHoldIsRefused) {
  SharedAmount bytes(100, "bytes");
  EXPECT_TRUE(bytes.Take("ann", 1).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(bytes.Take("ann", INT64_MAX)));
  EXPECT_EQ(bytes.held(), 1);
}

TEST(SharedAmount, AnOddOneGoesToTheCaller) {
  SharedAmount places(1, "places");
  EXPECT_TRUE(places.TakePlace("ann").ok());  // And is given back at once.
  const auto held = places.TakePlace("ann");
  ASSERT_TRUE(held.ok());
  EXPECT_FALSE(places.TakePlace("ben").ok());
}

TEST(SharedAmount, TellsWhatIsHeldAndIsEmptyAfterManyThreads) {
  int64_t told = -1;
  SharedAmount places(8, "places", [&told](int64_t held) { told = held; });
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&places, caller = std::to_string(i)] {
      for (int n = 0; n < 1000; ++n) (void)places.TakePlace(caller);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(places.held(), 0);
  EXPECT_EQ(told, 0);
}

}  // namespace
}  // namespace c3po
