// The sweep of c3po_bench_index_device on the execution model of tests/host_cuda: that it runs, and that
// both sides find the same. The times of that model mean nothing, and none is told.

#include "tests/bench/device_sweep.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/bench/crossover.h"
#include "tests/index/cuda/host_index_device.h"

namespace c3po {
namespace {

TEST(DeviceSweep, FindsTheSameOnBothSidesAndTellsNoTimesOfAModelOfADevice) {
  HostIndexDevice host;
  DeviceSweepOptions options;
  options.references = {60, 300};
  options.batches = {1, 3};
  options.graph_max = 100;
  options.dimension = 12;
  options.k = 4;
  options.rounds = 1;
  options.figures = false;
  testing::internal::CaptureStdout();
  const DeviceSweepResult result = SweepDevice(*host.device, options);
  const std::string told = testing::internal::GetCapturedStdout();
  EXPECT_EQ(result.scan_share, 1);
  EXPECT_EQ(result.beam_share, 1);
  EXPECT_EQ(result.host_queries, 0);
  EXPECT_GT(host.device->counts().device_queries, 0);
  EXPECT_THAT(told, testing::HasSubstr("| 300 | 3 | scan | – | – | – | – |"));
  EXPECT_THAT(told, testing::HasSubstr("| 60 | 1 | graph | – | – | – | – |"));
  EXPECT_THAT(told, testing::Not(testing::HasSubstr("| 300 | 3 | graph")));
  EXPECT_THAT(told, testing::HasSubstr("batches of 3: the graph is faster than the scan from – references on"));
  EXPECT_THAT(told, testing::HasSubstr("beyond 1000000 (device_references_max)"));
}

// A scan that grows as n beside a graph that takes 1 ms: they cross where the scan takes 1 ms too.
TEST(Crossover, LiesWhereBothTakeEquallyLong) {
  std::vector<ScanAndBeam> times;
  for (const double references : {1e3, 1e4, 1e5, 1e6}) times.push_back({references, references * 5e-9, 1e-3});
  ASSERT_TRUE(Crossover(times).has_value());
  EXPECT_NEAR(*Crossover(times), 2e5, 1);
  times.pop_back();
  EXPECT_FALSE(Crossover(times).has_value());  // The scan is faster everywhere.
  EXPECT_FALSE(Crossover({{1e3, 2e-3, 1e-3}, {1e4, 5e-3, 1e-3}}).has_value());
  EXPECT_FALSE(Crossover({}).has_value());
}

}  // namespace
}  // namespace c3po
