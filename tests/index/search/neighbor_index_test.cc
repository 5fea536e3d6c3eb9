#include "index/search/neighbor_index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <limits>
#include <set>
#include <thread>

#include "index/search/distance.h"
#include "index/search/exact_index.h"
#include "index/search/hnsw_index.h"
#include "tests/index/store/random_reference.h"

namespace c3po {
namespace {

using Vectors = std::vector<std::vector<float>>;

std::vector<int64_t> Labels(const std::vector<LabeledDistance>& found) {
  std::vector<int64_t> labels;
  for (const LabeledDistance& each : found) labels.push_back(each.label);
  return labels;
}

double NaiveDistance(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
  return std::sqrt(sum);
}

TEST(Distance, AgreesWithDoublePrecisionAtEveryDimension) {
  std::mt19937 random(7);
  for (int dimension = 1; dimension < 200; ++dimension) {
    const auto a = RandomUnitVector(random, dimension);
    const auto b = RandomUnitVector(random, dimension);
    EXPECT_NEAR(std::sqrt(SquaredDistance(a.data(), b.data(), a.size())), NaiveDistance(a, b), 1e-6) << dimension;
    // Near neighbors keep their digits.
    auto near = a;
    near[0] += 1e-4f;
    const double expected = NaiveDistance(a, near);
    EXPECT_NEAR(std::sqrt(SquaredDistance(a.data(), near.data(), a.size())), expected, 1e-5 * expected) << dimension;
  }
}

// What every index must do, for each of them.
class NeighborIndexTest : public ::testing::TestWithParam<std::string> {
 protected:
  static std::unique_ptr<NeighborIndex> Make(int dimension) {
    if (GetParam() == "exact") return std::make_unique<ExactIndex>(dimension);
    auto graph = HnswIndex::Create(dimension, HnswOptions());
    EXPECT_TRUE(graph.ok()) << graph.status();
    return *std::move(graph);
  }
};
INSTANTIATE_TEST_SUITE_P(Each, NeighborIndexTest, ::testing::Values("exact", "hnsw"),
                         [](const auto& info) { return info.param; });

TEST_P(NeighborIndexTest, FindsWhatTheNaiveScanFindsInItsOrder) {
  constexpr int kDimension = 24, kCount = 100;  // Few enough that a graph search visits them all.
  const Vectors vectors = RandomUnitVectors(1, kCount, kDimension);
  auto index = Make(kDimension);
  for (int i = 0; i < kCount; ++i) ASSERT_TRUE(index->Add(1000 - i, vectors[i]).ok());
  EXPECT_EQ(index->size(), static_cast<size_t>(kCount));
  EXPECT_EQ(index->dimension(), kDimension);
  for (const auto& query : RandomUnitVectors(2, 50, kDimension)) {
    std::vector<std::pair<double, int64_t>> naive;
    for (int i = 0; i < kCount; ++i) naive.emplace_back(NaiveDistance(query, vectors[i]), 1000 - i);
    std::sort(naive.begin(), naive.end());
    auto found = index->Search(query, 10);
    ASSERT_TRUE(found.ok()) << found.status();
    ASSERT_EQ(found->size(), 10u);
    for (int i = 0; i < 10; ++i) {
      EXPECT_EQ((*found)[i].label, naive[i].second);
      EXPECT_NEAR((*found)[i].distance, naive[i].first, 1e-6);
    }
    EXPECT_EQ(index->Search(query, 1000)->size(), static_cast<size_t>(kCount));
    const float epsilon = static_cast<float>((naive[3].first + naive[4].first) / 2);
    EXPECT_EQ(Labels(*index->SearchWithin(query, epsilon, 50)),
              (std::vector<int64_t>{naive[0].second, naive[1].second, naive[2].second, naive[3].second}));
    EXPECT_EQ(index->SearchWithin(query, epsilon, 2)->size(), 2u);
    EXPECT_TRUE(index->SearchWithin(query, 0.0f, 2)->empty());
  }
}

TEST_P(NeighborIndexTest, EqualDistancesAreOrderedByLabel) {
  auto index = Make(8);
  const auto vector = RandomUnitVectors(3, 1, 8)[0];
  for (int64_t label : {5, 3, 9, 1, 7}) ASSERT_TRUE(index->Add(label, vector).ok());
  EXPECT_EQ(Labels(*index->Search(vector, 3)), (std::vector<int64_t>{1, 3, 5}));
  EXPECT_EQ(index->Search(vector, 1)->front().distance, 0.0f);
}

TEST_P(NeighborIndexTest, RemovedLabelsAreNotFoundUntilAddedAgain) {
  auto index = Make(8);
  const Vectors vectors = RandomUnitVectors(4, 50, 8);
  for (int i = 0; i < 50; ++i) ASSERT_TRUE(index->Add(i, vectors[i]).ok());
  for (int i = 0; i < 40; ++i) ASSERT_TRUE(index->Remove(i).ok());
  EXPECT_EQ(index->size(), 10u);
  EXPECT_EQ(index->Remove(3).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(index->Add(45, vectors[0]).code(), absl::StatusCode::kAlreadyExists);
  for (int i = 0; i < 40; ++i) {
    for (int64_t label : Labels(*index->Search(vectors[i], 50))) EXPECT_GE(label, 40);
  }
  EXPECT_EQ(index->Search(vectors[0], 50)->size(), 10u);
  ASSERT_TRUE(index->Add(3, vectors[7]).ok());
  EXPECT_EQ(index->Search(vectors[7], 1)->front(), (LabeledDistance{3, 0.0f}));
  for (int64_t label : {3, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49}) ASSERT_TRUE(index->Remove(label).ok());
  EXPECT_EQ(index->size(), 0u);
  EXPECT_TRUE(index->Search(vectors[0], 5)->empty());
}

// Row-major, as SearchMany takes them.
std::vector<float> Matrix(const Vectors& rows) {
  std::vector<float> matrix;
  for (const auto& row : rows) matrix.insert(matrix.end(), row.begin(), row.end());
  return matrix;
}

// Over more vectors than an exact scan takes at a time, with tombstones, and for counts at which a graph compares all.
TEST_P(NeighborIndexTest, ManyQueriesAtOnceFindWhatEachFindsAlone) {
  for (const int dimension : {1, 7, 96, 300}) {
    constexpr int kCount = 700;
    SCOPED_TRACE(testing::Message() << "dimension " << dimension);
    auto index = Make(dimension);
    const Vectors vectors = RandomUnitVectors(40 + dimension, kCount, dimension);
    for (int i = 0; i < kCount; ++i) ASSERT_TRUE(index->Add(i, vectors[i]).ok());
    Vectors queries = RandomUnitVectors(90 + dimension, 23, dimension);
    for (int i = 0; i < kCount; i += 50) queries.push_back(vectors[i]);
    for (const int removed : {0, 300, kCount}) {
      for (int i = 0; i < removed; ++i) static_cast<void>(index->Remove(i));
      for (const int k : {1, 10, 300, 2000}) {
        const auto together = index->SearchMany(Matrix(queries), k);
        ASSERT_TRUE(together.ok()) << together.status();
        ASSERT_EQ(together->size(), queries.size());
        for (size_t i = 0; i < queries.size(); ++i) {
          ASSERT_EQ((*together)[i].size(), std::min<size_t>(k, kCount - removed));
          ASSERT_EQ((*together)[i], *index->Search(queries[i], k)) << "query " << i << ", k " << k;
        }
      }
    }
  }
}

TEST_P(NeighborIndexTest, NoQueriesFindNothingAndBadOnesAreNamed) {
  auto index = Make(3);
  ASSERT_TRUE(index->Add(1, {1, 0, 0}).ok());
  EXPECT_TRUE(index->SearchMany({}, 4)->empty());
  const auto message = [](const auto& result) {
    EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(result.status().message());
  };
  EXPECT_EQ(message(index->SearchMany({1, 0, 0, 0, 1}, 1)), "queries: 5 numbers, must be whole vectors of 3");
  EXPECT_EQ(message(index->SearchMany({1, 0, 0, 0, INFINITY, 1}, 1)), "queries[1][1]: not finite");
  EXPECT_EQ(message(index->SearchMany({1, 0, 0}, 0)), "k: 0, must be at least 1");
}

// A label comes and goes: equal queries of one search agree on whether it is there.
TEST_P(NeighborIndexTest, ManyQueriesSeeOneStateOfTheIndex) {
  constexpr int kDimension = 16, kQueries = 12;
  auto index = Make(kDimension);
  const Vectors vectors = RandomUnitVectors(6, 40, kDimension);
  for (int i = 1; i < 40; ++i) ASSERT_TRUE(index->Add(i, vectors[i]).ok());
  const std::vector<float> queries = Matrix(Vectors(kQueries, vectors[0]));
  std::atomic<bool> changed = false;
  int failures = 0;
  std::thread changing([&] {
    for (int round = 0; round < 1000; ++round) {
      if (!index->Add(0, vectors[0]).ok() || !index->Remove(0).ok()) ++failures;
    }
    changed = true;
  });
  int torn = 0;
  while (!changed) {
    const auto found = *index->SearchMany(queries, 1);
    torn += std::any_of(found.begin(), found.end(), [&](const auto& each) { return each != found[0]; });
  }
  changing.join();
  EXPECT_EQ(torn, 0);
  EXPECT_EQ(failures, 0);
}

TEST_P(NeighborIndexTest, BadArgumentsAreNamedAndChangeNothing) {
  auto index = Make(3);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto message = [](const absl::Status& status) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    return std::string(status.message());
  };
  EXPECT_EQ(message(index->Add(1, {1, 0})), "vector: has 2 dimensions, not 3");
  EXPECT_EQ(message(index->Add(1, {1, nan, 0})), "vector[1]: not finite");
  EXPECT_EQ(index->size(), 0u);
  EXPECT_TRUE(index->Search({1, 0, 0}, 3)->empty());
  EXPECT_EQ(message(index->Search({1, 0, 0, 0}, 3).status()), "query: has 4 dimensions, not 3");
  EXPECT_EQ(message(index->Search({1, 0, INFINITY}, 3).status()), "query[2]: not finite");
  EXPECT_EQ(message(index->Search({1, 0, 0}, 0).status()), "k: 0, must be at least 1");
  EXPECT_EQ(message(index->SearchWithin({1, 0, 0}, 1, -1).status()), "k_max: -1, must be at least 1");
  EXPECT_THAT(message(index->SearchWithin({1, 0, 0}, nan, 1).status()), ::testing::StartsWith("epsilon: nan"));
  EXPECT_THAT(message(index->SearchWithin({1, 0, 0}, -1, 1).status()), ::testing::StartsWith("epsilon: -1"));
}

TEST_P(NeighborIndexTest, AddsRemovalsAndSearchesFromSeveralThreads) {
  constexpr int kThreads = 4, kEach = 150, kDimension = 16;
  const Vectors vectors = RandomUnitVectors(5, kThreads * kEach, kDimension);
  const Vectors queries = RandomUnitVectors(6, 50, kDimension);
  auto index = Make(kDimension);
  std::atomic<bool> stop = false;
  std::atomic<int> failures = 0, searches = 0;
  std::vector<std::thread> searchers, writers;
  for (int t = 0; t < 2; ++t) {
    searchers.emplace_back([&] {
      for (size_t i = 0; !stop || i < queries.size(); ++i) {
        auto found = index->Search(queries[i % queries.size()], 5);
        ++searches;
        if (!found.ok() || found->size() > 5) ++failures;
        for (size_t j = 1; found.ok() && j < found->size(); ++j) {
          if ((*found)[j - 1].distance > (*found)[j].distance) ++failures;
        }
      }
    });
  }
  for (int t = 0; t < kThreads; ++t) {
    writers.emplace_back([&, t] {
      for (int i = 0; i < kEach; ++i) {
        const int64_t label = t * kEach + i;
        if (!index->Add(label, vectors[label]).ok()) ++failures;
        // Its own vector is found by whoever added it.
        auto found = index->Search(vectors[label], 1);
        if (!found.ok() || found->size() != 1 || (*found)[0].distance > 0) ++failures;
        if (i % 3 == 2 && !index->Remove(label).ok()) ++failures;
      }
    });
  }
  for (std::thread& thread : writers) thread.join();
  stop = true;
  for (std::thread& thread : searchers) thread.join();
  EXPECT_EQ(failures, 0);
  EXPECT_GE(searches, 100);
  EXPECT_EQ(index->size(), static_cast<size_t>(kThreads * kEach / 3 * 2));
  for (int64_t label = 0; label < kThreads * kEach; ++label) {
    EXPECT_EQ(index->Search(vectors[label], 1)->front().label == label, label % kEach % 3 != 2);
  }
}

TEST(HnswIndex, RecallAgainstExactSearch) {
  constexpr int kDimension = 64, kCount = 5000, kQueries = 300, k = 10;
  auto graph = HnswIndex::Create(kDimension, HnswOptions());
  ASSERT_TRUE(graph.ok()) << graph.status();
  ExactIndex exact(kDimension);
  const Vectors vectors = RandomUnitVectors(20240711, kCount, kDimension);
  for (int i = 0; i < kCount; ++i) {
    ASSERT_TRUE((*graph)->Add(i, vectors[i]).ok());
    ASSERT_TRUE(exact.Add(i, vectors[i]).ok());
  }
  const auto recall = [&] {
    int hits = 0;
    for (const auto& query : RandomUnitVectors(42, kQueries, kDimension)) {
      const auto expected = *exact.Search(query, k);
      const auto found = *(*graph)->Search(query, k);
      EXPECT_EQ(found.size(), expected.size());
      for (const LabeledDistance& each : found) {
        hits += std::find(expected.begin(), expected.end(), each) != expected.end();  // Distances equal bit for bit.
      }
    }
    return static_cast<double>(hits) / (kQueries * k);
  };
  const double before = recall();
  RecordProperty("recall_at_10", std::to_string(before));
  std::cout << "recall@10 of " << kCount << " random unit vectors in " << kDimension << " dimensions: " << before
            << "\n";
  EXPECT_GE(before, 0.95);

  for (int i = 0; i < kCount; i += 2) {
    ASSERT_TRUE((*graph)->Remove(i).ok());
    ASSERT_TRUE(exact.Remove(i).ok());
  }
  EXPECT_EQ((*graph)->tombstones(), static_cast<size_t>(kCount / 2));
  const double after = recall();
  std::cout << "recall@10 with half of them removed: " << after << "\n";
  EXPECT_GE(after, 0.95);
}

TEST(HnswIndex, FindsTheRestWhenTheWholeNeighborhoodOfAQueryIsRemoved) {
  constexpr int kDimension = 16;
  auto graph = HnswIndex::Create(kDimension, HnswOptions());
  ASSERT_TRUE(graph.ok()) << graph.status();
  // 600 vectors near one point, 600 near its opposite; all of the first are removed.
  const Vectors noise = RandomUnitVectors(8, 1200, kDimension);
  std::vector<float> center(kDimension, 0.25f);
  for (int i = 0; i < 1200; ++i) {
    std::vector<float> vector(kDimension);
    for (int j = 0; j < kDimension; ++j) vector[j] = (i < 600 ? center[j] : -center[j]) + 0.05f * noise[i][j];
    ASSERT_TRUE((*graph)->Add(i, vector).ok());
  }
  for (int i = 0; i < 600; ++i) ASSERT_TRUE((*graph)->Remove(i).ok());
  auto found = (*graph)->Search(center, 20);
  ASSERT_TRUE(found.ok()) << found.status();
  ASSERT_EQ(found->size(), 20u);
  for (const LabeledDistance& each : *found) EXPECT_GE(each.label, 600);
}

// Some queries are answered by the graph, and some by comparing all nodes.
TEST(HnswIndex, QueriesBesideARemovedNeighborhoodAndWithinItFindWhatEachFindsAlone) {
  constexpr int kDimension = 16, kEach = 600;
  auto graph = *HnswIndex::Create(kDimension, HnswOptions());
  const Vectors noise = RandomUnitVectors(8, 2 * kEach, kDimension);
  const auto near = [&](float sign, int i) {
    std::vector<float> vector(kDimension);
    for (int j = 0; j < kDimension; ++j) vector[j] = sign * 0.25f + 0.05f * noise[i][j];
    return vector;
  };
  for (int i = 0; i < 2 * kEach; ++i) ASSERT_TRUE(graph->Add(i, near(i < kEach ? 1.0f : -1.0f, i)).ok());
  for (int i = 0; i < kEach; ++i) ASSERT_TRUE(graph->Remove(i).ok());
  Vectors queries;
  for (int i = 0; i < 20; ++i) queries.push_back(near(i % 3 == 0 ? 1.0f : -1.0f, i * 7));
  const auto together = *graph->SearchMany(Matrix(queries), 20);
  for (size_t i = 0; i < queries.size(); ++i) {
    ASSERT_EQ(together[i].size(), 20u);
    EXPECT_EQ(together[i], *graph->Search(queries[i], 20)) << i;
  }
}

TEST(HnswIndex, WantsRebuildingOnceTombstonesOutnumberWhatIsLeft) {
  constexpr int kCount = 2100, kDimension = 2;
  auto graph = *HnswIndex::Create(kDimension, {/*m=*/2, /*ef_construction=*/2, /*ef_search=*/1, /*seed=*/7});
  const Vectors vectors = RandomUnitVectors(9, kCount, kDimension);
  for (int i = 0; i < kCount; ++i) ASSERT_TRUE(graph->Add(i, vectors[i]).ok());
  EXPECT_FALSE(graph->WantsRebuilding());
  const int64_t bytes = graph->MemoryBytes();
  EXPECT_EQ(bytes, kCount * (4 * kDimension + 8 * 2 + 150));
  for (int i = 0; i < kCount / 2; ++i) ASSERT_TRUE(graph->Remove(i).ok());
  EXPECT_FALSE(graph->WantsRebuilding()) << "as many";
  ASSERT_TRUE(graph->Remove(kCount / 2).ok());
  EXPECT_TRUE(graph->WantsRebuilding()) << "one more";
  EXPECT_EQ(graph->MemoryBytes(), bytes) << "tombstones take room";
}

TEST(HnswIndex, OptionsOutOfRangeAreNamed) {
  const auto message = [](int dimension, HnswOptions options) {
    const absl::Status status = HnswIndex::Create(dimension, options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  HnswOptions options;
  EXPECT_THAT(message(0, options), ::testing::StartsWith("dimension: 0"));
  options.m = 1;
  EXPECT_THAT(message(8, options), ::testing::StartsWith("hnsw.m: 1"));
  options = HnswOptions();
  options.ef_construction = 5;
  EXPECT_THAT(message(8, options), ::testing::StartsWith("hnsw.ef_construction: 5"));
  options = HnswOptions();
  options.ef_search = 0;
  EXPECT_THAT(message(8, options), ::testing::StartsWith("hnsw.ef_search: 0"));
}

}  // namespace
}  // namespace c3po
