// Kernels that may start before the one in front has ended: what they touch before they wait for it shows.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "tests/host_cuda/runtime.h"
#include "tests/host_cuda/trial_kernels.h"

namespace c3po::host_cuda {
namespace {

using When = EarlyCopyArgs::When;

constexpr int kSeeds = 20;
constexpr int kNumbers = 256;
constexpr int64_t kBytes = kNumbers * sizeof(float);

class EarlyLaunch : public ::testing::TestWithParam<bool> {
 protected:
  // x = 1, y = x, x += 1, z = x, x = z, each a kernel's; the copies are launched early. Recorded, or one by one.
  static std::vector<float> Chain(uint64_t seed, When when) {
    SetSeed(seed);
    HostRuntime runtime;
    cuda::Stream stream = nullptr;
    void* memory = nullptr;
    EXPECT_STREQ(runtime.NewStream(&stream), nullptr);
    EXPECT_STREQ(runtime.Allocate(3 * kBytes, &memory), nullptr);
    auto* const x = static_cast<float*>(memory);
    float *const y = x + kNumbers, *const z = y + kNumbers;
    EXPECT_STREQ(runtime.Fill(stream, x, 0, 3 * kBytes), nullptr);
    EXPECT_STREQ(LaunchAddOne({x, kNumbers}, stream), nullptr);
    if (GetParam()) {
      EXPECT_STREQ(runtime.BeginRecording(stream), nullptr);
    }
    EXPECT_STREQ(LaunchEarlyCopy({When::kAfter, x, y}, stream), nullptr);
    EXPECT_STREQ(LaunchAddOne({x, kNumbers}, stream), nullptr);
    EXPECT_STREQ(LaunchEarlyCopy({when, x, z}, stream), nullptr);
    EXPECT_STREQ(LaunchEarlyCopy({when, z, x}, stream), nullptr);
    if (GetParam()) {
      cuda::Graph graph = nullptr;
      EXPECT_STREQ(runtime.EndRecording(stream, &graph), nullptr);
      EXPECT_STREQ(runtime.Launch(stream, graph), nullptr);
    }
    std::vector<float> values(3 * kNumbers);
    EXPECT_STREQ(runtime.CopyToHost(stream, values.data(), x, 3 * kBytes), nullptr);
    EXPECT_STREQ(runtime.Synchronize(stream), nullptr);
    return values;
  }

  static std::vector<float> Right() {
    std::vector<float> values(3 * kNumbers, 2.0f);
    std::fill_n(values.begin() + kNumbers, kNumbers, 1.0f);
    return values;
  }

  static int RightOnes(When when) {
    int right = 0;
    for (uint64_t seed = 0; seed < kSeeds; ++seed) right += Chain(seed, when) == Right();
    return right;
  }
};

TEST_P(EarlyLaunch, WhatComesAfterTheWaitIsRightUnderEverySeed) { EXPECT_EQ(RightOnes(When::kAfter), kSeeds); }

TEST_P(EarlyLaunch, WhatIsReadBeforeTheWaitShows) {
  EXPECT_LT(RightOnes(When::kReadsBefore), kSeeds);
  EXPECT_LT(RightOnes(When::kCopiesAsyncBefore), kSeeds);
}

TEST_P(EarlyLaunch, WhatIsWrittenBeforeTheWaitShows) { EXPECT_LT(RightOnes(When::kWritesBefore), kSeeds); }

INSTANTIATE_TEST_SUITE_P(OneByOneAndRecorded, EarlyLaunch, ::testing::Bool());

}  // namespace
}  // namespace c3po::host_cuda
