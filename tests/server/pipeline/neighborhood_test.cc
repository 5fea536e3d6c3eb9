// Neighbors as requests find them: balanced over answers, and dealt into parts.

#include "server/pipeline/neighborhood.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/pipeline/neighborhood_parts.h"
#include "server/pipeline/retrieval.h"
#include "tests/index/store/random_reference.h"

namespace c3po {
namespace {

using ::testing::HasSubstr;
using Lists = std::vector<std::vector<WeightedReference>>;

WeightedReference At(double distance, const std::string& answer, int number) {
  ReferenceRecord record = MakeReference("c", number);
  record.sample.answer = answer;
  return {std::make_shared<const ReferenceRecord>(std::move(record)), distance, 0};
}

Lists RandomLists(std::mt19937& rng, int answers) {
  Lists lists(static_cast<size_t>(answers));
  int number = 0;
  for (int a = 0; a < answers; ++a) {
    for (size_t i = rng() % 9; i > 0; --i) {
      lists[static_cast<size_t>(a)].push_back(
          At(static_cast<double>(rng() % 1000) / 500, absl::StrCat(" ", a), ++number));
    }
    std::sort(lists[static_cast<size_t>(a)].begin(), lists[static_cast<size_t>(a)].end(),
              [](const auto& x, const auto& y) { return x.distance < y.distance; });
  }
  return lists;
}

// By ranks: the nearest of each answer, then the second of each, ...; within a rank by distance.
TEST(TakeInTurn, TakesWhatAPlainSortByRankAndDistanceTakes) {
  for (uint32_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 rng(seed);
    Lists lists = RandomLists(rng, 1 + static_cast<int>(rng() % 6));
    std::vector<std::tuple<size_t, double, std::string>> ranked;
    for (const auto& list : lists) {
      for (size_t rank = 0; rank < list.size(); ++rank) {
        ranked.emplace_back(rank, list[rank].distance, list[rank].record->id);
      }
    }
    std::sort(ranked.begin(), ranked.end());
    const size_t all = ranked.size(), count = rng() % 20;
    ranked.resize(std::min(all, count));
    std::set<std::string> expected;
    for (const auto& [rank, distance, id] : ranked) expected.insert(id);
    const std::vector<WeightedReference> taken = TakeInTurn(count, lists);
    std::set<std::string> ids;
    for (const WeightedReference& one : taken) ids.insert(one.record->id);
    EXPECT_EQ(ids, expected);
    EXPECT_EQ(taken.size(), expected.size());
    EXPECT_TRUE(std::is_sorted(taken.begin(), taken.end(),
                               [](const auto& x, const auto& y) { return x.distance < y.distance; }));
    size_t left = 0;
    for (const auto& list : lists) left += list.size();
    EXPECT_EQ(left + taken.size(), all);
  }
}

class BalancedNeighborsTest : public ::testing::Test {
 protected:
  BalancedNeighborsTest() : store_(*OpenReferenceStore(folder_.File("store.db"))) {
    CatalogOptions options;
    options.model_digest = kModelDigest;
    options.embedder_digest = kEmbedderDigest;
    options.embedding_dimension = 8;
    options.moe_layers = 3;
    options.experts = 4;
    catalog_ = *ReferenceCatalog::Open(store_.get(), options);
    settings_.collection = "c";
    settings_.references = ReferenceSelection::kAll;
    settings_.balance = true;
  }
  // `shares` of a hundred references have each answer.
  void Insert(const std::vector<int>& shares, int count) {
    std::vector<std::string> choices, answers;
    for (size_t a = 0; a < shares.size(); ++a) {
      choices.push_back(absl::StrCat(" ", a));
      answers.insert(answers.end(), static_cast<size_t>(shares[a]), choices.back());
    }
    std::vector<ReferenceRecord> records;
    for (int i = 0; i < count; ++i) {
      records.push_back(MakeReference("c", i));
      records.back().sample.choices = choices;
      records.back().sample.answer = answers[static_cast<size_t>(i) * 37 % answers.size()];
      records.back().id = ReferenceId("c", records.back().sample);
    }
    ASSERT_TRUE(catalog_->Insert(records).ok());
  }
  static std::map<std::string, int> Counts(const std::vector<WeightedReference>& list) {
    std::map<std::string, int> counts;
    for (const WeightedReference& one : list) ++counts[one.record->sample.answer];
    return counts;
  }
  Neighborhood Find(const std::vector<float>& query) {
    auto found = FindNeighborhood(*catalog_, settings_, query);
    EXPECT_TRUE(found.ok()) << found.status();
    return *std::move(found);
  }

