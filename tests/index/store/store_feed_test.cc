#include "index/store/store_feed.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "index/base/store_away.h"
#include "index/store/change_page.h"
#include "tests/index/store/random_reference.h"
#include "tests/index/store/shared_store.h"

namespace c3po {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Holds what the store has, by its updates alone; reads it all again where it is told to.
class Mirror final : public StoreListener {
 public:
  explicit Mirror(ReferenceStore* store) : store_(store) {}
  absl::Status OnUpdate(const StoreUpdate& update) override {
    ++updates;
    if (!fails.ok()) return fails;
    if (update.from_start) {
      ++starts;
      prompts.clear();
      artifacts.clear();
      const absl::Status read = store_->ForEach([&](ReferenceRecord record) {
        prompts[record.id] = record.sample.prompt;
        return absl::OkStatus();
      });
      const std::vector<Artifact> stored = *store_->Artifacts("math", "");
      for (const Artifact& artifact : stored) artifacts[artifact.name] = artifact.value;
      return read;
    }
    std::set<std::string> told;
    for (const auto& record : update.records) {
      EXPECT_TRUE(told.insert(record->id).second) << record->id;
      prompts[record->id] = record->sample.prompt;
    }
    for (const std::string& id : update.erased) {
      EXPECT_TRUE(told.insert(id).second) << id;
      prompts.erase(id);
    }
    for (const Artifact& artifact : update.artifacts) {
      artifacts[artifact.name] = artifact.value;
      if (artifact.value.empty()) artifacts.erase(artifact.name);
    }
    generation = update.generation;
    return absl::OkStatus();
  }
  std::map<std::string, std::string> prompts, artifacts;
  int64_t generation = 0;
  int updates = 0, starts = 0;
  absl::Status fails;

 private:
  ReferenceStore* const store_;
};

class StoreFeedTest : public testing::Test {
 protected:
  StoreFeedTest() { Open({}); }
  void Open(const StoreOptions& options) {
    store_ = *OpenReferenceStore(folder_.File(std::to_string(++opened_)), options);
    shared_ = std::make_unique<SharedStore>(store_.get());
    feed_ = std::make_unique<StoreFeed>(shared_.get());
  }
  // As the store has them.
  std::map<std::string, std::string> Prompts() const {
    std::map<std::string, std::string> prompts;
    const std::vector<ReferenceRecord> records = *store_->List("", "", 100000);
    for (const ReferenceRecord& record : records) prompts[record.id] = record.sample.prompt;
    return prompts;
  }

