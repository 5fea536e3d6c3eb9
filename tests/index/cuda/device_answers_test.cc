// What indexes in a device's memory answer, held against those of the host, on whichever device the program has: the
// execution model's or a GPU.

#include <gtest/gtest.h>

#include <cstdint>
#include <iterator>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "index/search/cuda/device_pathways.h"
#include "index/search/distance.h"
#include "index/search/nearest_list.h"
#include "tests/host_cuda/kernel_run.h"
#include "tests/index/cuda/made_up_indexes.h"
#include "tests/index/cuda/tested_index_device.h"

namespace c3po {
namespace {

TEST(DeviceIndex, AnswersAreTheExactIndexsThroughChangesAndGrowth) {
  constexpr int kDimension = 13;
  for (uint64_t seed = 0; seed < 4; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    host_cuda::SetSeed(seed);
    std::mt19937 random(static_cast<uint32_t>(seed));
    const auto device = OpenTestedIndexDevice();
    Vectors present = RandomVectors(random, 100, kDimension);
    const auto exact = ExactOf(present, kDimension);
    const auto index = OnDevice(device.get(), present, kDimension, seed % 2 == 0 ? 0 : 200);
    for (int round = 0; round < 6; ++round) {
      for (int change = 0; change < 120; ++change) {
        const auto somewhere = std::next(present.begin(), static_cast<int64_t>(random() % present.size()));
        const int64_t label = random() % 3 == 0 ? somewhere->first : static_cast<int64_t>(random());
        const std::vector<float> vector = random() % 5 == 0 ? somewhere->second : RandomUnitVector(random, kDimension);
        if (present.count(label) > 0) {
          ASSERT_TRUE(exact->Remove(label).ok());
          ASSERT_TRUE(index->Remove(label).ok());
          present.erase(label);
          if (random() % 2 == 0) continue;  // Else it is replaced.
        }
        ASSERT_TRUE(exact->Add(label, vector).ok());
        ASSERT_TRUE(index->Add(label, vector).ok());
        present[label] = vector;
      }
      EXPECT_EQ(index->size(), exact->size());
      for (const auto& [queries, k] : {std::pair(1, 1), {1, 12}, {5, 40}, {11, 3}, {2, 600}}) {
        const std::vector<float> matrix = Matrix(random, queries, kDimension);
        EXPECT_EQ(*index->SearchMany(matrix, k), *exact->SearchMany(matrix, k)) << queries << " queries, k " << k;
      }
    }
    EXPECT_EQ(device->counts().host_queries, 0);
    EXPECT_TRUE(index->on_device());
  }
}

TEST(DeviceGraph, FindsWhatHnswlibFindsThroughChangesAndGrowth) {
  constexpr int kDimension = 12;
  for (uint64_t seed = 0; seed < 3; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    host_cuda::SetSeed(seed);
    std::mt19937 random(static_cast<uint32_t>(10 + seed));
    const auto device = OpenTestedIndexDevice();
    Vectors present = RandomVectors(random, 240, kDimension);
    const auto graph = GraphOf(present, kDimension, SmallGraph());
    const auto index = GraphOnDevice(device.get(), present, kDimension, SmallGraph());
    EXPECT_TRUE(index->approximate());
    for (int round = 0; round < 4; ++round) {
      for (int change = 0; change < 100; ++change) {
        if (random() % 4 == 0) {
          const auto removed = std::next(present.begin(), static_cast<int64_t>(random() % present.size()));
          ASSERT_TRUE(graph->Remove(removed->first).ok());
          ASSERT_TRUE(index->Remove(removed->first).ok());
          present.erase(removed);
          continue;
        }
        const auto label = static_cast<int64_t>(random());
        present[label] = RandomUnitVector(random, kDimension);
        ASSERT_TRUE(graph->Add(label, present[label]).ok());
        ASSERT_TRUE(index->Add(label, present[label]).ok());
      }
      for (const auto& [queries, k] : {std::pair(1, 1), {7, 10}, {2, 60}, {2, 5000}}) {
        const std::vector<float> matrix = Matrix(random, queries, kDimension);
        EXPECT_EQ(*index->SearchMany(matrix, k), *graph->SearchMany(matrix, k)) << queries << " queries, k " << k;
      }
    }
    EXPECT_EQ(device->counts().host_queries, 0);
  }
}

struct Stored {
  std::vector<float> pathway;  // [layers][experts]
  uint32_t views = 0;
};

// What ReferenceCatalog::SearchPathways computes on the host.
std::vector<LabeledDistance> Oracle(const std::map<int64_t, Stored>& stored, const std::vector<float>& rows,
                                    const std::vector<int>& layers, size_t experts, int k, int view) {
  NearestList nearest(static_cast<size_t>(k));
  for (const auto& [label, each] : stored) {
    if ((each.views >> view & 1) == 0) continue;
    float squared = 0;
    for (size_t c = 0; c < layers.size(); ++c) {
      squared += SquaredDistance(&rows[c * experts], &each.pathway[static_cast<size_t>(layers[c]) * experts], experts);
    }
    nearest.Offer(squared, label);
  }
  return nearest.Take();
}

TEST(DevicePathways, FindWhatTheScanOfTheRecordsFinds) {
  for (const int experts : {8, 30, 64}) {
    constexpr int kLayers = 6;
    host_cuda::SetSeed(static_cast<uint64_t>(experts));
    std::mt19937 random(static_cast<uint32_t>(experts));
    std::exponential_distribution<float> exponential;
    const auto numbers = [&](size_t count) {
      std::vector<float> values(count);
      for (float& value : values) value = exponential(random);
      return values;
    };
    const auto device = OpenTestedIndexDevice();
    const auto pathways = *DevicePathways::Create(device.get(), kLayers, experts, 2);
    std::map<int64_t, Stored> stored;
    for (int round = 0; round < 4; ++round) {
      std::vector<NewRow> added;
      for (int i = 0; i < 150; ++i) {
        const auto label = static_cast<int64_t>(random());
        stored[label] = {numbers(kLayers * static_cast<size_t>(experts)), 0};
      }
      for (const auto& [label, each] : stored) {
        if (each.views == 0) added.push_back({label, each.pathway, 0});
      }
      pathways->Add(added);
      // Rows of no view are not found.
      const std::vector<int> layers = {4, 1};
      const std::vector<float> rows = numbers(layers.size() * static_cast<size_t>(experts));
      EXPECT_EQ(*pathways->Search(rows, layers, 9, 0), Oracle(stored, rows, layers, experts, 9, 0));
      std::vector<DevicePathways::Shown> shown;
      for (auto& [label, each] : stored) {
        if (each.views == 0) shown.push_back({label, each.views = 1 + 2 * static_cast<uint32_t>(random() % 2)});
      }
      pathways->Show(shown);
      for (const int view : {0, 1}) {
        EXPECT_EQ(*pathways->Search(rows, layers, 9, view), Oracle(stored, rows, layers, experts, 9, view));
      }
      std::vector<int64_t> removed;
      for (const auto& [label, each] : stored) {
        if (random() % 3 == 0) removed.push_back(label);
      }
      pathways->Remove(removed);
      for (const int64_t label : removed) stored.erase(label);
      EXPECT_EQ(*pathways->Search(rows, layers, 5, 1), Oracle(stored, rows, layers, experts, 5, 1));
    }
    EXPECT_TRUE(pathways->usable());
  }
}

}  // namespace
}  // namespace c3po
