#include "server/pipeline/store_follower.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "index/base/steady_time.h"
#include "index/base/store_away.h"
#include "server/types/status_details.h"
#include "tests/index/store/random_reference.h"
#include "tests/index/store/shared_store.h"

namespace c3po {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kSoon = absl::Seconds(10);  // Of what should take milliseconds on an idle machine.

bool Eventually(const std::function<bool()>& is_true) {
  for (const absl::Time end = absl::Now() + kSoon; absl::Now() < end; absl::SleepFor(absl::Milliseconds(2))) {
    if (is_true()) return true;
  }
  return false;
}

// One call that waits for a generation.
struct Wait {
  absl::Status status;
  absl::Notification done;
  const std::shared_ptr<std::atomic<bool>> cancelled = std::make_shared<std::atomic<bool>>(false);
  // Whether the generation was there already.
  bool Begin(StoreFollower& follower, int64_t generation, absl::Time deadline = absl::InfiniteFuture()) {
    return follower.WhenSeen(generation, deadline, cancelled, [this](const absl::Status& given) {
      status = given;
      done.Notify();
    });
  }
  bool Ended() { return done.WaitForNotificationWithTimeout(kSoon); }
};

class StoreFollowerTest : public testing::Test {
 protected:
  StoreFollowerTest() : store_(*OpenReferenceStore(folder_.File("store.db"), StoreOptions())) {
    EXPECT_TRUE(store_->Add(MakeReferences("c", 0, 3)).ok());
    options_.look_every = absl::Milliseconds(20);
    options_.pause = absl::Milliseconds(10);
    options_.silent_max = absl::Milliseconds(100);
    options_.wait_max = absl::Milliseconds(300);
    options_.unshared_wait = absl::Milliseconds(50);
  }
  void Start(ReferenceStore* store) {
    follower_.reset();
    catalog_.reset();
    feed_ = std::make_unique<StoreFeed>(store);
    CatalogOptions options;
    options.model_digest = kModelDigest;
    options.embedder_digest = kEmbedderDigest;
    options.embedding_dimension = 8;
    options.moe_layers = 3;
    options.experts = 4;
    catalog_ = *ReferenceCatalog::Open(feed_.get(), options);
    follower_ = *StoreFollower::Start(feed_.get(), catalog_.get(), &metrics_, options_);
  }
  void AddByAnother(int begin, int end) { ASSERT_TRUE(store_->Add(MakeReferences("c", begin, end)).ok()); }

