#include "tests/host_cuda/kernel_run.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "tests/host_cuda/device_array.h"
#include "tests/host_cuda/trial_kernels.h"

namespace c3po::host_cuda {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int kSeeds = 20;

std::vector<float> Numbers(size_t count) {
  std::vector<float> numbers(count);
  for (size_t i = 0; i < count; ++i) numbers[i] = 1.0f / static_cast<float>(3 + i % 97);
  return numbers;
}

std::string FaultOf(MissingArgs::What what) {
  try {
    EXPECT_EQ(LaunchMissing({what}, nullptr), nullptr);
  } catch (const KernelFault& fault) {
    return fault.what();
  }
  return "";
}

TEST(KernelRun, SumIsBitwiseTheSameInEveryOrder) {
  constexpr int kBlocks = 7;
  const std::vector<float> numbers = Numbers(256 * kBlocks);
  std::vector<float> expected(kBlocks);
  for (int b = 0; b < kBlocks; ++b) {
    std::vector<float> values(numbers.begin() + 256 * b, numbers.begin() + 256 * (b + 1));
    for (size_t half = 128; half > 0; half /= 2) {
      for (size_t i = 0; i < half; ++i) values[i] += values[i + half];
    }
    expected[static_cast<size_t>(b)] = values[0];
  }
  const DeviceArray<float> in(numbers);
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    SetSeed(seed);
    const DeviceArray<float> out(kBlocks);
    ASSERT_EQ(LaunchBlockSum({in.data(), out.data()}, kBlocks, nullptr), nullptr);
    EXPECT_EQ(out.Values(), expected) << "seed " << seed;
  }
}

TEST(KernelRun, RaceShowsAsDifferentResults) {
  const DeviceArray<float> in(Numbers(256));
  std::set<uint32_t> results;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    SetSeed(seed);
    const DeviceArray<float> out(1);
    ASSERT_EQ(LaunchRacingSum({in.data(), out.data()}, nullptr), nullptr);
    results.insert(std::bit_cast<uint32_t>(out.Values()[0]));
  }
  EXPECT_GT(results.size(), 1u);
}

TEST(KernelRun, RaceShowsUnderSomeOrdersOnly) {
  int right = 0;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    SetSeed(seed);
    const DeviceArray<int> out(std::vector<int>{-1, 0});
    ASSERT_EQ(LaunchNeighbor({out.data()}, nullptr), nullptr);
    right += out.Values()[0];
  }
  EXPECT_GT(right, 0);
  EXPECT_LT(right, kSeeds);
}

TEST(KernelRun, SomeOrdersLetAWarpRunAheadAndSomeKeepThemClose) {
  std::set<int> ahead;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    SetSeed(seed);
    const DeviceArray<int> passed(std::vector<int>{0}), out(4);
    ASSERT_EQ(LaunchAhead({passed.data(), out.data()}, nullptr), nullptr);
    const std::vector<int> values = out.Values();
    ahead.insert(*std::max_element(values.begin(), values.end()));
  }
  EXPECT_TRUE(ahead.contains(0)) << "all warps came before one had passed";
  EXPECT_GT(*ahead.rbegin(), 0) << "a warp passed before another one came";
}

TEST(KernelRun, WhatIsUnknownIsNotANumber) {
  const DeviceArray<uint32_t> in(std::vector<uint32_t>{9, 9, 9, 9});
  const DeviceArray<uint32_t> out(6);
  ASSERT_EQ(LaunchUnknown({in.data(), out.data()}, 2, nullptr), nullptr);
  EXPECT_EQ(out.Values(), (std::vector<uint32_t>{~0u, ~0u, 9, ~0u, ~0u, 9}));
}

TEST(KernelRun, DeadlockNamesWhoWaitsWhere) {
  EXPECT_EQ(FaultOf(MissingArgs::kNone), "");
  EXPECT_THAT(FaultOf(MissingArgs::kThreadEnds),
              AllOf(HasSubstr("kernel of c3po::host_cuda::MissingArgs, block (0, 0, 0) of (1, 1, 1), seed "),
                    HasSubstr("deadlock: threads 0-39, 41-63 at SyncBlock ("), HasSubstr("trial_kernels.cu:"),
                    HasSubstr("); threads 40 ended")));
  EXPECT_THAT(FaultOf(MissingArgs::kLaneEnds),
              HasSubstr("deadlock: threads 0-31, 35 ended; threads 32-34, 36-63 at ShuffleXor ("));
  EXPECT_THAT(FaultOf(MissingArgs::kBranches), AllOf(HasSubstr("deadlock: threads 0-15, 32-47 at SyncBlock ("),
                                                     HasSubstr("threads 16-31, 48-63 at SyncBlock (")));
  EXPECT_THAT(FaultOf(MissingArgs::kDifferentCollectives),
              AllOf(HasSubstr("threads 0-15, 32-47 at Ballot ("), HasSubstr("threads 16-31, 48-63 at Shuffle (")));
  EXPECT_THAT(FaultOf(MissingArgs::kBarrierOrWarp),
              AllOf(HasSubstr("threads 0-4, 6-63 at SyncBlock ("), HasSubstr("threads 5 at SyncWarp (")));
}

}  // namespace
}  // namespace c3po::host_cuda
