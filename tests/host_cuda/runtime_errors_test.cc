// What a GPU's runtime would refuse comes as its error; what it would get wrong throws.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "tests/host_cuda/runtime.h"
#include "tests/host_cuda/trial_kernels.h"

namespace c3po::host_cuda {
namespace {

using ::testing::HasSubstr;
using Schedule = HostRuntime::Schedule;

constexpr int kNumbers = 64;
constexpr int64_t kBytes = kNumbers * sizeof(float);
constexpr char kWhileRecording[] = "operation not permitted when stream is capturing";

class HostRuntimeErrors : public ::testing::Test {
 protected:
  HostRuntimeErrors() {
    EXPECT_STREQ(runtime_.NewStream(&stream_), nullptr);
    EXPECT_STREQ(runtime_.NewStream(&second_), nullptr);
    EXPECT_STREQ(runtime_.NewEvent(&event_, false), nullptr);
    EXPECT_STREQ(runtime_.Allocate(kBytes, &device_), nullptr);
    EXPECT_STREQ(runtime_.AllocatePinned(kBytes, &pinned_), nullptr);
  }

  static std::string MisuseOf(const std::function<void()>& call) {
    try {
      call();
    } catch (const RuntimeMisuse& misuse) {
      return misuse.what();
    }
    return "";
  }

  // A recording fails where `call` is made, and where it ends.
  void ExpectRefusedInARecording(const std::function<cuda::Error()>& call, const char* error) {
    ASSERT_STREQ(runtime_.BeginRecording(stream_), nullptr);
    EXPECT_STREQ(call(), error);
    EXPECT_STREQ(runtime_.CopyToDevice(stream_, device_, pinned_, kBytes), error);
    cuda::Graph graph = nullptr;
    EXPECT_STREQ(runtime_.EndRecording(stream_, &graph), error);
    EXPECT_EQ(graph, nullptr);
  }

  void* Behind(void* memory) const { return static_cast<std::byte*>(memory) + 1; }

