#include "index/search/cuda/device_index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "tests/host_cuda/kernel_run.h"
#include "tests/index/cuda/host_index_device.h"
#include "tests/index/cuda/made_up_indexes.h"

namespace c3po {
namespace {

TEST(DeviceIndex, KeepsTheContractOfNeighborIndex) {
  HostIndexDevice host;
  std::mt19937 random(1);
  const auto index = OnDevice(host.device.get(), {}, 8);
  EXPECT_TRUE(index->Search(RandomUnitVector(random, 8), 3)->empty());
  const std::vector<float> vector = RandomUnitVector(random, 8);
  for (const int64_t label : {5, 3, 9, 1, 7}) ASSERT_TRUE(index->Add(label, vector).ok());
  EXPECT_EQ(index->Add(3, vector).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(index->Remove(4).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(index->Add(4, std::vector<float>(7)).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(*index->Search(vector, 3), (Found{{1, 0}, {3, 0}, {5, 0}}));
  for (const int64_t label : {5, 3, 9, 1, 7}) ASSERT_TRUE(index->Remove(label).ok());
  EXPECT_TRUE(index->Search(vector, 3)->empty());
  EXPECT_FALSE(index->approximate());
  EXPECT_FALSE(index->WantsRebuilding());
  EXPECT_EQ(index->dimension(), 8);
  const std::vector<float> many = Matrix(random, 600, 8);  // More than one batch.
  ASSERT_TRUE(index->Add(2, vector).ok());
  EXPECT_EQ(index->SearchMany(many, 2)->size(), 600u);
  EXPECT_EQ(index->SearchMany(many, 2)->back(), *index->Search(absl::MakeConstSpan(many).subspan(599 * 8), 2));
}

TEST(DeviceIndex, SearchIsOneCopyInOneCopyOutAndOneWait) {
  std::mt19937 random(2);
  HostIndexDevice host;
  const Vectors vectors = RandomVectors(random, 300, 16);
  const auto scan = OnDevice(host.device.get(), vectors, 16);
  const auto halves = OnDevice(host.device.get(), vectors, 16, 1);
  const auto graph = GraphOnDevice(host.device.get(), vectors, 16, SmallGraph());
  const std::vector<float> queries = Matrix(random, 6, 16);
  for (const auto& [index, kernels] : {std::pair(scan.get(), 2), {halves.get(), 4}, {graph.get(), 1}}) {
    ASSERT_TRUE(index->SearchMany(queries, 5).ok());  // Buffers are made.
    const host_cuda::RuntimeCounts before = host.runtime.counts();
    ASSERT_TRUE(index->SearchMany(queries, 5).ok());
    const host_cuda::RuntimeCounts asked = host.runtime.counts() - before;
    EXPECT_EQ(asked.kernels, kernels);
    EXPECT_EQ(asked.copies_to_device, 1);
    EXPECT_EQ(asked.copies_to_host, 1);
    EXPECT_EQ(asked.copies_on_device + asked.fills, 0);
    EXPECT_EQ(asked.waits, 1);
    EXPECT_EQ(asked.device_waits + asked.pageable_copies + asked.allocations, 0);
    EXPECT_LE(asked.bytes_to_device, 6 * 16 * 4 + 512);
    EXPECT_LE(asked.bytes_to_host, 6 * 5 * 16 + 512);
  }
}

TEST(DeviceIndex, ChangeIsOneCopyAndOneKernelAndNoWait) {
  std::mt19937 random(3);
  HostIndexDevice host;
  const Vectors vectors = RandomVectors(random, 200, 16);
  const auto scan = OnDevice(host.device.get(), vectors, 16);
  const auto graph = GraphOnDevice(host.device.get(), vectors, 16, SmallGraph());
  for (DeviceIndex* const index : {scan.get(), graph.get()}) {
    for (const bool add : {true, false}) {
      const std::vector<float> vector = RandomUnitVector(random, 16);
      const host_cuda::RuntimeCounts before = host.runtime.counts();
      ASSERT_TRUE((add ? index->Add(-7, vector) : index->Remove(-7)).ok());
      const host_cuda::RuntimeCounts asked = host.runtime.counts() - before;
      EXPECT_EQ(asked.copies_to_device, 1);
      EXPECT_EQ(asked.kernels, 1);
      EXPECT_EQ(asked.waits + asked.device_waits + asked.pageable_copies + asked.allocations, 0);
    }
  }
}

TEST(DeviceIndex, HostAnswersWhatTheKernelsCannot) {
  std::mt19937 random(21);
  HostIndexDevice host;
  const Vectors vectors = RandomVectors(random, 1100, 4);
  const auto exact = ExactOf(vectors, 4);
  const auto index = OnDevice(host.device.get(), vectors, 4);
  const std::vector<float> query = RandomUnitVector(random, 4);
  EXPECT_EQ(*index->Search(query, 1024), *exact->Search(query, 1024));
  EXPECT_EQ(host.device->counts().host_queries, 0);
  EXPECT_EQ(*index->Search(query, 1025), *exact->Search(query, 1025));
  EXPECT_EQ(host.device->counts().host_queries, 1);
  EXPECT_FALSE(DeviceIndex::Fits(*host.device, cuda::kScanWidthMax + 1));
  EXPECT_TRUE(DeviceIndex::Fits(*host.device, cuda::kScanWidthMax));
}

TEST(DeviceIndex, BudgetIsKeptAndAFullOneRefusesWithTheIndexUnchanged) {
  std::mt19937 random(22);
  HostIndexDevice host(/*budget_bytes=*/int64_t{11} << 20);  // 8 MiB are staging.
  const int64_t idle = host.device->bytes_in_use();
  {
    Vectors vectors = RandomVectors(random, 500, 256);
    const auto index = OnDevice(host.device.get(), vectors, 256);
    absl::Status status;
    int64_t label = -1;
    while (status.ok()) {
      status = index->Add(label, RandomUnitVector(random, 256));
      if (status.ok()) vectors[label] = {};
      --label;
      ASSERT_LT(vectors.size(), 5000u);
    }
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr("would exceed the budget of 11534336"));
    EXPECT_EQ(index->size(), vectors.size());
    EXPECT_TRUE(index->on_device());
    EXPECT_LE(host.device->bytes_in_use(), host.device->budget_bytes());
    EXPECT_EQ(host.device->counts().refusals, 1);
    EXPECT_EQ(index->Search(RandomUnitVector(random, 256), 3)->size(), 3u);
    EXPECT_EQ(host.device->counts().host_queries, 0);
    // A place that is given back is taken.
    ASSERT_TRUE(index->Remove(-1).ok());
    EXPECT_TRUE(index->Add(label, RandomUnitVector(random, 256)).ok());
    const Vectors more = RandomVectors(random, 2500, 256);
    auto exact = ExactOf(more, 256);
    EXPECT_EQ(DeviceIndex::Create(host.device.get(), exact, ListOf(more)).status().code(),
              absl::StatusCode::kResourceExhausted);
    EXPECT_EQ(exact->size(), 2500u);  // It is still the caller's.
  }
  EXPECT_LE(host.device->bytes_in_use(), idle + (1 << 20));  // Buffers of searches stay.
}

TEST(DeviceIndex, HostAnswersOnceTheDeviceHasFailed) {
  for (const int64_t after : {0, 1, 3, 7}) {
    std::mt19937 random(23);
    HostIndexDevice host;
    const Vectors vectors = RandomVectors(random, 300, 8);
    const auto exact = ExactOf(vectors, 8);
    const auto index = OnDevice(host.device.get(), vectors, 8);
    const std::vector<float> matrix = Matrix(random, 3, 8);
    host.runtime.BreakAfter(after);
    for (int round = 0; round < 3; ++round) {
      EXPECT_EQ(*index->SearchMany(matrix, 4), *exact->SearchMany(matrix, 4));
      const std::vector<float> vector = RandomUnitVector(random, 8);
      ASSERT_TRUE(index->Add(-1 - round, vector).ok());
      ASSERT_TRUE(exact->Add(-1 - round, vector).ok());
    }
    EXPECT_FALSE(index->on_device());
    EXPECT_TRUE(host.device->failed());
    EXPECT_EQ(host.device->failure(),
              absl::UnavailableError("the device failed: searching references: unspecified launch failure"));
    EXPECT_TRUE(DeviceFailure().ok());  // Of a device on which nothing else computes.
    auto other = ExactOf(vectors, 8);
    EXPECT_EQ(DeviceIndex::Create(host.device.get(), other, ListOf(vectors)).status().code(),
              absl::StatusCode::kUnavailable);
  }
}

// What float16 cannot tell apart is scanned in float32; and no longer tried once that was so for most queries.
TEST(DeviceIndex, Float16ScanIsLeftWhereItDecidesNothing) {
  std::mt19937 random(24);
  HostIndexDevice host;
  const std::vector<float> center = RandomUnitVector(random, 24);
  Vectors vectors;
  for (int64_t label = 0; label < 400; ++label) {
    vectors[label] = center;
    vectors[label][random() % 24] += 1e-6f * static_cast<float>(random() % 100);
  }
  const auto exact = ExactOf(vectors, 24);
  const auto index = OnDevice(host.device.get(), vectors, 24, /*halves_from=*/1);
  const std::vector<float> matrix = Matrix(random, 64, 24);
  EXPECT_EQ(*index->SearchMany(matrix, 5), *exact->SearchMany(matrix, 5));
  EXPECT_GT(host.device->counts().unproven_queries, 32);
  const host_cuda::RuntimeCounts before = host.runtime.counts();
  EXPECT_EQ(*index->SearchMany(matrix, 5), *exact->SearchMany(matrix, 5));
  EXPECT_EQ((host.runtime.counts() - before).kernels, 2);
  // Numbers beyond float16's range: the same.
  vectors[7][3] = 1e6f;
  const auto wide = OnDevice(host.device.get(), vectors, 24, /*halves_from=*/1);
  EXPECT_EQ(*wide->SearchMany(matrix, 5), *ExactOf(vectors, 24)->SearchMany(matrix, 5));
}

// Vectors arrive in a known order on a line, so what a search finds tells how many it saw: all it finds must be of one
// state, of one between those before and after it.
TEST(DeviceIndex, SearchesSeeOneStateEachBesideChangesAndGrowth) {
  for (const bool graph : {false, true}) {
    HostIndexDevice host;
    constexpr int kCount = 700;
    const auto vector_of = [](int64_t label) { return std::vector<float>{static_cast<float>(label), 0.5f}; };
    Vectors first;
    for (int64_t label = 0; label < 50; ++label) first[label] = vector_of(label);
    const auto index =
        graph ? GraphOnDevice(host.device.get(), first, 2, SmallGraph()) : OnDevice(host.device.get(), first, 2);
    std::atomic<int64_t> returned = 50, begun = 50;
    const auto search = [&] {
      while (returned.load() < kCount) {
        const int64_t before = returned.load();
        // The farthest vector to the right is the newest.
        const auto found = *index->SearchMany(std::vector<float>{1e6f, 0.5f, 1e6f, 0.5f, 1e6f, 0.5f}, 2);
        const int64_t after = begun.load();
        EXPECT_EQ(found[0], found[1]);
        EXPECT_EQ(found[0], found[2]);
        EXPECT_EQ(found[0][0].label, found[0][1].label + 1);
        EXPECT_GE(found[0][0].label, before - 1);
        EXPECT_LE(found[0][0].label, after - 1);
      }
    };
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; ++i) threads.emplace_back(search);
    for (int64_t label = 50; label < kCount; ++label) {
      ++begun;
      ASSERT_TRUE(index->Add(label, vector_of(label)).ok());
      ++returned;
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(host.device->counts().host_queries, 0);
  }
}

}  // namespace
}  // namespace c3po
