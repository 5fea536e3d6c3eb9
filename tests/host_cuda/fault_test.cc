// What a GPU does not define is reported, each by its words.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "tests/host_cuda/device_array.h"
#include "tests/host_cuda/fault_kernels.h"
#include "tests/host_cuda/kernel_run.h"

namespace c3po::host_cuda {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int kBytes = 32;

std::string FaultOf(FaultArgs::What what, int bytes = 0) {
  const DeviceArray<unsigned char> memory{std::vector<unsigned char>(kBytes)};
  try {
    EXPECT_STREQ(LaunchFault({what, memory.data(), bytes}, nullptr), nullptr);
  } catch (const KernelFault& fault) {
    return fault.what();
  }
  return "";
}

TEST(KernelFaults, NameKernelAndThread) {
  EXPECT_EQ(FaultOf(FaultArgs::kNone), "");
  EXPECT_THAT(FaultOf(FaultArgs::kCopyAtOddAddress),
              AllOf(HasSubstr("kernel of c3po::host_cuda::FaultArgs, block (0, 0, 0) of (1, 1, 1), seed "),
                    HasSubstr(", thread 0: CopyAsync16 at an address that is not 16-byte aligned")));
  EXPECT_THAT(FaultOf(FaultArgs::kCopyFromOddAddress),
              HasSubstr("CopyAsync16 at an address that is not 16-byte aligned"));
  EXPECT_THAT(FaultOf(FaultArgs::kCopyBesideShared),
              HasSubstr("CopyAsync16: not within the block's 64 bytes of shared memory"));
  EXPECT_THAT(FaultOf(FaultArgs::kMatrixBesideShared),
              HasSubstr("LoadMatrices4: not within the block's 64 bytes of shared memory"));
  EXPECT_THAT(FaultOf(FaultArgs::kShuffleByTooMuch), HasSubstr("a shuffle by 32, which is not in 0..31"));
  EXPECT_THAT(FaultOf(FaultArgs::kLoadAtOddAddress), HasSubstr("LoadOnce at an address that is not 16-byte aligned"));
  EXPECT_THAT(FaultOf(FaultArgs::kLaunch), HasSubstr("a kernel launches a kernel"));
}

TEST(KernelFaults, LeaveTheModelWhole) {
  for (int i = 0; i < 3; ++i) {
    EXPECT_NE(FaultOf(FaultArgs::kShuffleByTooMuch), "");
    EXPECT_EQ(FaultOf(FaultArgs::kNone), "");
    EXPECT_STREQ(LaunchBarriers({10}, 1024, nullptr), nullptr);
  }
}

TEST(KernelFaults, ThreadThatWaitsForAnAtomicOfItsBlockGoesOn) { EXPECT_EQ(FaultOf(FaultArgs::kWaitForAtomic), ""); }

TEST(KernelFaults, EarlyKernelsWaitForTheOneBefore) {
  EXPECT_STREQ(LaunchEarlyKernel({true}, nullptr), nullptr);
  EXPECT_THROW(static_cast<void>(LaunchEarlyKernel({false}, nullptr)), KernelFault);
}

TEST(KernelFaults, FunctionsOfKernelsAreOfKernelsOnly) {
  EXPECT_THROW(static_cast<void>(ThreadOutsideOfAKernel()), KernelFault);
}

TEST(KernelFaults, LaunchThatNoGpuTakesIsRefused) {
  EXPECT_STREQ(LaunchShape(1, 1, 1, 32, 0, nullptr), nullptr);
  EXPECT_STREQ(LaunchShape(65537, 1, 1, 32, 0, nullptr), nullptr);
  EXPECT_STREQ(LaunchShape(1, 1, 1, 1024, kSharedBytesMax, nullptr), nullptr);
  EXPECT_STREQ(LaunchShape(1, 1, 1, 1024, kSharedBytesMax + 1, nullptr), "invalid argument");
  EXPECT_STREQ(LaunchShape(1, 1, 1, 32, -1, nullptr), "invalid argument");
  EXPECT_STREQ(LaunchShape(1, 1, 1, 40, 0, nullptr), "a block is not of whole warps");
  EXPECT_STREQ(LaunchShape(1, 1, 1, 0, 0, nullptr), "invalid configuration argument");
  EXPECT_STREQ(LaunchShape(1, 1, 1, 1056, 0, nullptr), "invalid configuration argument");
  EXPECT_STREQ(LaunchShape(0, 1, 1, 32, 0, nullptr), "invalid configuration argument");
  EXPECT_STREQ(LaunchShape(1, 65536, 1, 32, 0, nullptr), "invalid configuration argument");
  EXPECT_STREQ(LaunchShape(1, 1, 65536, 32, 0, nullptr), "invalid configuration argument");
}

TEST(KernelOrders, AreDrawnFromTheSeedAndRepeat) {
  const auto order_of = [](uint64_t seed) {
    SetSeed(seed);
    const DeviceArray<unsigned> next(std::vector<unsigned>{0}), out(64);
    EXPECT_STREQ(LaunchOrder({next.data(), out.data()}, nullptr), nullptr);
    return out.Values();
  };
  std::set<std::vector<unsigned>> orders;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const std::vector<unsigned> order = order_of(seed);
    EXPECT_EQ(order_of(seed), order);
    orders.insert(order);
    EXPECT_EQ(std::set<unsigned>(order.begin(), order.end()).size(), 64u);
  }
  EXPECT_EQ(orders.size(), 20u);
}