  HostRuntime runtime_{{.memory_bytes = 1 << 20, .schedule = Schedule::kLate}};
  cuda::Stream stream_ = nullptr, second_ = nullptr;
  cuda::Event event_ = nullptr;
  void* device_ = nullptr;
  void* pinned_ = nullptr;
};

TEST_F(HostRuntimeErrors, MemoryIsAsMuchAsThereIs) {
  void* memory = this;
  EXPECT_STREQ(runtime_.Allocate(0, &memory), "allocation of no bytes");
  EXPECT_EQ(memory, nullptr);
  EXPECT_STREQ(runtime_.Allocate((1 << 20) - kBytes + 1, &memory), "allocation: out of memory");
  int64_t free_bytes = 0, total_bytes = 0;
  ASSERT_STREQ(runtime_.MemoryInfo(&free_bytes, &total_bytes), nullptr);
  EXPECT_EQ(free_bytes, (1 << 20) - kBytes);
  EXPECT_EQ(total_bytes, 1 << 20);
  ASSERT_STREQ(runtime_.Allocate(free_bytes, &memory), nullptr);
}

TEST_F(HostRuntimeErrors, RecordingTakesNoAllocationNorWait) {
  void* memory = nullptr;
  ExpectRefusedInARecording([&] { return runtime_.Allocate(16, &memory); }, kWhileRecording);
  ExpectRefusedInARecording([&] { return runtime_.AllocatePinned(16, &memory); }, kWhileRecording);
  ExpectRefusedInARecording([&] { return runtime_.Free(device_); }, kWhileRecording);
  ExpectRefusedInARecording([&] { return runtime_.FreePinned(pinned_); }, kWhileRecording);
  ExpectRefusedInARecording([&] { return runtime_.Synchronize(stream_); }, kWhileRecording);
  ExpectRefusedInARecording([&] { return runtime_.Synchronize(second_); }, kWhileRecording);
  ExpectRefusedInARecording([&] { return runtime_.Synchronize(event_); }, kWhileRecording);
}

TEST_F(HostRuntimeErrors, RecordingDependsOnNothingOutside) {
  ASSERT_STREQ(runtime_.Record(second_, event_), nullptr);
  ExpectRefusedInARecording([&] { return runtime_.WaitFor(stream_, event_); },
                            "dependency created on uncaptured work in another stream");
}

TEST_F(HostRuntimeErrors, RecordingTakesPinnedMemoryOnly) {
  std::vector<float> pageable(kNumbers);
  ASSERT_STREQ(runtime_.BeginRecording(stream_), nullptr);
  EXPECT_STREQ(runtime_.CopyToDevice(stream_, device_, pageable.data(), kBytes),
               "host memory of a recorded copy is not pinned");
  EXPECT_STREQ(runtime_.CopyToHost(stream_, pageable.data(), device_, kBytes),
               "host memory of a recorded copy is not pinned");
  EXPECT_EQ(runtime_.counts().pageable_copies, 0);
}

TEST_F(HostRuntimeErrors, OtherThreadsAllocateAndWaitBesideARecording) {
  ASSERT_STREQ(runtime_.BeginRecording(stream_), nullptr);
  std::thread([&] {
    void* memory = nullptr;
    EXPECT_STREQ(runtime_.Allocate(16, &memory), nullptr);
    EXPECT_STREQ(runtime_.Synchronize(second_), nullptr);
  }).join();
  cuda::Graph graph = nullptr;
  EXPECT_STREQ(runtime_.EndRecording(stream_, &graph), nullptr);
}

TEST_F(HostRuntimeErrors, RecordingBeginsAndEndsOnce) {
  cuda::Graph graph = nullptr;
  EXPECT_STREQ(runtime_.EndRecording(stream_, &graph), "the stream is not recorded");
  ASSERT_STREQ(runtime_.BeginRecording(stream_), nullptr);
  EXPECT_STREQ(runtime_.BeginRecording(stream_), kWhileRecording);
  EXPECT_THAT(MisuseOf([&] { static_cast<void>(runtime_.BeginRecording(second_)); }), HasSubstr("two streams at once"));
  ASSERT_STREQ(runtime_.Record(stream_, event_), nullptr);
  EXPECT_THAT(MisuseOf([&] { static_cast<void>(runtime_.WaitFor(second_, event_)); }), HasSubstr("join a recording"));
  EXPECT_STREQ(runtime_.WaitFor(stream_, event_), nullptr);
  EXPECT_THAT(MisuseOf([&] { static_cast<void>(runtime_.DeleteStream(stream_)); }), HasSubstr("while it is recorded"));
  ASSERT_STREQ(runtime_.EndRecording(stream_, &graph), nullptr);
  EXPECT_STREQ(runtime_.Synchronize(event_), "operation not permitted on an event last recorded in a capturing stream");
}

TEST_F(HostRuntimeErrors, EventsWithoutTimesHaveNone) {
  float milliseconds = 0;
  cuda::Event begin = nullptr, end = nullptr;
  ASSERT_STREQ(runtime_.NewEvent(&begin, true), nullptr);
  ASSERT_STREQ(runtime_.NewEvent(&end, true), nullptr);
  ASSERT_STREQ(runtime_.Record(stream_, begin), nullptr);
  EXPECT_STREQ(runtime_.Milliseconds(begin, end, &milliseconds), "invalid resource handle");  // never recorded
  ASSERT_STREQ(runtime_.Record(stream_, end), nullptr);
  EXPECT_STREQ(runtime_.Milliseconds(begin, end, &milliseconds), "device not ready");
  ASSERT_STREQ(runtime_.Synchronize(end), nullptr);
  EXPECT_STREQ(runtime_.Milliseconds(begin, end, &milliseconds), nullptr);
  EXPECT_GE(milliseconds, 0.0f);
  EXPECT_STREQ(runtime_.Milliseconds(event_, end, &milliseconds), "invalid resource handle");
}

TEST_F(HostRuntimeErrors, RangesStayWithinTheirAllocation) {
  const auto misuse = [&](void* device, void* host, int64_t bytes) {
    return MisuseOf([&] { static_cast<void>(runtime_.CopyToDevice(stream_, device, host, bytes)); });
  };
  EXPECT_EQ(misuse(device_, pinned_, kBytes), "");
  EXPECT_EQ(misuse(Behind(device_), pinned_, kBytes - 1), "");
  EXPECT_EQ(misuse(Behind(device_), pinned_, kBytes), "copy to the device of bytes 1 to 257 of an allocation of 256");
  EXPECT_EQ(misuse(device_, Behind(pinned_), kBytes), "copy of bytes 1 to 257 of an allocation of 256");
  EXPECT_EQ(misuse(pinned_, pinned_, 1), "copy to the device: not device memory");
  EXPECT_EQ(misuse(device_, device_, 1), "device memory as the host's end of a copy");
  EXPECT_EQ(misuse(device_, nullptr, 1), "a copy of no host memory");
  EXPECT_EQ(misuse(device_, pinned_, -1), "copy to the device of -1 bytes");
  EXPECT_EQ(MisuseOf([&] { static_cast<void>(runtime_.CopyToHost(stream_, pinned_, Behind(device_), kBytes)); }),
            "copy to the host of bytes 1 to 257 of an allocation of 256");
  EXPECT_EQ(MisuseOf([&] { static_cast<void>(runtime_.Fill(stream_, Behind(device_), 0, kBytes)); }),
            "fill of bytes 1 to 257 of an allocation of 256");
  EXPECT_EQ(MisuseOf([&] { static_cast<void>(runtime_.CopyOnDevice(stream_, Behind(device_), device_, 2)); }),
            "a copy on the device to where it overlaps itself");
}

TEST_F(HostRuntimeErrors, GraphOutlivingItsMemoryIsNoticed) {
  cuda::Graph graph = nullptr;
  ASSERT_STREQ(runtime_.BeginRecording(stream_), nullptr);
  ASSERT_STREQ(runtime_.CopyToDevice(stream_, device_, pinned_, kBytes), nullptr);
  ASSERT_STREQ(runtime_.EndRecording(stream_, &graph), nullptr);
  ASSERT_STREQ(runtime_.Free(device_), nullptr);
  ASSERT_STREQ(runtime_.Launch(stream_, graph), nullptr);
  EXPECT_EQ(MisuseOf([&] { static_cast<void>(runtime_.Synchronize(stream_)); }),
            "copy to the device: not device memory");
}

TEST_F(HostRuntimeErrors, HandlesAndMemoryAreNotUsedAfterTheirEnd) {
  ASSERT_STREQ(runtime_.DeleteStream(second_), nullptr);
  EXPECT_EQ(MisuseOf([&] { static_cast<void>(runtime_.Synchronize(second_)); }), "a stream after its end");
  EXPECT_EQ(MisuseOf([&] { static_cast<void>(LaunchAddOne({nullptr, 0}, second_)); }), "a stream after its end");
  EXPECT_EQ(MisuseOf([&] { static_cast<void>(runtime_.Synchronize(cuda::Stream{nullptr})); }),
            "no stream of this runtime");
  ASSERT_STREQ(runtime_.DeleteEvent(event_), nullptr);
  EXPECT_EQ(MisuseOf([&] { static_cast<void>(runtime_.DeleteEvent(event_)); }), "an event after its end");
  EXPECT_EQ(MisuseOf([&] { static_cast<void>(runtime_.Free(Behind(device_))); }),
            "free of an address that is no allocation of device memory");
  ASSERT_STREQ(runtime_.Free(device_), nullptr);
  EXPECT_EQ(MisuseOf([&] { static_cast<void>(runtime_.Free(device_)); }),
            "free of an address that is no allocation of device memory");
}

TEST_F(HostRuntimeErrors, PinnedMemoryOutlivesItsCopies) {
  ASSERT_STREQ(runtime_.CopyToDevice(stream_, device_, pinned_, kBytes), nullptr);
  EXPECT_THAT(MisuseOf([&] { static_cast<void>(runtime_.FreePinned(pinned_)); }),
              HasSubstr("before a copy that was enqueued"));
  ASSERT_STREQ(runtime_.Synchronize(stream_), nullptr);
  EXPECT_STREQ(runtime_.FreePinned(pinned_), nullptr);
}

TEST_F(HostRuntimeErrors, LaunchThatCannotBeIsRefused) {
  EXPECT_STREQ(LaunchAddOne({nullptr, 0}, stream_), "invalid configuration argument");  // no block
  EXPECT_THROW(static_cast<void>(LaunchAddOne({nullptr, 1}, nullptr)), KernelFault);
}

TEST_F(HostRuntimeErrors, FaultOfAKernelEndsTheDevice) {
  ASSERT_STREQ(LaunchMissing({MissingArgs::kLaneEnds}, stream_), nullptr);
  EXPECT_THROW(static_cast<void>(runtime_.Synchronize(stream_)), KernelFault);
  EXPECT_STREQ(runtime_.Synchronize(stream_), "unspecified launch failure");
  void* memory = nullptr;
  EXPECT_STREQ(runtime_.Allocate(16, &memory), "unspecified launch failure");
}

TEST_F(HostRuntimeErrors, DeviceBreaksWhereItIsTold) {
  auto* const numbers = static_cast<float*>(device_);
  ASSERT_STREQ(runtime_.Fill(stream_, device_, 0, kBytes), nullptr);
  runtime_.BreakAfter(2, "an illegal memory access was encountered");
  for (int i = 0; i < 5; ++i) ASSERT_STREQ(LaunchAddOne({numbers, kNumbers}, stream_), nullptr);
  EXPECT_STREQ(runtime_.Synchronize(stream_), "an illegal memory access was encountered");
  EXPECT_EQ(numbers[0], 1.0f);
  EXPECT_STREQ(LaunchAddOne({numbers, kNumbers}, stream_), "an illegal memory access was encountered");
  EXPECT_STREQ(runtime_.DeleteStream(stream_), "an illegal memory access was encountered");
}

#ifndef __SANITIZE_ADDRESS__  // which reports it where it is done
TEST_F(HostRuntimeErrors, WriteBehindAnAllocationIsFoundAtTheNextWait) {
  ASSERT_STREQ(LaunchAddOne({static_cast<float*>(device_), kNumbers + 1}, stream_), nullptr);
  EXPECT_EQ(MisuseOf([&] { static_cast<void>(runtime_.Synchronize(stream_)); }),
            "byte 256 of device memory of 256 bytes was written");
}
#endif

}  // namespace
}  // namespace c3po::host_cuda
