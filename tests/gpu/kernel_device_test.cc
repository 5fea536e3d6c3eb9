// The memory that the kernels' tests have on a GPU (kernel_device_on_gpu.cc), on the runtime of the host model.

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/gpu/kernel_device_on_gpu.h"
#include "tests/gpu/runtime_contract.h"
#include "tests/host_cuda/device_array.h"
#include "tests/host_cuda/fault_kernels.h"
#include "tests/host_cuda/runtime.h"

namespace c3po {

cuda::Runtime* OpenTestedRuntime(std::string*) {
  static auto* const runtime = new host_cuda::HostRuntime();
  return runtime;
}

namespace host_cuda {
namespace {

TEST(KernelDevice, MemoryIsUnknownUntilItIsWritten) {
  EXPECT_EQ(DeviceArray<uint32_t>(1000).Values(), std::vector<uint32_t>(1000, ~0u));
  EXPECT_EQ(DeviceArray<uint32_t>(1000).Values(), UnknownValues<uint32_t>(1000));
  std::vector<uint64_t> numbers(777);
  std::iota(numbers.begin(), numbers.end(), 1u);
  const DeviceArray<uint64_t> array(numbers);
  EXPECT_EQ(array.Values(), numbers);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(static_cast<uint64_t*>(array.data())) % 256, 0u);
  EXPECT_TRUE(DeviceArray<float>(std::vector<float>{}).Values().empty());
}

TEST(KernelDevice, WhatAKernelWritesIsReadAndAByteTooMuchIsFound) {
  constexpr size_t kBytes = 64;
  const DeviceArray<unsigned char> memory(kBytes);
  ASSERT_STREQ(LaunchFault({FaultArgs::kMemoryByteTooMuch, memory.data(), kBytes - 1}, TestedStream()), nullptr);
  EXPECT_EQ(memory.Values().back(), 1);
  ASSERT_STREQ(LaunchFault({FaultArgs::kMemoryByteTooMuch, memory.data(), kBytes + 9}, TestedStream()), nullptr);
  try {
    memory.Values();
    FAIL() << "the byte was not found";
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "byte 9 behind a device array was written");
  }
}

}  // namespace
}  // namespace host_cuda
}  // namespace c3po