  ScratchFolder folder_;
  const std::unique_ptr<ReferenceStore> store_;
  SharedStore shared_{store_.get()};
  Metrics metrics_{"model", "0"};
  StoreFollower::Options options_;
  std::unique_ptr<StoreFeed> feed_;
  std::unique_ptr<ReferenceCatalog> catalog_;
  std::unique_ptr<StoreFollower> follower_;
};

TEST_F(StoreFollowerTest, WhatOthersChangeIsSeenAnnouncedOrNot) {
  Start(&shared_);
  AddByAnother(3, 5);
  EXPECT_TRUE(Eventually([&] { return catalog_->generation() == 2; }));
  EXPECT_EQ(catalog_->Collections()[0].usable, 5);
  EXPECT_TRUE(Eventually([&] {
    return metrics_.PrometheusText().find("c3po_references 5\n") != std::string::npos &&
           metrics_.PrometheusText().find("c3po_index_generation 2\n") != std::string::npos;
  }));
  shared_.deaf = true;
  AddByAnother(5, 6);
  EXPECT_TRUE(Eventually([&] { return catalog_->generation() == 3; }));
  EXPECT_EQ(follower_->figures().generations_behind, 0);
}

TEST_F(StoreFollowerTest, ACallWaitsForAGenerationThatComes) {
  Start(&shared_);
  Wait there, later;
  EXPECT_TRUE(there.Begin(*follower_, 1));
  EXPECT_FALSE(later.Begin(*follower_, 2));
  EXPECT_FALSE(later.done.HasBeenNotified());
  AddByAnother(3, 5);
  ASSERT_TRUE(later.Ended());
  EXPECT_TRUE(later.status.ok()) << later.status;
  EXPECT_GE(catalog_->generation(), 2);
  EXPECT_TRUE(catalog_->Holds(MakeReference("c", 4).id));
  EXPECT_FALSE(there.done.HasBeenNotified()) << "it did not wait";
}

TEST_F(StoreFollowerTest, ACallsOwnChangeEndsItsWaitToo) {
  Start(&shared_);
  Wait wait;
  EXPECT_FALSE(wait.Begin(*follower_, 2));
  ASSERT_TRUE(catalog_->Insert(MakeReferences("c", 3, 4)).ok());
  ASSERT_TRUE(wait.Ended());
  EXPECT_TRUE(wait.status.ok());
}

TEST_F(StoreFollowerTest, AWaitEndsWithItsDeadlineItsCallOrTheServersBound) {
  Start(&shared_);
  Wait late, left, bounded;
  EXPECT_FALSE(late.Begin(*follower_, 9, SteadyNow() + absl::Milliseconds(30)));
  EXPECT_FALSE(left.Begin(*follower_, 9));
  EXPECT_FALSE(bounded.Begin(*follower_, 9));
  left.cancelled->store(true);
  ASSERT_TRUE(left.Ended());
  EXPECT_TRUE(absl::IsCancelled(left.status));
  ASSERT_TRUE(late.Ended());
  EXPECT_TRUE(absl::IsDeadlineExceeded(late.status)) << late.status;
  ASSERT_TRUE(bounded.Ended());
  EXPECT_TRUE(absl::IsUnavailable(bounded.status)) << bounded.status;
  EXPECT_EQ(ReasonOf(bounded.status), "BEHIND");
  EXPECT_EQ(RetryAfterOf(bounded.status), absl::Seconds(1));
  EXPECT_EQ(bounded.status.message(), "this server has seen generation 1, not 9");
}

TEST_F(StoreFollowerTest, NobodyWaitsLongForAStoreThatNoOtherServerChanges) {
  Start(store_.get());
  Wait wait, there;
  EXPECT_TRUE(there.Begin(*follower_, 1));
  EXPECT_FALSE(wait.Begin(*follower_, 9));
  ASSERT_TRUE(wait.Ended());
  EXPECT_TRUE(absl::IsFailedPrecondition(wait.status)) << wait.status;
  EXPECT_EQ(follower_->figures().silent_for, absl::ZeroDuration());
}

TEST_F(StoreFollowerTest, SoManyWaitAndNoMore) {
  options_.waiters_max = 2;
  Start(&shared_);
  std::vector<std::unique_ptr<Wait>> waits;
  for (int i = 0; i < 3; ++i) {
    waits.push_back(std::make_unique<Wait>());
    EXPECT_FALSE(waits.back()->Begin(*follower_, 9));
  }
  ASSERT_TRUE(waits[2]->Ended());
  EXPECT_TRUE(absl::IsResourceExhausted(waits[2]->status));
  for (const auto& wait : waits) EXPECT_TRUE(wait->Ended());
}

TEST_F(StoreFollowerTest, WhoStillWaitsAtTheEndIsTold) {
  options_.wait_max = absl::InfiniteDuration();
  Start(&shared_);
  Wait wait;
  EXPECT_FALSE(wait.Begin(*follower_, 9));
  follower_.reset();
  ASSERT_TRUE(wait.Ended());
  EXPECT_TRUE(absl::IsUnavailable(wait.status));
}

TEST_F(StoreFollowerTest, ADatabaseThatIsAwayIsNotedAndSeenAgain) {
  Start(&shared_);
  EXPECT_TRUE(feed_->CheckReachable().ok());
  shared_.away = true;
  EXPECT_TRUE(Eventually([&] { return IsStoreAway(feed_->CheckReachable()); }));
  AddByAnother(3, 5);
  EXPECT_TRUE(Eventually([&] { return follower_->figures().silent_for > absl::Milliseconds(50); }));
  EXPECT_THAT(metrics_.PrometheusText(), HasSubstr("c3po_store_silent_seconds 0."));
  EXPECT_EQ(catalog_->generation(), 1);
  Wait wait;
  EXPECT_FALSE(wait.Begin(*follower_, 2));
  ASSERT_TRUE(wait.Ended());
  EXPECT_EQ(ReasonOf(wait.status), "BEHIND");
  EXPECT_THAT(std::string(wait.status.message()), HasSubstr("does not answer"));
  shared_.away = false;
  EXPECT_TRUE(Eventually([&] { return catalog_->generation() == 2; }));
  EXPECT_TRUE(Eventually([&] { return feed_->CheckReachable().ok(); }));
}

// A database that is stopped answers nothing and refuses nothing: the look waits, and calls must not.
TEST_F(StoreFollowerTest, ADatabaseThatIsPausedIsNotedLongBeforeACallOfItEnds) {
  Start(&shared_);
  const absl::Time began = absl::Now();
  shared_.paused = true;
  EXPECT_TRUE(Eventually([&] { return IsStoreAway(feed_->CheckReachable()); }));
  EXPECT_LT(absl::Now() - began, SharedStore::kCallMax / 2);
  EXPECT_THAT(std::string(feed_->CheckReachable().message()), HasSubstr("has not answered"));
  AddByAnother(3, 5);
  shared_.paused = false;
  EXPECT_TRUE(Eventually([&] { return catalog_->generation() == 2 && feed_->CheckReachable().ok(); }));
}

}  // namespace
}  // namespace c3po