  ScratchFolder folder_;
  const std::unique_ptr<ReferenceStore> store_;
  std::unique_ptr<ReferenceCatalog> catalog_;
  OptimizationSettings settings_;
};

TEST_F(BalancedNeighborsTest, EachAnswerHasItsShareOfBothListsHoweverRareItIs) {
  Insert({70, 20, 10}, 300);
  settings_.k = 13;
  settings_.validation_neighbors = 8;
  OptimizationSettings plain = settings_;
  plain.balance = false;
  std::mt19937 rng(2);
  for (int i = 0; i < 20; ++i) {
    const std::vector<float> query = RandomUnitVector(rng, 8);
    const Neighborhood found = Find(query);
    ASSERT_EQ(found.fitted.size(), 13u);
    ASSERT_EQ(found.held_out.size(), 8u);
    for (const auto& [answer, count] : Counts(found.fitted)) EXPECT_TRUE(count == 4 || count == 5) << answer;
    for (const auto& [answer, count] : Counts(found.held_out)) EXPECT_TRUE(count == 2 || count == 3) << answer;
    EXPECT_EQ(Counts(found.fitted).size(), 3u);
    EXPECT_EQ(found.warning, "");
    // The nearest one is as near as it is without balance: the gate compares the same distance.
    EXPECT_EQ(found.fitted.front().record->id, FindNeighborhood(*catalog_, plain, query)->fitted.front().record->id);
    std::set<std::string> all;
    for (const auto* list : {&found.fitted, &found.held_out}) {
      double sum = 0;
      for (const WeightedReference& one : *list) {
        all.insert(one.record->id);
        sum += one.kernel_weight;
      }
      EXPECT_NEAR(sum, 1, 1e-9);
    }
    EXPECT_EQ(all.size(), 21u);
  }
}

TEST_F(BalancedNeighborsTest, OfMoreAnswersThanNeighborsTheNearestHaveOneEach) {
  Insert(std::vector<int>(25, 4), 300);
  settings_.k = 12;
  settings_.validation_neighbors = 12;
  std::mt19937 rng(3);
  const Neighborhood found = Find(RandomUnitVector(rng, 8));
  EXPECT_EQ(Counts(found.fitted).size(), 12u);
  EXPECT_EQ(Counts(found.held_out).size(), 12u);
}

// A rare answer gives what it has, and the others the rest.
TEST_F(BalancedNeighborsTest, FewReferencesAreSharedAndTold) {
  Insert({90, 10}, 20);
  settings_.k = 12;
  settings_.validation_neighbors = 12;
  std::mt19937 rng(4);
  const Neighborhood found = Find(RandomUnitVector(rng, 8));
  EXPECT_EQ(found.fitted.size(), 10u);
  EXPECT_EQ(found.held_out.size(), 10u);
  EXPECT_THAT(found.warning, HasSubstr("20 references have the choices of the nearest one, of 24"));
  EXPECT_EQ(Counts(found.fitted)[" 1"], 2);
  settings_.exclude_reference_ids = {found.fitted.front().record->id};
  EXPECT_NE(Find(RandomUnitVector(rng, 8)).fitted.front().record->id, settings_.exclude_reference_ids[0]);
}

// Each of the ways in which neighbors are looked for, and the word that nothing matches.
TEST_F(BalancedNeighborsTest, OnlyReferencesThatMatchTheFilterAreNeighbors) {
  Insert({50, 50}, 60);  // Their metadata have a line: the number.
  MetadataCondition condition;
  condition.key = "line";
  condition.range.emplace().gte = 50;
  settings_.filter.must = {condition};
  settings_.method = Method::kNeighborhoodGradientDescent;
  settings_.k = 4;
  settings_.validation_neighbors = 3;
  std::mt19937 rng(5);
  const std::vector<float> query = RandomUnitVector(rng, 8);
  const auto expect = [&](size_t count) {
    const auto found = Retrieve(*catalog_, settings_, query);
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_EQ(found->neighborhood.fitted.size() + found->neighborhood.held_out.size(), count);
    for (const auto* list : {&found->neighborhood.fitted, &found->neighborhood.held_out}) {
      for (const WeightedReference& one : *list) EXPECT_GE(std::stoi(one.record->sample.metadata.at("line")), 50);
    }
  };
  expect(7);
  settings_.balance = false;
  expect(7);
  settings_.exclude_reference_ids = {Find(query).fitted.front().record->id};
  expect(7);
  EXPECT_NE(Find(query).fitted.front().record->id, settings_.exclude_reference_ids[0]);
  settings_.exclude_reference_ids.clear();
  settings_.validation_neighbors = 0;
  settings_.epsilon = 2;
  expect(10);
  settings_.epsilon.reset();
  settings_.filter.must[0].range->gte = 60;
  for (const bool balance : {false, true}) {
    settings_.balance = balance;
    const auto none = Retrieve(*catalog_, settings_, query);
    EXPECT_TRUE(none->neighborhood.fitted.empty());
    EXPECT_THAT(none->warning, HasSubstr("filter: no reference of collection \"c\" that may be a neighbor matches"));
  }
  // A prior was fitted to all of them.
  settings_.method = Method::kCollectionPrior;
  EXPECT_EQ(Retrieve(*catalog_, settings_, query)->neighborhood.fitted.size(), 1u);
}

TEST(DealIntoParts, EachPartHasNearAndFarOnesAndOfEachAnswerAsMany) {
  for (uint32_t seed = 1; seed <= 50; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 rng(seed);
    const size_t count = 1 + rng() % 24;
    const int parts = 1 + static_cast<int>(rng() % 6);
    std::vector<WeightedReference> neighbors;
    for (size_t i = 0; i < count; ++i) {
      neighbors.push_back(At(static_cast<double>(i), absl::StrCat(" ", rng() % 3), static_cast<int>(i)));
    }
    std::vector<const WeightedReference*> pointers;
    for (const WeightedReference& one : neighbors) pointers.push_back(&one);
    for (const bool balance : {false, true}) {
      const std::vector<int> part_of = DealIntoParts(pointers, parts, balance);
      ASSERT_EQ(part_of.size(), count);
      std::map<int, int> sizes;
      std::map<std::string, std::map<int, int>> by_answer;
      for (int part = 0; part < parts; ++part) sizes[part] = 0;
      for (size_t i = 0; i < count; ++i) {
        ++sizes[part_of[i]];
        for (int part = 0; part < parts; ++part) by_answer[neighbors[i].record->sample.answer][part] += 0;
        ++by_answer[neighbors[i].record->sample.answer][part_of[i]];
        if (!balance) {
          EXPECT_EQ(part_of[i], static_cast<int>(i) % parts);
        }
      }
      EXPECT_EQ(sizes.size(), static_cast<size_t>(parts));
      const auto spread = [](const std::map<int, int>& of) {
        int least = 1000, most = 0;
        for (const auto& [part, n] : of) {
          least = std::min(least, n);
          most = std::max(most, n);
        }
        return most - least;
      };
      EXPECT_LE(spread(sizes), 1);
      for (const auto& [answer, of] : by_answer) {
        if (balance) {
          EXPECT_LE(spread(of), 1) << answer;
        }
      }
    }
  }
}

TEST(SpecsOfParts, HaveTheirCasesAndWeightsAndLeaveOutWhatIsEmpty) {
  ObjectiveSpec all;
  all.critical_layers = {1, 2};
  for (int i = 0; i < 5; ++i) all.cases.push_back({absl::StrCat(i), {1}, {{2}}, 0, 0.5 + i});
  const std::vector<int> part_of = {0, 2, 0, 2, 0, 1, 1};  // Two more were left out for want of memory.
  const auto parts = SpecsOfParts(all, part_of);
  ASSERT_EQ(parts.size(), 2u);
  EXPECT_EQ(parts[0].cases.size(), 3u);
  EXPECT_EQ(parts[1].cases[1].reference_id, "3");
  EXPECT_EQ(parts[1].critical_layers, all.critical_layers);
  EXPECT_EQ(WeightOf(parts[1]), 1.5 + 3.5);
  EXPECT_EQ(SpecsOfParts(all, {}).size(), 1u);
}

}  // namespace
}  // namespace c3po
