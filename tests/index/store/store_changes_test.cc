// ChangesSince and WaitForGeneration, in every store.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "absl/time/time.h"
#include "index/base/steady_time.h"
#include "index/store/reference_store.h"
#include "tests/index/store/any_store.h"
#include "tests/index/store/store_follower.h"

namespace c3po {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class StoreChangesTest : public AnyStoreTest {
 protected:
  StoreChanges Since(int64_t generation, int limit = 1000) {
    auto changes = store_->ChangesSince(generation, limit);
    EXPECT_TRUE(changes.ok()) << changes.status();
    return changes.ok() ? *std::move(changes) : StoreChanges();
  }
  static std::vector<std::string> Ids(const StoreChanges& changes) {
    std::vector<std::string> ids;
    for (const ReferenceRecord& record : changes.records) ids.push_back(record.id);
    return ids;
  }
  static std::vector<std::string> Texts(const std::vector<Artifact>& artifacts) {
    std::vector<std::string> texts;
    for (const Artifact& each : artifacts)
      texts.push_back(absl::StrCat(each.collection, ":", each.name, "=", each.value));
    return texts;
  }
  int64_t Generation() const { return store_->generation(); }
};
C3PO_TEST_EVERY_STORE(StoreChangesTest);

TEST_P(StoreChangesTest, ChangesAreWhatWasAddedReplacedErasedAndPutSinceEachOnceAsItIsNow) {
  std::vector<ReferenceRecord> records = MakeReferences("math", 0, 4);
  EXPECT_THAT(Since(0).records, IsEmpty());
  EXPECT_EQ(Since(0).generation, 0);
  ASSERT_TRUE(store_->Add(records).ok());
  const int64_t added = Generation();
  EXPECT_EQ(added, 1);
  ReferenceRecord replaced = records[2];
  replaced.model_digest = "model-b";
  ASSERT_TRUE(store_->Add({replaced, MakeReference("math", 9), records[0]}).ok());
  ASSERT_TRUE(store_->Delete({records[1].id, "unknown"}).ok());
  ASSERT_TRUE(store_->PutArtifacts({{"math", "prior", "p"}, {"math", "profile", "old"}}).ok());
  ASSERT_TRUE(store_->PutArtifacts({{"math", "profile", "new"}, {"law", "prior", "l"}, {"math", "absent", ""}}).ok());
  EXPECT_EQ(Generation(), 5);

  StoreChanges changes = Since(added);
  EXPECT_EQ(changes.generation, 5);
  EXPECT_FALSE(changes.more);
  EXPECT_FALSE(changes.from_start);
  EXPECT_THAT(Ids(changes), ElementsAre(records[2].id, MakeReference("math", 9).id));
  EXPECT_EQ(TextOf(changes.records[0]), TextOf(replaced));
  EXPECT_THAT(changes.erased, ElementsAre(records[1].id));
  EXPECT_THAT(Texts(changes.artifacts), ElementsAre("law:prior=l", "math:prior=p", "math:profile=new"));

  EXPECT_THAT(Since(5).records, IsEmpty());
  EXPECT_EQ(Since(5).generation, 5);
  EXPECT_EQ(Since(17).generation, 5) << "a reader of a generation that the store has not reached";
  Reopen();
  EXPECT_EQ(Generation(), 5);
  EXPECT_THAT(Ids(Since(added)), ElementsAre(records[2].id, MakeReference("math", 9).id));
  EXPECT_THAT(Since(added).erased, ElementsAre(records[1].id));
}

TEST_P(StoreChangesTest, WhatCameBackIsNotErasedAndWhatWentAgainIs) {
  const ReferenceRecord record = MakeReference("math", 0);
  ASSERT_TRUE(store_->Add({record}).ok());
  ASSERT_TRUE(store_->PutArtifacts({{"math", "prior", "p"}}).ok());
  ASSERT_TRUE(store_->Delete({record.id}).ok());
  ASSERT_TRUE(store_->PutArtifacts({{"math", "prior", ""}}).ok());
  EXPECT_THAT(Since(2).erased, ElementsAre(record.id));
  EXPECT_THAT(Texts(Since(2).artifacts), ElementsAre("math:prior="));
  ASSERT_TRUE(store_->Add({record}).ok());
  ASSERT_TRUE(store_->PutArtifacts({{"math", "prior", "q"}}).ok());
  EXPECT_THAT(Since(2).erased, IsEmpty());
  EXPECT_THAT(Since(2).records, SizeIs(1));
  EXPECT_THAT(Texts(Since(2).artifacts), ElementsAre("math:prior=q"));
  ASSERT_TRUE(store_->DeleteCollection("math").ok());
  EXPECT_THAT(Since(6).erased, ElementsAre(record.id));
  EXPECT_THAT(Since(6).records, IsEmpty());
  EXPECT_THAT(Texts(Since(6).artifacts), ElementsAre("math:prior="));
}

TEST_P(StoreChangesTest, ArtifactsOfAReferenceThatGoesAreToldAsRemoved) {
  const ReferenceRecord record = MakeReference("math", 0);
  ASSERT_TRUE(store_->Add({record, MakeReference("math", 1)}).ok());
  ASSERT_TRUE(store_->PutArtifacts({{"math", "reference/" + record.id + "/shift", "s"}, {"math", "prior", "p"}}).ok());
  const int64_t before = Generation();
  ASSERT_TRUE(store_->Delete({record.id}).ok());
  EXPECT_EQ(Generation(), before + 1);
  EXPECT_THAT(Texts(Since(before).artifacts), ElementsAre("math:reference/" + record.id + "/shift="));
}

TEST_P(StoreChangesTest, WhatChangesNothingRaisesNothing) {
  ASSERT_TRUE(store_->Add(MakeReferences("math", 0, 2)).ok());
  ASSERT_TRUE(store_->Add(MakeReferences("math", 0, 2)).ok());
  EXPECT_EQ(*store_->Delete({"unknown"}), 0);
  EXPECT_EQ(*store_->DeleteCollection("unknown"), 0);
  ASSERT_TRUE(store_->PutArtifacts({{"math", "absent", ""}}).ok());
  EXPECT_EQ(Generation(), 1);
  ASSERT_TRUE(store_->PutArtifacts({{"unknown", "prior", "p"}}).ok());
  EXPECT_EQ(*store_->DeleteCollection("unknown"), 0);
  EXPECT_EQ(Generation(), 3) << "its artifact went";
}

TEST_P(StoreChangesTest, PagesNeverTearAChangeAndLeadToTheWhole) {
  for (int batch = 0; batch < 10; ++batch) {
    ASSERT_TRUE(store_->Add(MakeReferences("math", batch * 3, batch * 3 + 3)).ok());
  }
  ASSERT_TRUE(store_->Delete({MakeReference("math", 0).id, MakeReference("math", 4).id}).ok());
  const StoreChanges first = Since(0, 7);
  EXPECT_THAT(Ids(first), SizeIs(7)) << "2 of batches 1 and 2, 3 of batch 3";
  EXPECT_EQ(first.generation, 3);
  EXPECT_TRUE(first.more);
  const StoreChanges large = Since(3, 1);
  EXPECT_THAT(Ids(large), SizeIs(3)) << "a change that alone is more than the limit";
  EXPECT_EQ(large.generation, 4);
  for (const int limit : {1, 2, 3, 7, 28, 29, 30, 31, 1000}) {
    StoreFollower follower;
    ASSERT_TRUE(follower.CatchUp(*store_, limit).ok());
    EXPECT_EQ(follower.generation, 11) << limit;
    EXPECT_THAT(follower.records, SizeIs(28)) << limit;
  }
  std::vector<std::string> all = Ids(Since(0));
  EXPECT_EQ(all, AllIds()) << "in the order of insertion";
}

TEST_P(StoreChangesTest, AReaderBehindTheErasuresThatAreRememberedGetsEverythingAtOnce) {
  StoreOptions options;
  options.erasures_max = 5;
  Reopen(options);
  ASSERT_TRUE(store_->Add(MakeReferences("math", 0, 60)).ok());
  ASSERT_TRUE(store_->PutArtifacts({{"math", "prior", "p"}}).ok());
  StoreFollower early, late;
  ASSERT_TRUE(early.CatchUp(*store_, 10).ok());
  EXPECT_EQ(early.starts, 0);
  for (int i = 0; i < 40; ++i) ASSERT_TRUE(store_->Delete({MakeReference("math", i).id}).ok());
  late = early;
  const StoreChanges changes = Since(early.generation, 1);
  EXPECT_TRUE(changes.from_start);
  EXPECT_FALSE(changes.more);
  EXPECT_THAT(changes.records, SizeIs(20));
  EXPECT_THAT(changes.artifacts, SizeIs(1));
  EXPECT_EQ(changes.generation, Generation());
  EXPECT_THAT(changes.erased, IsEmpty());
  late.Take(changes);
  EXPECT_THAT(late.records, SizeIs(20));
  EXPECT_FALSE(Since(Generation() - 1).from_start) << "the last erasures are remembered";
  EXPECT_THAT(Since(Generation() - 1).erased, SizeIs(1));
}

TEST_P(StoreChangesTest, WrongQuestionsAreRefused) {
  EXPECT_EQ(store_->ChangesSince(-1, 10).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(store_->ChangesSince(0, 0).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(StoreChangesTest, ForEachTellsTheGenerationOfItsState) {
  ASSERT_TRUE(store_->Add(MakeReferences("math", 0, 2)).ok());
  ASSERT_TRUE(store_->PutArtifacts({{"math", "prior", "p"}}).ok());
  int64_t generation = -1;
  ASSERT_TRUE(store_->ForEach([](ReferenceRecord) { return absl::OkStatus(); }, &generation).ok());
  EXPECT_EQ(generation, 2);
}

TEST_P(StoreChangesTest, WhoWaitsIsToldOfAChangeAtOnceAndOfNoneInTime) {
  EXPECT_EQ(*store_->WaitForGeneration(0, absl::ZeroDuration()), 0);
  absl::Time begun = SteadyNow();
  EXPECT_EQ(*store_->WaitForGeneration(0, absl::Milliseconds(200)), 0);
  EXPECT_GE(SteadyNow() - begun, absl::Milliseconds(190));
  begun = SteadyNow();
  std::thread changes([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    EXPECT_TRUE(store_->Add(MakeReferences("math", 0, 1)).ok());
  });
  EXPECT_EQ(*store_->WaitForGeneration(0, absl::Seconds(60)), 1);
  changes.join();
  EXPECT_LT(SteadyNow() - begun, absl::Seconds(30));
  EXPECT_EQ(*store_->WaitForGeneration(0, absl::Seconds(60)), 1) << "it is there already";
}

}  // namespace
}  // namespace c3po
