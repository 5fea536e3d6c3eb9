// Searches under a filter, against a comparison with everything that it admits.

#include "index/search/label_filter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "index/search/exact_index.h"
#include "index/search/hnsw_index.h"
#include "tests/index/store/random_reference.h"

namespace c3po {
namespace {

using Vectors = std::vector<std::vector<float>>;

double NaiveDistance(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
  return std::sqrt(sum);
}

std::vector<int64_t> Labels(const std::vector<LabeledDistance>& found) {
  std::vector<int64_t> labels;
  for (const LabeledDistance& each : found) labels.push_back(each.label);
  return labels;
}

TEST(LabelFilter, IsASetOfLabels) {
  const LabelFilter filter({7, -3, 7, 12});
  EXPECT_THAT(std::vector<int64_t>(filter.labels().begin(), filter.labels().end()), testing::ElementsAre(-3, 7, 12));
  EXPECT_TRUE(filter.Admits(7));
  EXPECT_FALSE(filter.Admits(8));
  EXPECT_FALSE(LabelFilter({}).Admits(0));
}

// Few enough that every kind of index compares all that a filter admits.
TEST(LabelFilter, SearchesFindWhatTheNaiveScanOfTheAdmittedFinds) {
  constexpr int kDimension = 24, kCount = 300;
  const Vectors vectors = RandomUnitVectors(31, kCount, kDimension);
  const Vectors queries = RandomUnitVectors(32, 9, kDimension);
  std::vector<float> matrix;
  for (const auto& query : queries) matrix.insert(matrix.end(), query.begin(), query.end());
  std::vector<std::unique_ptr<NeighborIndex>> indexes;
  indexes.push_back(std::make_unique<ExactIndex>(kDimension));
  indexes.push_back(*HnswIndex::Create(kDimension, HnswOptions()));
  for (const auto& index : indexes) {
    SCOPED_TRACE(index->approximate() ? "graph" : "exact");
    for (int i = 0; i < kCount; ++i) ASSERT_TRUE(index->Add(i, vectors[i]).ok());
    for (int i = 0; i < kCount; i += 5) ASSERT_TRUE(index->Remove(i).ok());
    for (const int step : {1, 3, 40, 1000}) {
      SCOPED_TRACE(testing::Message() << "one of " << step);
      std::vector<int64_t> labels = {-7, 5000};  // Not there; nor are the multiples of 5.
      for (int64_t i = kCount - 1; i >= 0; i -= step) labels.insert(labels.end(), {i, i});
      const LabelFilter filter(labels);
      const auto together = index->SearchMany(matrix, 10, &filter);
      ASSERT_TRUE(together.ok()) << together.status();
      for (size_t q = 0; q < queries.size(); ++q) {
        std::vector<std::pair<double, int64_t>> naive;
        for (int i = 0; i < kCount; ++i) {
          if (i % 5 == 0 || (kCount - 1 - i) % step != 0) continue;
          naive.emplace_back(NaiveDistance(queries[q], vectors[i]), i);
        }
        std::sort(naive.begin(), naive.end());
        naive.resize(std::min<size_t>(naive.size(), 10));
        std::vector<int64_t> expected;
        for (const auto& [distance, label] : naive) expected.push_back(label);
        EXPECT_EQ(Labels((*together)[q]), expected);
        EXPECT_EQ(*index->Search(queries[q], 10, &filter), (*together)[q]);
        if (naive.size() < 2) continue;
        const auto epsilon = static_cast<float>((naive[0].first + naive[1].first) / 2);
        EXPECT_EQ(Labels(*index->SearchWithin(queries[q], epsilon, 10, &filter)), (std::vector<int64_t>{expected[0]}));
      }
    }
    const LabelFilter nothing({});
    EXPECT_TRUE(index->Search(queries[0], 3, &nothing)->empty());
    EXPECT_EQ(index->SearchMany(matrix, 3, &nothing)->size(), queries.size());
  }
}

// Where the graph is asked: only what is admitted, with its own distance, as many as there are, and nearly all that an
// exact search finds, for filters of any share.
TEST(LabelFilter, GraphsRecallAgainstExactSearch) {
  constexpr int kDimension = 24, kCount = 4000, kQueries = 60, k = 10;
  const HnswOptions options = {/*m=*/16, /*ef_construction=*/100, /*ef_search=*/64, /*seed=*/7};
  const auto graph = *HnswIndex::Create(kDimension, options);
  ExactIndex exact(kDimension);
  const Vectors vectors = RandomUnitVectors(33, kCount, kDimension);
  for (int i = 0; i < kCount; ++i) ASSERT_TRUE(graph->Add(i, vectors[i]).ok() && exact.Add(i, vectors[i]).ok());
  for (const int share : {2, 3, 10, 100, 1000}) {
    SCOPED_TRACE(testing::Message() << "one of " << share);
    std::vector<int64_t> labels;
    for (int i = 0; i < kCount; i += share) labels.push_back(i);
    const LabelFilter filter(labels);
    const size_t candidates = HnswIndex::Candidates(k, options, kCount, labels.size());
    const bool asked = HnswIndex::AsksGraph(candidates, kCount, labels.size(), /*filtered=*/true);
    EXPECT_EQ(asked, share <= 2);
    int64_t hits = 0, wanted = 0;
    for (const auto& query : RandomUnitVectors(34, kQueries, kDimension)) {
      const auto expected = *exact.Search(query, k, &filter);
      const auto found = *graph->Search(query, k, &filter);
      ASSERT_EQ(found.size(), expected.size());
      for (const LabeledDistance& each : found) {
        EXPECT_EQ(each.label % share, 0);
        hits += std::count(expected.begin(), expected.end(), each);
      }
      wanted += std::ssize(expected);
      if (!asked) {
        EXPECT_EQ(found, expected);
      }
    }
    EXPECT_GE(static_cast<double>(hits), 0.95 * static_cast<double>(wanted));
  }
}

// What is admitted lies far from the query: asked for more and more candidates, all admitted ones are compared at last.
TEST(LabelFilter, GraphWidensWhereNothingNearIsAdmitted) {
  constexpr int kDimension = 8, kCount = 3000;
  const HnswOptions options = {/*m=*/8, /*ef_construction=*/40, /*ef_search=*/16, /*seed=*/7};
  const auto graph = *HnswIndex::Create(kDimension, options);
  const Vectors vectors = RandomUnitVectors(35, kCount, kDimension);
  const std::vector<float> query = RandomUnitVectors(36, 1, kDimension)[0];
  std::vector<std::pair<double, int64_t>> by_distance;
  for (int i = 0; i < kCount; ++i) {
    ASSERT_TRUE(graph->Add(i, vectors[i]).ok());
    by_distance.emplace_back(NaiveDistance(query, vectors[i]), i);
  }
  std::sort(by_distance.begin(), by_distance.end());
  std::vector<int64_t> far;
  for (size_t i = kCount / 2; i < by_distance.size(); ++i) far.push_back(by_distance[i].second);
  const LabelFilter filter(far);
  EXPECT_EQ(Labels(*graph->Search(query, 10, &filter)), std::vector<int64_t>(far.begin(), far.begin() + 10));
}

}  // namespace
}  // namespace c3po
