// Every search of a catalog under filters over metadata, against a plain loop over what was inserted.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "index/search/reference_catalog.h"
#include "tests/index/search/random_filter.h"
#include "tests/index/store/random_reference.h"

namespace c3po {
namespace {

using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr int kDimension = 8, kLayers = 3, kExperts = 4;

MetadataFilter HasValue(const std::string& key, const std::string& value) {
  MetadataCondition condition;
  condition.key = key;
  condition.equals = value;
  return {{condition}, {}, {}};
}

double NaiveDistance(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
  return std::sqrt(sum);
}

// What a model might compute: nobody compares it with anything but itself.
std::vector<float> StateOf(const ReferenceRecord& record) {
  std::mt19937 random(static_cast<uint32_t>(std::hash<std::string>()(record.id)));
  return RandomUnitVector(random, kDimension);
}

using ByDistance = std::vector<std::pair<double, const ReferenceRecord*>>;

std::vector<std::string> Ids(const ByDistance& nearest, size_t count) {
  std::vector<std::string> ids;
  for (size_t i = 0; i < std::min(count, nearest.size()); ++i) ids.push_back(nearest[i].second->id);
  return ids;
}

std::vector<std::string> Ids(const std::vector<Neighbor>& found) {
  std::vector<std::string> ids;
  for (const Neighbor& neighbor : found) ids.push_back(neighbor.reference_id);
  return ids;
}

class CatalogFiltersTest : public ::testing::Test {
 protected:
  void Open(int exact_references_max) {
    options_.model_digest = kModelDigest;
    options_.embedder_digest = kEmbedderDigest;
    options_.embedding_dimension = options_.hidden_size = kDimension;
    options_.moe_layers = kLayers;
    options_.experts = kExperts;
    options_.exact_references_max = exact_references_max;
    Restart();
  }
  void Restart() {
    catalog_.reset();
    store_.reset();
    store_ = *OpenReferenceStore(folder_.File("references.db"));
    catalog_ = *ReferenceCatalog::Open(store_.get(), options_);
  }
  static std::vector<ReferenceRecord> Made(int begin, int end) {
    std::vector<ReferenceRecord> records = MakeReferences("c", begin, end, kDimension);
    for (size_t i = 0; i < records.size(); ++i) {
      std::mt19937 random(static_cast<uint32_t>(begin) + static_cast<uint32_t>(i) + 1000);
      records[i].sample.metadata = RandomMetadata(random);
      records[i].sample.choices = {" yes", " no", " maybe"};
      records[i].sample.answer = records[i].sample.choices[random() % 3];
      records[i].id = ReferenceId("c", records[i].sample);
    }
    return records;
  }
  void Insert(const std::vector<ReferenceRecord>& records) {
    ASSERT_TRUE(catalog_->Insert(records).ok());
    for (const ReferenceRecord& record : records) all_[record.id] = record;
  }
  void Erase(const std::vector<std::string>& ids) {
    ASSERT_TRUE(catalog_->Erase(ids).ok());
    for (const std::string& id : ids) all_.erase(id);
  }
  // Of all that match.
  template <typename Distance>
  ByDistance Naive(const MetadataFilter& filter, bool successful_only, Distance distance) const {
    ByDistance nearest;
    for (const auto& [id, record] : all_) {
      if (successful_only && !record.successful) continue;
      if (Matches(filter, record.sample.metadata)) nearest.emplace_back(distance(record), &record);
    }
    std::sort(nearest.begin(), nearest.end());
    return nearest;
  }

  void CheckNeighbors(const MetadataFilter& filter, bool successful_only, std::mt19937& random) {
    const std::vector<float> query = RandomUnitVector(random, kDimension);
    const ByDistance naive = Naive(filter, successful_only,
                                   [&](const ReferenceRecord& each) { return NaiveDistance(query, each.embedding); });
    for (const int k : {1, 5, 1000}) {
      const auto found = catalog_->Search("c", query, k, successful_only, std::nullopt, &filter);
      ASSERT_TRUE(found.ok()) << found.status();
      EXPECT_EQ(Ids(*found), Ids(naive, static_cast<size_t>(k)));
    }
    if (naive.size() >= 2) {
      const auto epsilon = static_cast<float>((naive[0].first + naive[1].first) / 2);
      const auto within = catalog_->SearchWithin("c", query, epsilon, 5, successful_only, std::nullopt, &filter);
      EXPECT_EQ(Ids(*within), Ids(naive, 1));
    }
    CheckAnswers(filter, successful_only, query, naive);
  }

