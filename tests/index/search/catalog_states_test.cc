// Searches by hidden states, against a plain loop over what was added.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "index/search/reference_catalog.h"
#include "tests/index/store/random_reference.h"

namespace c3po {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr int kHidden = 12;

// Of a reference at a layer, the same for the same arguments, also in another process.
std::vector<float> StateOf(const ReferenceRecord& record, int layer) {
  std::seed_seq seed(record.id.begin(), record.id.end());
  std::vector<uint32_t> drawn(1);
  seed.generate(drawn.begin(), drawn.end());
  std::mt19937 random(drawn[0] + static_cast<uint32_t>(layer) + static_cast<uint32_t>(record.sample.answer.size()));
  return RandomUnitVector(random, kHidden);
}

double NaiveDistance(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
  return std::sqrt(sum);
}

class CatalogStatesTest : public ::testing::Test {
 protected:
  CatalogStatesTest() {
    options_.model_digest = kModelDigest;
    options_.embedder_digest = kEmbedderDigest;
    options_.embedding_dimension = 8;
    options_.moe_layers = 6;
    options_.experts = 4;
    options_.hidden_size = kHidden;
    Restart();
  }
  void Restart() {
    catalog_.reset();
    store_.reset();
    store_ = *OpenReferenceStore(folder_.File("references.db"));
    catalog_ = *ReferenceCatalog::Open(store_.get(), options_);
  }
  static std::vector<ReferenceRecord> Made(const std::string& collection, int begin, int end) {
    std::vector<ReferenceRecord> records = MakeReferences(collection, begin, end);
    for (size_t i = 0; i < records.size(); ++i) {
      std::mt19937 random(static_cast<uint32_t>(begin) + static_cast<uint32_t>(i));
      records[i].pathway = RandomPathway(random, 6, 4);
      records[i].sample.choices = {" yes", " no", " maybe"};
      records[i].sample.answer = records[i].sample.choices[(static_cast<size_t>(begin) + i) % 7 % 3];
      records[i].id = ReferenceId(collection, records[i].sample);
    }
    return records;
  }
  void Insert(const std::vector<ReferenceRecord>& records) {
    const auto inserted = catalog_->Insert(records);
    ASSERT_TRUE(inserted.ok()) << inserted.status();
    all_.insert(all_.end(), records.begin(), records.end());
  }
  void Erase(size_t every) {
    std::vector<std::string> gone;
    std::vector<ReferenceRecord> left;
    for (size_t i = 0; i < all_.size(); ++i) {
      if (i % every == 1) {
        gone.push_back(all_[i].id);
      } else {
        left.push_back(all_[i]);
      }
    }
    ASSERT_TRUE(catalog_->Erase(gone).ok());
    all_ = left;
  }
  // As the pipeline does, in batches; returns how many were made.
  int Complete(int layer) {
    int made = 0;
    while (!catalog_->HasAllStates("c", layer)) {
      const auto missing = catalog_->WithoutState("c", layer, 7);
      EXPECT_TRUE(missing.ok()) << missing.status();
      if (!missing.ok()) return -1;
      if (missing->empty()) {
        EXPECT_TRUE(catalog_->RefreshStateDistances("c", layer).ok());
        continue;
      }
      std::vector<ReferenceCatalog::ReferenceState> states;
      for (const auto& record : *missing) states.push_back({record, StateOf(*record, layer)});
      const absl::Status added = catalog_->AddStates("c", layer, states);
      EXPECT_TRUE(added.ok()) << added;
      if (!added.ok()) return -1;
      made += static_cast<int>(states.size());
    }
    return made;
  }
  // Neighbors, those of each answer, those within a distance, and the quantile of the references' own distances.
  void Check(int layer) {
    std::mt19937 random(9);
    for (const bool successful_only : {false, true}) {
      std::vector<const ReferenceRecord*> members;
      for (const ReferenceRecord& record : all_) {
        if (record.successful || !successful_only) members.push_back(&record);
      }
      for (int round = 0; round < 6; ++round) {
        const std::vector<float> query = RandomUnitVector(random, kHidden);
        std::vector<std::pair<double, std::string>> naive;
        std::map<std::string, std::vector<std::pair<double, std::string>>> by_answer;
        for (const ReferenceRecord* member : members) {
          naive.emplace_back(NaiveDistance(query, StateOf(*member, layer)), member->id);
          by_answer[member->sample.answer].push_back(naive.back());
        }
        std::sort(naive.begin(), naive.end());
        const auto found = catalog_->Search("c", query, 5, successful_only, layer);
        ASSERT_TRUE(found.ok()) << found.status();
        ASSERT_THAT(*found, SizeIs(std::min<size_t>(5, naive.size())));
        for (size_t i = 0; i < found->size(); ++i) {
          EXPECT_EQ((*found)[i].reference_id, naive[i].second);
          EXPECT_NEAR((*found)[i].distance, naive[i].first, 1e-6);
        }
        const auto within =
            catalog_->SearchWithin("c", query, static_cast<float>(naive[1].first + 1e-5), 5, successful_only, layer);
        EXPECT_THAT(*within, SizeIs(2));
        const auto answers = catalog_->SearchByAnswer("c", query, 3, successful_only, {naive[0].second}, layer);
        ASSERT_TRUE(answers.ok()) << answers.status();
        for (const AnswerNeighbors& answer : *answers) {
          auto& expected = by_answer[answer.answer];
          std::sort(expected.begin(), expected.end());
          expected.erase(std::remove(expected.begin(), expected.end(), naive[0]), expected.end());
          expected.resize(std::min<size_t>(3, expected.size()));
          ASSERT_THAT(answer.nearest, SizeIs(expected.size()));
          for (size_t i = 0; i < expected.size(); ++i) {
            EXPECT_EQ(answer.nearest[i].reference_id, expected[i].second);
          }
        }
      }
      std::vector<double> own;
      for (const ReferenceRecord* member : members) {
        double nearest = 10;
        for (const ReferenceRecord* other : members) {
          if (other == member) continue;
          nearest = std::min(nearest, NaiveDistance(StateOf(*member, layer), StateOf(*other, layer)));
        }
        own.push_back(nearest);
      }
      std::sort(own.begin(), own.end());
      const auto quantile = catalog_->OwnDistanceQuantile("c", successful_only, 0.5, layer);
      ASSERT_TRUE(quantile.ok() && *quantile) << quantile.status();
      EXPECT_NEAR(**quantile, own[(own.size() + 1) / 2 - 1], 1e-6);
    }
  }