TEST(KernelOrders, ThreadsOfTheProcessRunKernelsOfTheirOwn) {
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([] {
      for (int j = 0; j < 5; ++j) EXPECT_STREQ(LaunchBarriers({20}, 256, nullptr), nullptr);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// What one switch takes, for people; nothing is decided by it.
TEST(KernelOrders, SwitchesAreFast) {
  constexpr int kBarriers = 100, kThreads = 256;
  ASSERT_STREQ(LaunchBarriers({1}, kThreads, nullptr), nullptr);  // touches the stacks
  const auto start = std::chrono::steady_clock::now();
  ASSERT_STREQ(LaunchBarriers({kBarriers}, kThreads, nullptr), nullptr);
  const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - start;
  RecordProperty("nanoseconds_of_a_switch", static_cast<int>(took.count() / (kBarriers * kThreads)));
  std::printf("%.0f ns a switch\n", took.count() / (kBarriers * kThreads));
}

#ifdef __SANITIZE_ADDRESS__
TEST(KernelFaultsDeathTest, AddressSanitizerSeesTheFirstByteTooMuch) {
  EXPECT_DEATH(FaultOf(FaultArgs::kSharedByteTooMuch), "heap-buffer-overflow");
  EXPECT_DEATH(FaultOf(FaultArgs::kSharedReadTooMuch), "heap-buffer-overflow");
  EXPECT_DEATH(FaultOf(FaultArgs::kMemoryByteTooMuch, kBytes), "heap-buffer-overflow");
}
#else
TEST(KernelFaults, ByteWrittenBehindMemoryIsFound) {
  EXPECT_THAT(FaultOf(FaultArgs::kSharedByteTooMuch), HasSubstr(": byte 64 of 64 bytes of shared memory was written"));
  EXPECT_THAT(FaultOf(FaultArgs::kSharedByteTooMuch, 63),
              HasSubstr(": byte 127 of 64 bytes of shared memory was written"));
  const DeviceArray<unsigned char> memory(kBytes);
  ASSERT_STREQ(LaunchFault({FaultArgs::kMemoryByteTooMuch, memory.data(), kBytes - 1}, nullptr), nullptr);
  EXPECT_EQ(memory.Values().back(), 1);
  ASSERT_STREQ(LaunchFault({FaultArgs::kMemoryByteTooMuch, memory.data(), kBytes}, nullptr), nullptr);
  EXPECT_THROW(static_cast<void>(memory.Values()), std::runtime_error);
}
#endif

}  // namespace
}  // namespace c3po::host_cuda