  // The two nearest are left out; so the third is the nearest, and all have the same choices.
  void CheckAnswers(const MetadataFilter& filter, bool successful_only, const std::vector<float>& query,
                    ByDistance naive) {
    const std::vector<std::string> excluded = Ids(naive, 2);
    naive.erase(naive.begin(), naive.begin() + static_cast<std::ptrdiff_t>(excluded.size()));
    std::map<std::string, std::vector<std::string>> expected, found_ids;
    for (const auto& [distance, record] : naive) {
      std::vector<std::string>& ids = expected[record->sample.answer];
      if (ids.size() < 3) ids.push_back(record->id);
    }
    const auto found = catalog_->SearchByAnswer("c", query, 3, successful_only, excluded, std::nullopt, &filter);
    ASSERT_TRUE(found.ok()) << found.status();
    for (const AnswerNeighbors& answer : *found) found_ids[answer.answer] = Ids(answer.nearest);
    EXPECT_EQ(found_ids, expected);
  }

  void CheckPathways(const MetadataFilter& filter, bool successful_only, std::mt19937& random) {
    const Pathway rows = RandomPathway(random, 2, kExperts);
    const std::vector<int> layers = {2, 0};
    const ByDistance naive = Naive(filter, successful_only, [&](const ReferenceRecord& each) {
      std::vector<float> chosen;
      for (const int layer : layers) {
        chosen.insert(chosen.end(), each.pathway.Row(layer).begin(), each.pathway.Row(layer).end());
      }
      return NaiveDistance(rows.weights, chosen);
    });
    const auto found = catalog_->SearchPathways("c", rows.weights, layers, 6, successful_only, &filter);
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_EQ(Ids(*found), Ids(naive, 6));
  }

  void CheckStates(const MetadataFilter& filter, bool successful_only, std::mt19937& random) {
    const std::vector<float> query = RandomUnitVector(random, kDimension);
    const ByDistance naive = Naive(filter, successful_only,
                                   [&](const ReferenceRecord& each) { return NaiveDistance(query, StateOf(each)); });
    const auto found = catalog_->Search("c", query, 6, successful_only, 1, &filter);
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_EQ(Ids(*found), Ids(naive, 6));
  }

  void MakeStates() {
    const auto missing = catalog_->WithoutState("c", 1, 100000);
    ASSERT_TRUE(missing.ok()) << missing.status();
    std::vector<ReferenceCatalog::ReferenceState> states;
    for (const auto& record : *missing) states.push_back({record, StateOf(*record)});
    ASSERT_TRUE(catalog_->AddStates("c", 1, states).ok());
  }

  void Check(uint32_t seed, int filters) {
    MakeStates();
    std::mt19937 random(seed);
    for (int i = 0; i < filters; ++i) {
      const MetadataFilter filter = RandomFilter(random);
      SCOPED_TRACE(FilterText(filter));
      for (const bool successful_only : {false, true}) {
        CheckNeighbors(filter, successful_only, random);
        CheckPathways(filter, successful_only, random);
        CheckStates(filter, successful_only, random);
      }
      if (HasFailure()) return;
    }
  }

