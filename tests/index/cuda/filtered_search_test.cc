// Searches under a filter on the device, against the host's indexes and against a comparison with everything.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "index/search/cuda/device_index.h"
#include "index/search/distance.h"
#include "tests/host_cuda/kernel_run.h"
#include "tests/index/cuda/host_index_device.h"
#include "tests/index/cuda/made_up_indexes.h"

namespace c3po {
namespace {

// The oracle: all admitted vectors, sorted.
Found NearestOf(const Vectors& vectors, absl::Span<const float> query, int k, const LabelFilter* filter) {
  Found all;
  for (const auto& [label, vector] : vectors) {
    if (filter != nullptr && !filter->Admits(label)) continue;
    all.push_back({label, std::sqrt(SquaredDistance(query.data(), vector.data(), vector.size()))});
  }
  std::sort(all.begin(), all.end(), [](const LabeledDistance& a, const LabeledDistance& b) {
    return std::pair(a.distance, a.label) < std::pair(b.distance, b.label);
  });
  all.resize(std::min(all.size(), static_cast<size_t>(k)));
  return all;
}

// About a share of the labels.
std::vector<int64_t> LabelsOf(std::mt19937& random, const Vectors& vectors, double share) {
  std::vector<int64_t> labels;
  for (const auto& [label, vector] : vectors) {
    if (static_cast<double>(random()) < share * 4294967296.0) labels.push_back(label);
  }
  return labels;
}

// The same, and as many that no index holds.
LabelFilter SomeOf(std::mt19937& random, const Vectors& vectors, double share) {
  std::vector<int64_t> labels = LabelsOf(random, vectors, share);
  for (size_t i = labels.size(); i > 0; --i) labels.push_back(-1 - labels[i - 1]);
  return LabelFilter(std::move(labels));
}

void ExpectEach(const NeighborIndex& device, const NeighborIndex& host, const std::vector<float>& matrix, int k,
                const LabelFilter& filter) {
  const auto found = device.SearchMany(matrix, k, &filter);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(*found, *host.SearchMany(matrix, k, &filter));
}

TEST(FilteredSearch, ScanFindsWhatAComparisonOfTheAdmittedFinds) {
  constexpr int kDimension = 13;
  for (uint64_t seed = 0; seed < 4; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    host_cuda::SetSeed(seed);
    std::mt19937 random(static_cast<uint32_t>(40 + seed));
    HostIndexDevice host;
    Vectors present = RandomVectors(random, 300, kDimension);
    const auto exact = ExactOf(present, kDimension);
    const auto index = OnDevice(host.device.get(), present, kDimension, /*halves_from=*/seed % 2 == 0 ? 0 : 1);
    for (int round = 0; round < 3; ++round) {
      for (const double share : {0.0, 0.01, 0.3, 1.0}) {
        const LabelFilter filter = SomeOf(random, present, share);
        for (const auto& [queries, k] : {std::pair(1, 1), {5, 40}, {2, 400}}) {
          const std::vector<float> matrix = Matrix(random, queries, kDimension);
          ExpectEach(*index, *exact, matrix, k, filter);
          const auto query = absl::MakeConstSpan(matrix).first(kDimension);
          EXPECT_EQ(*index->Search(query, k, &filter), NearestOf(present, query, k, &filter)) << share;
        }
      }
      // Removed labels stay in the filter, and rows change their places.
      const LabelFilter old = SomeOf(random, present, 0.5);
      for (int i = 0; i < 40; ++i) {
        const auto removed = std::next(present.begin(), static_cast<int64_t>(random() % present.size()));
        ASSERT_TRUE(exact->Remove(removed->first).ok() && index->Remove(removed->first).ok());
        present.erase(removed);
        const auto label = static_cast<int64_t>(random());
        present[label] = RandomUnitVector(random, kDimension);
        ASSERT_TRUE(exact->Add(label, present[label]).ok() && index->Add(label, present[label]).ok());
      }
      const std::vector<float> query = RandomUnitVector(random, kDimension);
      EXPECT_EQ(*index->Search(query, 30, &old), NearestOf(present, query, 30, &old));
    }
    EXPECT_EQ(host.device->counts().host_queries, 0);
  }
}

TEST(FilteredSearch, BeamFindsWhatTheHostsGraphFinds) {
  constexpr int kDimension = 10;
  HnswOptions options = SmallGraph();
  options.ef_search = 16;
  for (uint64_t seed = 0; seed < 2; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    host_cuda::SetSeed(seed);
    std::mt19937 random(static_cast<uint32_t>(50 + seed));
    HostIndexDevice host;
    Vectors present = RandomVectors(random, 900, kDimension);
    const auto graph = GraphOf(present, kDimension, options);
    const auto index = GraphOnDevice(host.device.get(), present, kDimension, options);
    for (const int removed : {0, 150}) {
      for (int i = 0; i < removed; ++i) {
        ASSERT_TRUE(graph->Remove(present.begin()->first).ok() && index->Remove(present.begin()->first).ok());
        present.erase(present.begin());
      }
      for (const double share : {0.0, 0.02, 0.6, 0.9}) {
        // How many candidates the host's graph is asked for follows from how many labels a filter has, held or not.
        const LabelFilter filter(LabelsOf(random, present, share));
        for (const auto& [queries, k] : {std::pair(6, 8), {1, 200}}) {
          const std::vector<float> matrix = Matrix(random, queries, kDimension);
          const auto before = host.runtime.LaunchesByKernel();
          ExpectEach(*index, *graph, matrix, k, filter);
          const auto after = host.runtime.LaunchesByKernel();
          const auto launches = [](const auto& counts) {
            int64_t beams = 0;
            for (const auto& [kernel, count] : counts)
              beams += kernel.find("BeamArgs") == std::string::npos ? 0 : count;
            return beams;
          };
          EXPECT_EQ(launches(after) > launches(before), k == 8 && share >= 0.6) << "share " << share << ", k " << k;
          const Found found = *index->Search(absl::MakeConstSpan(matrix).first(kDimension), k, &filter);
          const Found exact = NearestOf(present, absl::MakeConstSpan(matrix).first(kDimension), k, &filter);
          ASSERT_EQ(found.size(), exact.size());
          if (share < 0.6 || k > 8) {
            EXPECT_EQ(found, exact);  // Few are compared one by one.
          }
        }
      }
    }
    EXPECT_EQ(host.device->counts().host_queries, 0);
  }
}

// What is admitted lies far from the query: its beams widen until all of them are compared.
TEST(FilteredSearch, BeamWidensWhereNothingNearIsAdmitted) {
  constexpr int kDimension = 8;
  std::mt19937 random(60);
  HostIndexDevice host;
  const Vectors vectors = RandomVectors(random, 900, kDimension);
  HnswOptions options = SmallGraph();
  options.ef_search = 16;
  const auto graph = GraphOf(vectors, kDimension, options);
  const auto index = GraphOnDevice(host.device.get(), vectors, kDimension, options);
  const std::vector<float> query = RandomUnitVector(random, kDimension);
  const Found by_distance = NearestOf(vectors, query, 900, nullptr);
  std::vector<int64_t> far;
  for (size_t i = 450; i < by_distance.size(); ++i) far.push_back(by_distance[i].label);
  const LabelFilter filter(far);
  const Found expected(by_distance.begin() + 450, by_distance.begin() + 460);
  EXPECT_EQ(*graph->Search(query, 10, &filter), expected);
  EXPECT_EQ(*index->Search(query, 10, &filter), expected);
  EXPECT_EQ(host.device->counts().host_queries, 0);
}

TEST(FilteredSearch, IsOneCopyInOneCopyOutAndOneWait) {
  std::mt19937 random(61);
  HostIndexDevice host;
  const Vectors vectors = RandomVectors(random, 1200, 16);
  HnswOptions options = SmallGraph();
  options.ef_search = 16;
  const auto scan = OnDevice(host.device.get(), vectors, 16);
  const auto graph = GraphOnDevice(host.device.get(), vectors, 16, options);
  const LabelFilter filter = SomeOf(random, vectors, 0.7);
  const std::vector<float> queries = Matrix(random, 6, 16);
  for (const auto& [index, kernels] : {std::pair(scan.get(), 2), {graph.get(), 1}}) {
    ASSERT_TRUE(index->SearchMany(queries, 5, &filter).ok());  // Buffers are made.
    const host_cuda::RuntimeCounts before = host.runtime.counts();
    ASSERT_TRUE(index->SearchMany(queries, 5, &filter).ok());
    const host_cuda::RuntimeCounts asked = host.runtime.counts() - before;
    EXPECT_EQ(asked.kernels, kernels);
    EXPECT_EQ(asked.copies_to_device, 1);
    EXPECT_EQ(asked.copies_to_host, 1);
    EXPECT_EQ(asked.waits, 1);
    EXPECT_EQ(asked.device_waits + asked.pageable_copies + asked.allocations, 0);
    EXPECT_LE(asked.bytes_to_device, 6 * 16 * 4 + 1200 / 8 + 768);
  }
}

TEST(FilteredSearch, IsTheHostsOnceTheDeviceHasFailed) {
  std::mt19937 random(62);
  HostIndexDevice host;
  const Vectors vectors = RandomVectors(random, 300, 8);
  const auto exact = ExactOf(vectors, 8);
  const auto index = OnDevice(host.device.get(), vectors, 8);
  const LabelFilter filter = SomeOf(random, vectors, 0.4);
  const std::vector<float> matrix = Matrix(random, 3, 8);
  host.runtime.BreakAfter(1);
  for (int round = 0; round < 2; ++round) ExpectEach(*index, *exact, matrix, 9, filter);
  EXPECT_FALSE(index->on_device());
  EXPECT_EQ(host.device->counts().host_queries, 6);
}

}  // namespace
}  // namespace c3po
