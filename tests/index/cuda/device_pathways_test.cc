#include "index/search/cuda/device_pathways.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <vector>

#include "index/search/distance.h"
#include "index/search/nearest_list.h"
#include "tests/host_cuda/kernel_run.h"
#include "tests/index/cuda/host_index_device.h"

namespace c3po {
namespace {

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
    HostIndexDevice host;
    const auto pathways = *DevicePathways::Create(host.device.get(), kLayers, experts, 2);
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

TEST(DevicePathways, EndWhereTheBudgetDoes) {
  HostIndexDevice host(/*budget_bytes=*/(int64_t{8} << 20) + (64 << 10));
  const auto pathways = *DevicePathways::Create(host.device.get(), 4, 16, 1);
  const std::vector<float> row(64, 0.25f);
  for (int64_t label = 0; label < 300 && pathways->usable(); ++label) {
    const NewRow added = {label, row, 1};
    pathways->Add({&added, 1});
  }
  EXPECT_FALSE(pathways->usable());
  EXPECT_EQ(pathways->Search(std::vector<float>(16), std::vector<int>{0}, 1, 0).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(DevicePathways::Create(host.device.get(), 200, 256, 1).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace c3po
