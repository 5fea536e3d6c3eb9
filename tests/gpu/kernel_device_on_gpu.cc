// Where the kernels' own tests find a device when a program runs them on a GPU: its memory (device_array.h), and that
// all of them are skipped where there is none.

#include "tests/gpu/kernel_device_on_gpu.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "tests/gpu/runtime_contract.h"
#include "tests/host_cuda/device_array.h"

namespace c3po::host_cuda {
namespace {

// Behind every piece of memory; a kernel that writes too far changes these.
constexpr size_t kBytesBehind = 256;
constexpr uint8_t kUnknown = 0xff, kBehind = 0xa5;

void Check(cuda::Error error, const char* what) {
  if (error != nullptr) throw std::runtime_error(std::string("device cuda: ") + what + ": " + error);
}

cuda::Runtime& TestedRuntime() {
  static cuda::Runtime* const runtime = [] {
    std::string why;
    cuda::Runtime* const opened = OpenTestedRuntime(&why);
    if (opened == nullptr) throw std::runtime_error(why);
    return opened;
  }();
  return *runtime;
}

void Copied(cuda::Error error, const char* what) {
  Check(error, what);
  Check(TestedRuntime().Synchronize(TestedStream()), what);
}

class SkippedWithoutGpu : public testing::Environment {
 public:
  void SetUp() override {
    std::string why;
    if (OpenTestedRuntime(&why) == nullptr) GTEST_SKIP() << why;
  }
};
[[maybe_unused]] testing::Environment* const environment = testing::AddGlobalTestEnvironment(new SkippedWithoutGpu);

}  // namespace

cuda::Stream TestedStream() {
  static const cuda::Stream stream = [] {
    cuda::Stream made = nullptr;
    Check(TestedRuntime().NewStream(&made), "making a stream");
    return made;
  }();
  return stream;
}

DeviceBytes::DeviceBytes(size_t bytes) : bytes_(bytes) {
  cuda::Runtime& runtime = TestedRuntime();
  Check(runtime.Allocate(static_cast<int64_t>(bytes + kBytesBehind), &memory_), "allocating memory");
  address_ = memory_;
  if (bytes > 0) {
    Check(runtime.Fill(TestedStream(), address_, kUnknown, static_cast<int64_t>(bytes)), "filling memory");
  }
  Copied(runtime.Fill(TestedStream(), static_cast<uint8_t*>(address_) + bytes, kBehind, kBytesBehind),
         "filling memory");
}

DeviceBytes::~DeviceBytes() { EXPECT_STREQ(TestedRuntime().Free(memory_), nullptr); }

void DeviceBytes::Write(const void* from) {
  if (bytes_ == 0) return;
  Copied(TestedRuntime().CopyToDevice(TestedStream(), address_, from, static_cast<int64_t>(bytes_)),
         "copying to the device");
}

void DeviceBytes::Read(void* to) const {
  if (bytes_ == 0) return;
  Copied(TestedRuntime().CopyToHost(TestedStream(), to, address_, static_cast<int64_t>(bytes_)),
         "copying from the device");
}

int DeviceBytes::FirstByteBehind() const {
  uint8_t behind[kBytesBehind];
  Copied(
      TestedRuntime().CopyToHost(TestedStream(), behind, static_cast<const uint8_t*>(address_) + bytes_, kBytesBehind),
      "copying from the device");
  const uint8_t* const end = behind + kBytesBehind;
  const uint8_t* const first =
      std::find_if(static_cast<const uint8_t*>(behind), end, [](uint8_t byte) { return byte != kBehind; });
  return first == end ? -1 : static_cast<int>(first - behind);
}

}  // namespace c3po::host_cuda