  ScratchFolder folder_;
  CatalogOptions options_;
  std::unique_ptr<ReferenceStore> store_;
  std::unique_ptr<ReferenceCatalog> catalog_;
  std::vector<ReferenceRecord> all_;
};

TEST_F(CatalogStatesTest, FindsWhatAPlainLoopFindsThroughImportsDeletesAndRestarts) {
  Insert(Made("c", 0, 40));
  ASSERT_TRUE(catalog_->Insert(Made("other", 0, 10)).ok());
  EXPECT_FALSE(catalog_->HasAllStates("c", 3));
  EXPECT_EQ(catalog_->Search("c", std::vector<float>(kHidden, 1), 3, false, 3).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Complete(3), 40);
  Check(3);
  EXPECT_EQ(Complete(6), 40);
  Insert(Made("c", 40, 55));
  EXPECT_FALSE(catalog_->HasAllStates("c", 3));
  EXPECT_EQ(Complete(3), 15);
  Check(3);
  Erase(4);
  EXPECT_EQ(Complete(3), 0);  // The distances alone.
  Check(3);
  EXPECT_EQ(Complete(6), 11);  // Of the 15, four have gone.
  Check(6);
  Restart();
  EXPECT_FALSE(catalog_->HasAllStates("c", 3));
  EXPECT_EQ(Complete(3), 0);
  EXPECT_EQ(Complete(6), 0);
  Check(3);
  Check(6);
}

// A reference whose content changed has another state; the old one went with its artifacts.
TEST_F(CatalogStatesTest, AReplacedReferenceIsComputedAnew) {
  Insert(Made("c", 0, 10));
  ReferenceRecord own = Made("c", 50, 51)[0];
  own.sample.id = "mine";
  own.sample.answer = " no";
  own.id = ReferenceId("c", own.sample);
  ASSERT_TRUE(catalog_->Insert({own}).ok());
  EXPECT_EQ(Complete(2), 11);
  const auto stale = *catalog_->GetRecord(own.id);
  own.sample.answer = " maybe";  // StateOf differs.
  Insert({own});
  // What was computed of the reference as it was comes too late.
  ASSERT_TRUE(catalog_->AddStates("c", 2, {{stale, StateOf(*stale, 2)}}).ok());
  EXPECT_EQ(Complete(2), 1);
  Check(2);
  Restart();
  EXPECT_EQ(Complete(2), 0);
  Check(2);
}

TEST_F(CatalogStatesTest, StatesOfAnotherModelAreMadeAnew) {
  Insert(Made("c", 0, 6));
  EXPECT_EQ(Complete(1), 6);
  options_.model_digest = "model-b";
  Restart();
  for (ReferenceRecord& record : all_) record.model_digest = "model-b";
  const std::vector<ReferenceRecord> again = all_;
  all_.clear();
  Insert(again);
  EXPECT_EQ(Complete(1), 6);
  Check(1);
}

TEST_F(CatalogStatesTest, KeepsSoManyLayersAndForgetsTheOldest) {
  Insert(Made("c", 0, 5));
  for (int layer = 0; layer < 5; ++layer) EXPECT_EQ(Complete(layer), 5);
  static_assert(ReferenceCatalog::kStateLayersMax == 4);
  EXPECT_FALSE(catalog_->HasAllStates("c", 0));
  EXPECT_THAT(catalog_->Search("c", std::vector<float>(kHidden, 1), 3, false, 0).status().message(),
              HasSubstr("ask again"));
  EXPECT_THAT(*store_->Artifacts("c", "reference/", "/state/0"), IsEmpty());
  EXPECT_THAT(*store_->Artifacts("c", "reference/", "/state/1"), SizeIs(5));
  Restart();
  EXPECT_EQ(Complete(0), 5);  // 1 gives way, whether it was loaded or not.
  EXPECT_THAT(*store_->Artifacts("c", "reference/", "/state/1"), IsEmpty());
  for (int layer = 2; layer < 5; ++layer) EXPECT_EQ(Complete(layer), 0);
  Check(4);
}

TEST_F(CatalogStatesTest, AReferenceWithoutAStateIsNoNeighborAndIsNotAskedForAgain) {
  Insert(Made("c", 0, 5));
  const auto missing = *catalog_->WithoutState("c", 2, 10);
  ASSERT_EQ(missing.size(), 5u);
  ASSERT_TRUE(catalog_->AddStates("c", 2, {{missing[0], {}}}).ok());
  EXPECT_EQ(Complete(2), 4);
  const auto found = *catalog_->Search("c", std::vector<float>(kHidden, 1), 10, false, 2);
  EXPECT_THAT(found, SizeIs(4));
  for (const Neighbor& neighbor : found) EXPECT_NE(neighbor.reference_id, missing[0]->id);
}

TEST_F(CatalogStatesTest, SaysWhatIsWrong) {
  const std::vector<float> state(kHidden, 1);
  EXPECT_TRUE(catalog_->HasAllStates("c", 2));  // There is nothing to make.
  EXPECT_EQ(catalog_->WithoutState("c", 2, 1).status().code(), absl::StatusCode::kNotFound);
  Insert(Made("c", 0, 3));
  EXPECT_THAT(catalog_->WithoutState("c", 7, 1).status().message(), HasSubstr("layer: 7"));
  EXPECT_EQ(Complete(2), 3);
  EXPECT_THAT(catalog_->Search("c", {state.data(), 5}, 1, false, 2).status().message(), HasSubstr("5 dimensions"));
  const auto record = *catalog_->GetRecord(all_[0].id);
  EXPECT_THAT(catalog_->AddStates("c", 2, {{record, {1, 2}}}).message(), HasSubstr("2 dimensions"));
  EXPECT_TRUE(catalog_->EraseCollection("c").ok());
  EXPECT_EQ(catalog_->Search("c", state, 1, false, 2).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(*store_->Artifacts("c", ""), IsEmpty());
}

}  // namespace
}  // namespace c3po
