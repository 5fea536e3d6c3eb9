// Catalogs of several servers over one store, each with a feed of its own: what one changes the others show once they
// have caught up, and never in parts. Of a file that the servers of one process share, and of a database.

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

#include "tests/index/search/catalog_servers.h"

namespace c3po {
namespace {

using ::testing::SizeIs;

using CatalogFollowsTest = CatalogServersTest;
C3PO_TEST_EVERY_STORE(CatalogFollowsTest);

// Random changes by both, in batches that take them from exact search to graphs and back. Each answers from the state
// whose generation it names, also while it is behind; and has its own changes at once.
TEST_P(CatalogFollowsTest, EachServerAnswersFromTheStateThatItsGenerationNames) {
  std::mt19937 random(20261130);
  std::map<int64_t, State> states = {{0, {}}};
  for (int step = 0; step < 160; ++step) {
    Server& server = servers_[random() % 2];
    std::vector<ReferenceRecord> batch;
    for (int i = 1 + static_cast<int>(random() % 25); i > 0; --i) batch.push_back(RandomRecord(random));
    std::vector<std::string> ids;
    for (const ReferenceRecord& record : batch) ids.push_back(record.id);
    switch (random() % 8) {
      case 0:
        ASSERT_TRUE(server->EraseCollection(batch[0].collection).ok());
        break;
      case 1:
      case 2:
        ASSERT_TRUE(server->Erase(ids).ok());
        break;
      default:
        ASSERT_TRUE(server->Insert(batch).ok());
    }
    states[Latest()] = StateNow();
    EXPECT_EQ(server->generation(), Latest()) << "its own change is shown when the call returns";
    if (random() % 4 == 0) {
      ASSERT_TRUE(servers_[random() % 2]->CatchUp().ok());
    }
    for (const Server& each : servers_) {
      ASSERT_EQ(states.count(each->generation()), 1u);
      ExpectAnswersOf(*each.catalog, states[each->generation()], random);
      if (HasFatalFailure()) return;
    }
  }
  // One that starts now shows the same.
  const Server third = StartServer();
  for (const Server& each : servers_) {
    ASSERT_TRUE(each->CatchUp().ok());
    EXPECT_EQ(each->generation(), third->generation());
    ExpectAnswersOf(*each.catalog, StateNow(), random);
  }
  ExpectAnswersOf(*third.catalog, StateNow(), random);
}

// More arrive than are there: they are taken into a new index beside the old one, and no search asks for more
// meanwhile.
TEST_P(CatalogFollowsTest, ALongAbsenceIsCaughtUpWithAtOnce) {
  ASSERT_TRUE(a()->Insert(MakeReferences("c", 0, 100)).ok());
  ASSERT_TRUE(b()->CatchUp().ok());
  for (int i = 100; i < 3000; i += 100) ASSERT_TRUE(store_->Add(MakeReferences("c", i, i + 100)).ok());
  for (int i = 0; i < 50; ++i) ASSERT_TRUE(store_->Delete({MakeReference("c", i).id}).ok());
  ASSERT_TRUE(store_->Delete({MakeReference("c", 2999).id}).ok());
  std::atomic<bool> stop = false;
  std::atomic<int> torn = 0, searches = 0;
  std::thread searcher([&] {
    std::mt19937 random(5);
    while (!stop) {
      const auto found = b()->Search("c", RandomUnitVector(random, kDimension), 100000, false);
      if (!found.ok() || (found->size() != 100 && found->size() != 2949)) ++torn;
      ++searches;
    }
  });
  ASSERT_TRUE(b()->CatchUp().ok());
  stop = true;
  searcher.join();
  EXPECT_EQ(torn, 0) << "of " << searches;
  EXPECT_EQ(b()->generation(), Latest());
  EXPECT_EQ(b()->Collections()[0].usable, 2949);
  EXPECT_GT(b()->MeasureRecall(10, 16), 0.9);
}

// What was erased is forgotten by the store: searches see the state before until that after is there whole.
TEST_P(CatalogFollowsTest, ReadingTheStoreAgainNeverShowsAPartOfIt) {
  StoreOptions options;
  options.erasures_max = 3;
  OpenStore(options);
  ASSERT_TRUE(a()->Insert(MakeReferences("c", 0, 200)).ok());
  ASSERT_TRUE(a()->Insert(MakeReferences("gone", 0, 5)).ok());
  ASSERT_TRUE(b()->CatchUp().ok());
  std::set<std::string> before, after;
  for (const ReferenceRecord& record : MakeReferences("c", 0, 200)) before.insert(record.id);
  for (const ReferenceRecord& record : MakeReferences("c", 100, 350)) after.insert(record.id);
  for (int i = 0; i < 100; i += 10) {
    std::vector<std::string> ids;
    for (const ReferenceRecord& record : MakeReferences("c", i, i + 10)) ids.push_back(record.id);
    ASSERT_TRUE(a()->Erase(ids).ok());
  }
  ASSERT_TRUE(a()->EraseCollection("gone").ok());
  ASSERT_TRUE(a()->Insert(MakeReferences("c", 200, 350)).ok());
  std::atomic<bool> stop = false;
  std::atomic<int> torn = 0;
  std::thread searcher([&] {
    std::mt19937 random(5);
    while (!stop) {
      const auto found = b()->Search("c", RandomUnitVector(random, kDimension), 100000, false);
      std::set<std::string> ids;
      for (const Neighbor& neighbor : *found) ids.insert(neighbor.reference_id);
      if (ids != before && ids != after) ++torn;
    }
  });
  const auto held = b()->GetRecord(MakeReference("c", 150).id);
  ASSERT_TRUE(b()->CatchUp().ok());
  stop = true;
  searcher.join();
  EXPECT_EQ(torn, 0);
  EXPECT_EQ(b()->generation(), Latest());
  EXPECT_THAT(b()->Collections(), SizeIs(1));
  EXPECT_EQ(*b()->GetRecord(MakeReference("c", 150).id), *held) << "what is the same stays as it was";
  std::mt19937 random(1);
  ExpectAnswersOf(*b().catalog, StateNow(), random);
}

// Writers on both, followers and searchers beside them. Batches are of one size, so that a torn one is seen.
TEST_P(CatalogFollowsTest, WritersOfTwoServersAndTheirSearchersNeverMeetATornBatch) {
  constexpr int kBatch = 12, kBatches = 12;
  std::atomic<bool> stop = false;
  std::atomic<int> failures = 0, torn = 0;
  std::vector<std::thread> writers, others;
  for (int w = 0; w < 4; ++w) {
    writers.emplace_back([&, w] {
      Server& server = servers_[static_cast<size_t>(w % 2)];
      for (int i = 0; i < kBatches; ++i) {
        const int begin = (w * kBatches + i) * kBatch;
        const auto records = MakeReferences("c", begin, begin + kBatch);
        if (!server->Insert(records).ok() || !server->GetRecord(records[5].id).ok()) ++failures;
        if (i % 3 != 2) continue;
        std::vector<std::string> ids;
        for (const ReferenceRecord& record : records) ids.push_back(record.id);
        if (!server->Erase(ids).ok() || server->Holds(ids[3])) ++failures;
      }
    });
  }
  for (size_t s = 0; s < 2; ++s) {
    others.emplace_back([&, s] {
      while (!stop) failures += servers_[s]->CatchUp().ok() ? 0 : 1;
    });
    others.emplace_back([&, s] {
      std::mt19937 random(static_cast<uint32_t>(s));
      int64_t last = 0;
      while (!stop) {
        const int64_t generation = servers_[s]->generation();
        if (generation < last) ++failures;
        last = generation;
        const auto found = servers_[s]->Search("c", RandomUnitVector(random, kDimension), 100000, false);
        if (absl::IsNotFound(found.status())) continue;
        if (!found.ok() || found->size() % kBatch != 0) ++torn;
      }
    });
  }
  for (std::thread& thread : writers) thread.join();
  stop = true;
  for (std::thread& thread : others) thread.join();
  EXPECT_EQ(failures, 0);
  EXPECT_EQ(torn, 0);
  std::mt19937 random(9);
  for (const Server& server : servers_) {
    ASSERT_TRUE(server->CatchUp().ok());
    EXPECT_EQ(server->generation(), Latest());
    ExpectAnswersOf(*server.catalog, StateNow(), random);
  }
  EXPECT_EQ(StateNow().size(), size_t{4 * kBatches * kBatch * 2 / 3});
}

TEST_P(CatalogFollowsTest, WithTheStoreAwaySearchesGoOnAndChangesAreRefused) {
  ASSERT_TRUE(a()->Insert(MakeReferences("c", 0, 90)).ok());
  a().store->away = true;
  std::mt19937 random(3);
  ExpectAnswersOf(*a().catalog, StateNow(), random);
  EXPECT_TRUE(IsStoreAway(a()->Insert(MakeReferences("c", 90, 91)).status()));
  EXPECT_TRUE(IsStoreAway(a()->Erase({MakeReference("c", 1).id}).status()));
  EXPECT_TRUE(IsStoreAway(a()->EraseCollection("c").status()));
  EXPECT_TRUE(IsStoreAway(a()->CatchUp()));
  ExpectAnswersOf(*a().catalog, StateNow(), random);
  ASSERT_TRUE(b()->Insert(MakeReferences("c", 90, 95)).ok());
  a().store->away = false;
  ASSERT_TRUE(a()->CatchUp().ok());
  ExpectAnswersOf(*a().catalog, StateNow(), random);
  // One who starts without it hears why.
  auto store = std::make_unique<SharedStore>(store_.get());
  store->away = true;
  StoreFeed feed(store.get());
  EXPECT_TRUE(IsStoreAway(ReferenceCatalog::Open(&feed, options_).status()));
}

}  // namespace
}  // namespace c3po