  ScratchFolder folder_;
  CatalogOptions options_;
  std::unique_ptr<ReferenceStore> store_;
  std::unique_ptr<ReferenceCatalog> catalog_;
  std::map<std::string, ReferenceRecord> all_;  // by id
};

TEST_F(CatalogFiltersTest, EverySearchFindsWhatAPlainLoopFindsThroughChangesAndRestart) {
  Open(/*exact_references_max=*/1000);
  Insert(Made(0, 120));
  Check(1, 40);
  Insert(Made(120, 260));
  Check(2, 40);
  std::vector<std::string> gone;
  for (const auto& [id, record] : all_) {
    if (gone.size() < 90) gone.push_back(id);
  }
  Erase(gone);
  Check(3, 30);
  Restart();
  Check(4, 30);
}

// Under a graph, few matching references are compared one by one: the same, bit for bit.
TEST_F(CatalogFiltersTest, FewMatchingReferencesOfAGraphAreFoundExactly) {
  Open(/*exact_references_max=*/50);
  Insert(Made(0, 300));
  Check(5, 40);
}

TEST_F(CatalogFiltersTest, WhatNothingMatchesIsNoErrorAndWhatIsWrongStillIs) {
  Open(/*exact_references_max=*/1000);
  const std::vector<float> query(kDimension, 0.5f);
  const MetadataFilter nothing = HasValue("language", "xx"), all;
  EXPECT_TRUE(absl::IsNotFound(catalog_->Search("c", query, 3, false, std::nullopt, &nothing).status()));
  Insert(Made(0, 20));
  EXPECT_THAT(*catalog_->Search("c", query, 3, false, std::nullopt, &nothing), IsEmpty());
  EXPECT_THAT(*catalog_->SearchWithin("c", query, 2, 3, false, std::nullopt, &nothing), IsEmpty());
  EXPECT_THAT(*catalog_->SearchByAnswer("c", query, 3, false, {}, std::nullopt, &nothing), IsEmpty());
  EXPECT_THAT(*catalog_->SearchPathways("c", query, {0, 1}, 3, false, &nothing), IsEmpty());
  EXPECT_THAT(*catalog_->Search("c", query, 30, false, std::nullopt, &all), SizeIs(20));
  EXPECT_TRUE(absl::IsInvalidArgument(catalog_->Search("c", query, 0, false, std::nullopt, &nothing).status()));
}

// A sample with an id of its own comes again with other metadata: the filter sees the new ones alone.
TEST_F(CatalogFiltersTest, MetadataFollowTheirSample) {
  Open(/*exact_references_max=*/1000);
  ReferenceRecord record = MakeReference("c", 1, kDimension);
  record.sample.id = "mine";
  record.id = ReferenceId("c", record.sample);
  record.sample.metadata = {{"version", "1"}};
  Insert({record});
  const MetadataFilter first = HasValue("version", "1"), second = HasValue("version", "2");
  const auto count = [&](const MetadataFilter& filter) {
    return catalog_->Search("c", record.embedding, 3, false, std::nullopt, &filter)->size();
  };
  EXPECT_EQ(count(first), 1u);
  record.sample.metadata = {{"version", "2"}};
  Insert({record});
  EXPECT_EQ(count(first), 0u);
  EXPECT_EQ(count(second), 1u);
  const int64_t bytes = catalog_->MemoryBytes();
  record.sample.metadata = {{"version", "2"}, {"note", std::string(1000, 'x')}};
  Insert({record});
  EXPECT_GT(catalog_->MemoryBytes(), bytes + 2000);  // In the record and among the values.
}

// Where the graph is asked. The share that it finds of what an exact search finds is as without a filter, whatever the
// filter's share of the references, and where what matches lies far from the query.
TEST_F(CatalogFiltersTest, GraphsRecallUnderFilters) {
  constexpr int kCount = 3000, kQueries = 40, k = 10;
  Open(/*exact_references_max=*/100);
  options_.hnsw = {/*m=*/16, /*ef_construction=*/60, /*ef_search=*/32, /*seed=*/7};
  Restart();
  std::vector<ReferenceRecord> records = MakeReferences("c", 0, kCount, kDimension);
  for (int i = 0; i < kCount; ++i) {
    ReferenceRecord& record = records[static_cast<size_t>(i)];
    record.sample.metadata = {{"percent", absl::StrCat(i % 100)}, {"side", record.embedding[0] > 0 ? "right" : "left"}};
  }
  Insert(records);
  const auto recall = [&](const MetadataFilter& filter, bool from_the_left) {
    std::mt19937 random(12);
    int64_t hits = 0, wanted = 0;
    for (int q = 0; q < kQueries; ++q) {
      std::vector<float> query = RandomUnitVector(random, kDimension);
      if (from_the_left) query[0] = -std::abs(query[0]);
      const ByDistance naive =
          Naive(filter, false, [&](const ReferenceRecord& each) { return NaiveDistance(query, each.embedding); });
      const auto found = *catalog_->Search("c", query, k, false, std::nullopt, &filter);
      const std::vector<std::string> expected = Ids(naive, k);
      EXPECT_EQ(found.size(), expected.size());
      const std::set<std::string> right(expected.begin(), expected.end());
      for (const Neighbor& neighbor : found) {
        const ReferenceRecord& record = all_.at(neighbor.reference_id);
        EXPECT_TRUE(Matches(filter, record.sample.metadata));
        EXPECT_NEAR(neighbor.distance, NaiveDistance(query, record.embedding), 1e-6);
        hits += static_cast<int64_t>(right.count(neighbor.reference_id));
      }
      wanted += static_cast<int64_t>(expected.size());
    }
    return static_cast<double>(hits) / static_cast<double>(wanted);
  };
  EXPECT_GE(recall({}, false), 0.97);
  for (const int percent : {1, 5, 20, 40, 60, 80, 95}) {
    MetadataCondition condition;
    condition.key = "percent";
    condition.range.emplace().lt = percent;
    const size_t matching = static_cast<size_t>(kCount / 100 * percent);
    const bool asked = HnswIndex::AsksGraph(HnswIndex::Candidates(k, options_.hnsw, kCount, matching), kCount, matching,
                                            /*filtered=*/true);
    EXPECT_EQ(asked, percent >= 40) << percent;
    const double share = recall({{condition}, {}, {}}, false);
    if (asked) {
      EXPECT_GE(share, 0.97) << percent;
    } else {
      EXPECT_EQ(share, 1) << percent;
    }
  }
  EXPECT_GE(recall(HasValue("side", "right"), /*from_the_left=*/true), 0.97);
}

// Each batch rewrites all references with the next version in their metadata, and so replaces nearly every node of the
// graph. Whoever asks for one version finds all of them or none, and whoever asks for any version finds each once.
TEST_F(CatalogFiltersTest, SearchesSeeTheMetadataOfABatchWholeOrNotAtAll) {
  constexpr int kCount = 24, kVersions = 40;
  Open(/*exact_references_max=*/30);
  const auto batch = [&](int version) {
    std::vector<ReferenceRecord> records = MakeReferences("c", 0, kCount, kDimension);
    for (size_t i = 0; i < records.size(); ++i) {
      records[i].sample.id = absl::StrCat("own-", i);
      records[i].sample.metadata = {{"version", absl::StrCat(version)}};
      records[i].id = ReferenceId("c", records[i].sample);
    }
    return records;
  };
  ASSERT_TRUE(catalog_->Insert(batch(0)).ok());
  ASSERT_TRUE(catalog_->Insert(MakeReferences("c", 100, 110, kDimension)).ok());  // Without a version.
  std::atomic<bool> stop = false;
  std::atomic<int> torn = 0, whole = 0, version = 0;
  std::vector<std::thread> searchers;
  for (uint32_t t = 0; t < 3; ++t) {
    searchers.emplace_back([&, t] {
      std::mt19937 random(t);
      MetadataCondition exists;
      exists.key = "version";
      exists.exists = true;
      const MetadataFilter any = {{exists}, {}, {}};
      while (!stop || whole < 20) {
        const std::vector<float> query = RandomUnitVector(random, kDimension);
        const MetadataFilter one = HasValue("version", absl::StrCat(version.load()));
        const auto found = catalog_->Search("c", query, 1000, false, std::nullopt, &one);
        const auto versioned = catalog_->Search("c", query, 1000, false, std::nullopt, &any);
        if (!found.ok() || !versioned.ok() || (found->size() != kCount && !found->empty()) ||
            versioned->size() != kCount) {
          ++torn;
        }
        if (found.ok() && found->size() == kCount) ++whole;
      }
    });
  }
  for (int next = 1; next < kVersions; ++next) {
    version = next;  // Before it is there: both sides of the change are asked.
    ASSERT_TRUE(catalog_->Insert(batch(next)).ok());
  }
  stop = true;
  for (std::thread& searcher : searchers) searcher.join();
  EXPECT_EQ(torn, 0);
  EXPECT_GE(whole, 20);
}

}  // namespace
}  // namespace c3po
