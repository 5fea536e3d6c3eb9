// Hidden states that one server made, at the others.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "tests/index/search/catalog_servers.h"

namespace c3po {
namespace {

using ::testing::SizeIs;

using CatalogFollowsStatesTest = CatalogServersTest;
C3PO_TEST_EVERY_STORE(CatalogFollowsStatesTest);

std::vector<float> StateOf(const ReferenceRecord& record) {
  std::mt19937 random(static_cast<uint32_t>(record.sample.prompt.size() * 31 + record.sample.prompt.back()));
  return RandomUnitVector(random, kHidden);
}

void Complete(ReferenceCatalog& catalog, int& made) {
  while (!catalog.HasAllStates("c", 1)) {
    const auto missing = catalog.WithoutState("c", 1, 4);
    ASSERT_TRUE(missing.ok()) << missing.status();
    if (missing->empty()) {
      ASSERT_TRUE(catalog.RefreshStateDistances("c", 1).ok());
      continue;
    }
    std::vector<ReferenceCatalog::ReferenceState> states;
    for (const auto& record : *missing) states.push_back({record, StateOf(*record)});
    ASSERT_TRUE(catalog.AddStates("c", 1, states).ok());
    made += static_cast<int>(states.size());
  }
}

TEST_P(CatalogFollowsStatesTest, HiddenStatesThatOneServerMadeServeTheOthers) {
  ASSERT_TRUE(a()->Insert(MakeReferences("c", 0, 9)).ok());
  ASSERT_TRUE(b()->CatchUp().ok());
  ASSERT_TRUE(b()->WithoutState("c", 1, 1).ok());  // It holds the layer, of which nothing is there.
  int by_a = 0, by_b = 0;
  Complete(*a().catalog, by_a);
  EXPECT_EQ(by_a, 9);
  EXPECT_FALSE(b()->HasAllStates("c", 1));
  ASSERT_TRUE(b()->CatchUp().ok());
  Complete(*b().catalog, by_b);
  EXPECT_EQ(by_b, 0);
  const auto query = StateOf(MakeReference("c", 4));
  EXPECT_EQ((*b()->Search("c", query, 1, false, 1))[0].distance, 0);
  // One more reference, of which b makes the state.
  ASSERT_TRUE(a()->Insert({MakeReference("c", 20)}).ok());
  ASSERT_TRUE(b()->CatchUp().ok());
  EXPECT_FALSE(b()->HasAllStates("c", 1));
  Complete(*b().catalog, by_b);
  EXPECT_EQ(by_b, 1);
  ASSERT_TRUE(a()->CatchUp().ok());
  Complete(*a().catalog, by_a);
  EXPECT_EQ(by_a, 9);
  // A layer that gives way at one gives way at all.
  for (const int layer : {0, 2, 3}) ASSERT_TRUE(a()->WithoutState("c", layer, 1).ok());
  ASSERT_TRUE(a()->CatchUp().ok());
  ASSERT_TRUE(b()->CatchUp().ok());
  EXPECT_TRUE(b()->HasAllStates("c", 1)) << "four layers have room";
}

// The state of a text that another server has replaced meanwhile is nobody's.
TEST_P(CatalogFollowsStatesTest, AStateOfAnEarlierTextIsNotTakenForTheNewOnes) {
  ReferenceRecord record = MakeReference("c", 1);
  record.sample.id = "mine";
  record.id = ReferenceId("c", record.sample);
  ASSERT_TRUE(a()->Insert({record}).ok());
  const auto missing = a()->WithoutState("c", 1, 4);
  ASSERT_TRUE(missing.ok()) << missing.status();
  ASSERT_THAT(*missing, SizeIs(1));
  ReferenceRecord replaced = record;
  replaced.sample.prompt = "Another question?";
  ASSERT_TRUE(store_->Add({replaced}).ok());  // By another server; a has not caught up.
  ASSERT_TRUE(a()->AddStates("c", 1, {{(*missing)[0], StateOf(record)}}).ok());
  ASSERT_THAT(*store_->Artifacts("c", "reference/"), SizeIs(1));
  for (Server& server : servers_) {
    ASSERT_TRUE(server->CatchUp().ok());
    EXPECT_FALSE(server->HasAllStates("c", 1));
    const auto still_missing = server->WithoutState("c", 1, 4);
    ASSERT_TRUE(still_missing.ok()) << still_missing.status();
    ASSERT_THAT(*still_missing, SizeIs(1));
    EXPECT_EQ((*still_missing)[0]->sample.prompt, "Another question?");
  }
  int made = 0;
  Complete(*b().catalog, made);
  EXPECT_EQ(made, 1);
}

}  // namespace
}  // namespace c3po
