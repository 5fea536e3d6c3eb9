#include "index/search/cuda/device_graph.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <vector>

#include "tests/host_cuda/kernel_run.h"
#include "tests/index/cuda/host_index_device.h"
#include "tests/index/cuda/made_up_indexes.h"

namespace c3po {
namespace {

// Tombstones all around one query: its beam holds fewer live nodes than wanted, and the others' results stay.
TEST(DeviceGraph, BeamWidensWhereTombstonesCrowd) {
  std::mt19937 random(20);
  HostIndexDevice host;
  const Vectors vectors = RandomVectors(random, 600, 6);
  const auto graph = GraphOf(vectors, 6, SmallGraph());
  const auto index = GraphOnDevice(host.device.get(), vectors, 6, SmallGraph());
  const std::vector<float> query = RandomUnitVector(random, 6);
  const Found crowd = *graph->Search(query, 200);
  for (const LabeledDistance& near : crowd) {
    ASSERT_TRUE(graph->Remove(near.label).ok());
    ASSERT_TRUE(index->Remove(near.label).ok());
  }
  const host_cuda::RuntimeCounts before = host.runtime.counts();
  EXPECT_EQ(*index->Search(query, 10), *graph->Search(query, 10));
  EXPECT_GT((host.runtime.counts() - before).kernels, 2);
  std::vector<float> queries = Matrix(random, 4, 6);
  queries.insert(queries.begin() + 12, query.begin(), query.end());
  EXPECT_EQ(*index->SearchMany(queries, 10), *graph->SearchMany(queries, 10));
  EXPECT_EQ(host.device->counts().host_queries, 0);
}

TEST(DeviceGraph, NothingUncheckedReachesTheDevice) {
  std::mt19937 random(30);
  HostIndexDevice host;
  const HnswOptions options = SmallGraph();
  const HnswGraph sound = *GraphOf(RandomVectors(random, 40, 4), 4, options)->CopyGraph();
  HnswGraph bad = sound;
  bad.links[1] = 40;
  IndexChange change(host.device.get());
  DeviceGraph graph(host.device.get(), options.m);
  EXPECT_EQ(graph.Load(change, bad).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(DeviceGraph(host.device.get(), 9).Load(change, sound).code(), absl::StatusCode::kDataLoss);
  ASSERT_TRUE(graph.Load(change, sound).ok());
  ASSERT_TRUE(graph.Reserve(change, 41).ok());
  const HnswAddition right = {40, 0, sound.top_layer, sound.entry_node, {{40, 0, {1, 2}}, {1, 0, {40, 3}}}};
  const auto refused = [&](auto&& alter) {
    HnswAddition altered = right;
    alter(altered);
    return graph.Add(change, altered).code() == absl::StatusCode::kDataLoss;
  };
  EXPECT_TRUE(refused([](HnswAddition& a) { a.node = 41; }));
  EXPECT_TRUE(refused([](HnswAddition& a) { a.layer = 64; }));
  EXPECT_TRUE(refused([](HnswAddition& a) { a.entry_node = 41; }));
  EXPECT_TRUE(refused([](HnswAddition& a) { a.top_layer += 1; }));
  EXPECT_TRUE(refused([](HnswAddition& a) { a.changed[0].links[0] = 41; }));
  EXPECT_TRUE(refused([](HnswAddition& a) { a.changed[0].links[0] = 40; }));
  EXPECT_TRUE(refused([](HnswAddition& a) { a.changed[1].node = 41; }));
  EXPECT_TRUE(refused([](HnswAddition& a) { a.changed[0].layer = 1; }));
  EXPECT_TRUE(refused([](HnswAddition& a) { a.changed[0].links.assign(17, 3); }));
  EXPECT_TRUE(graph.Add(change, right).ok());
  EXPECT_TRUE(change.Finish(host.device->NewEvent()->get()).ok());
}

}  // namespace
}  // namespace c3po