  ScratchFolder folder_;
  int opened_ = 0;
  std::unique_ptr<ReferenceStore> store_;
  std::unique_ptr<SharedStore> shared_;
  std::unique_ptr<StoreFeed> feed_;
};

TEST_F(StoreFeedTest, AListenerIsToldFromTheStartAndThenEachChangeOnce) {
  ASSERT_TRUE(store_->Add(MakeReferences("math", 0, 3)).ok());
  Mirror mirror(store_.get());
  ASSERT_TRUE(feed_->Join(&mirror).ok());
  EXPECT_EQ(mirror.prompts, Prompts());
  EXPECT_EQ(feed_->generation(), 1);
  ASSERT_TRUE(store_->Add(MakeReferences("math", 3, 5)).ok());
  EXPECT_EQ(mirror.prompts.size(), 3u);
  ASSERT_TRUE(feed_->CatchUp().ok());
  EXPECT_EQ(mirror.prompts, Prompts());
  EXPECT_EQ(feed_->generation(), 2);
  const int updates = mirror.updates;
  ASSERT_TRUE(feed_->CatchUp().ok());
  EXPECT_EQ(mirror.updates, updates) << "there is nothing new";
  ASSERT_TRUE(feed_->PutArtifacts({{"math", "prior", "p"}}).ok());
  EXPECT_THAT(mirror.artifacts, ElementsAre(std::pair<const std::string, std::string>("prior", "p")));
  feed_->Leave(&mirror);
  ASSERT_TRUE(feed_->PutArtifacts({{"math", "prior", "q"}}).ok());
  EXPECT_EQ(mirror.artifacts["prior"], "p");
}

TEST_F(StoreFeedTest, OneWhoListensHearsOnlyOfWhatComes) {
  ASSERT_TRUE(store_->Add(MakeReferences("math", 0, 3)).ok());
  Mirror mirror(store_.get());
  feed_->Listen(&mirror);
  ASSERT_TRUE(feed_->CatchUp().ok());
  EXPECT_EQ(mirror.updates, 0);
  ASSERT_TRUE(store_->Add(MakeReferences("math", 3, 5)).ok());
  ASSERT_TRUE(feed_->CatchUp().ok());
  EXPECT_EQ(mirror.prompts.size(), 2u);
  EXPECT_EQ(mirror.starts, 0);
}

// Whatever the pages are cut to, an id or an artifact that changed several times is told once, as it is at the end.
TEST_F(StoreFeedTest, RandomChangesInPagesOfAnySizeLeadToTheStoresState) {
  std::mt19937 random(7);
  for (const int page : {1, 2, 7, 1 << 20}) {
    Open({});
    shared_->page_max = page;
    Mirror mirror(store_.get());
    ASSERT_TRUE(feed_->Join(&mirror).ok());
    for (int round = 0; round < 40; ++round) {
      for (int i = static_cast<int>(random() % 12); i > 0; --i) {
        const int number = static_cast<int>(random() % 20);
        ReferenceRecord record = MakeReference("math", number);
        record.sample.id = std::to_string(number);  // Its content may change.
        record.sample.prompt += std::to_string(random() % 3);
        record.id = ReferenceId("math", record.sample);
        switch (random() % 4) {
          case 0:
            ASSERT_TRUE(store_->Delete({record.id}).ok());
            break;
          case 1:
            ASSERT_TRUE(
                store_->PutArtifacts({{"math", "a" + std::to_string(random() % 3), number % 3 ? "v" : ""}}).ok());
            break;
          default:
            ASSERT_TRUE(store_->Add({record}).ok());
        }
      }
      if (random() % 15 == 0) {
        ASSERT_TRUE(store_->DeleteCollection("math").ok());
      }
      const int updates = mirror.updates;
      const bool has_news = feed_->generation() != store_->generation();
      ASSERT_TRUE(feed_->CatchUp().ok());
      EXPECT_EQ(mirror.updates, updates + (has_news ? 1 : 0));
      ASSERT_EQ(mirror.prompts, Prompts()) << page << ", " << round;
      std::map<std::string, std::string> artifacts;
      const std::vector<Artifact> stored = *store_->Artifacts("math", "");
      for (const Artifact& artifact : stored) artifacts[artifact.name] = artifact.value;
      ASSERT_EQ(mirror.artifacts, artifacts) << page << ", " << round;
      EXPECT_EQ(feed_->generation(), store_->generation());
      EXPECT_EQ(mirror.generation, store_->generation());
    }
    EXPECT_EQ(mirror.starts, 1);
    feed_->Leave(&mirror);
  }
}

TEST_F(StoreFeedTest, WhereTheStoreHasForgottenWhatWasErasedAllIsReadAgain) {
  StoreOptions options;
  options.erasures_max = 2;
  Open(options);
  ASSERT_TRUE(store_->Add(MakeReferences("math", 0, 9)).ok());
  Mirror mirror(store_.get());
  ASSERT_TRUE(feed_->Join(&mirror).ok());
  for (int i = 0; i < 6; ++i) ASSERT_TRUE(store_->Delete({MakeReference("math", i).id}).ok());
  ASSERT_TRUE(store_->Add(MakeReferences("math", 20, 22)).ok());
  for (int64_t i = 0; i < kForgetErasuresEvery; ++i) {
    ASSERT_TRUE(store_->PutArtifacts({{"math", "a", std::to_string(i)}}).ok());
  }
  ASSERT_TRUE(feed_->CatchUp().ok());
  EXPECT_EQ(mirror.starts, 2);
  EXPECT_EQ(mirror.prompts, Prompts());
  EXPECT_EQ(feed_->generation(), store_->generation());
}

// A database that was restored from an older backup.
TEST_F(StoreFeedTest, AStoreThatHasNotComeSoFarIsReadAgain) {
  ASSERT_TRUE(store_->Add(MakeReferences("math", 0, 9)).ok());
  ASSERT_TRUE(store_->Delete({MakeReference("math", 0).id}).ok());
  const auto older = *OpenReferenceStore(folder_.File("older"), StoreOptions());
  ASSERT_TRUE(older->Add(MakeReferences("math", 3, 5)).ok());
  struct Switch final : StoreListener {
    absl::Status OnUpdate(const StoreUpdate& update) override {
      starts += update.from_start ? 1 : 0;
      return absl::OkStatus();
    }
    int starts = 0;
  } listener;
  ASSERT_TRUE(feed_->Join(&listener).ok());
  EXPECT_EQ(feed_->generation(), 2);
  shared_->Replace(older.get());
  ASSERT_TRUE(feed_->CatchUp().ok());
  EXPECT_EQ(listener.starts, 2);
  EXPECT_EQ(feed_->generation(), 1);
}

TEST_F(StoreFeedTest, WhatAListenerCouldNotTakeComesAgain) {
  Mirror mirror(store_.get());
  ASSERT_TRUE(feed_->Join(&mirror).ok());
  ASSERT_TRUE(store_->Add(MakeReferences("math", 0, 2)).ok());
  mirror.fails = absl::InternalError("no");
  EXPECT_EQ(feed_->CatchUp(), mirror.fails);
  EXPECT_EQ(feed_->generation(), 0);
  ASSERT_TRUE(store_->Add(MakeReferences("math", 2, 4)).ok());
  mirror.fails = absl::OkStatus();
  ASSERT_TRUE(feed_->CatchUp().ok());
  EXPECT_EQ(mirror.prompts, Prompts());
}

TEST_F(StoreFeedTest, AChangeThatIsStoredAndNotShownSaysSo) {
  Mirror mirror(store_.get());
  ASSERT_TRUE(feed_->Join(&mirror).ok());
  mirror.fails = StoreAwayError("gone");
  const absl::Status status = feed_->PutArtifacts({{"math", "prior", "p"}});
  EXPECT_TRUE(IsStoreAway(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("the change is stored, and not shown here yet: gone"));
  EXPECT_EQ(store_->Artifacts("math", "")->size(), 1u);
}

TEST_F(StoreFeedTest, AStoreThatIsKnownToBeAwayIsNotAsked) {
  feed_->NoteReachable(StoreAwayError("no answer for 4 seconds"));
  const int calls = shared_->calls;
  EXPECT_EQ(feed_->PutArtifacts({{"math", "prior", "p"}}).message(), "no answer for 4 seconds");
  EXPECT_EQ(shared_->calls, calls);
  feed_->NoteReachable(absl::OkStatus());
  EXPECT_TRUE(feed_->PutArtifacts({{"math", "prior", "p"}}).ok());
}

TEST_F(StoreFeedTest, ChangesOfSeveralThreadsAreToldInTheirOrder) {
  Mirror mirror(store_.get());
  ASSERT_TRUE(feed_->Join(&mirror).ok());
  std::atomic<int> failures = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 40; ++i) {
        if (!store_->Add(MakeReferences("math", 100 * t + i, 100 * t + i + 2)).ok()) ++failures;
        const int64_t generation = store_->generation();
        if (!feed_->CatchUp().ok() || feed_->generation() < generation) ++failures;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failures, 0);
  EXPECT_EQ(mirror.prompts, Prompts());
  EXPECT_EQ(feed_->generation(), store_->generation());
}

}  // namespace
}  // namespace c3po
