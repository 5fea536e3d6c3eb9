#include "tests/host_cuda/runtime.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "tests/host_cuda/trial_kernels.h"

namespace c3po::host_cuda {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;
using Schedule = HostRuntime::Schedule;

constexpr int kSeeds = 20;
constexpr int kNumbers = 100;
constexpr int64_t kBytes = kNumbers * sizeof(float);

#define ASSERT_FINE(call) ASSERT_STREQ((call), nullptr)
#define EXPECT_FINE(call) EXPECT_STREQ((call), nullptr)

// A runtime with a stream, 100 floats on the device and two times 100 in pinned memory.
struct Trial {
  explicit Trial(Schedule schedule = Schedule::kDrawn) : runtime({.schedule = schedule}) {
    EXPECT_FINE(runtime.NewStream(&stream));
    void* memory = nullptr;
    EXPECT_FINE(runtime.Allocate(kBytes, &memory));
    device = static_cast<float*>(memory);
    EXPECT_FINE(runtime.AllocatePinned(kBytes, &memory));
    in = static_cast<float*>(memory);
    EXPECT_FINE(runtime.AllocatePinned(kBytes, &memory));
    out = static_cast<float*>(memory);
  }

  // out = in + 1, once it has run.
  void EnqueueAll() {
    EXPECT_FINE(runtime.CopyToDevice(stream, device, in, kBytes));
    EXPECT_FINE(LaunchAddOne({device, kNumbers}, stream));
    EXPECT_FINE(runtime.CopyToHost(stream, out, device, kBytes));
  }
  std::vector<float> Out() const { return std::vector<float>(out, out + kNumbers); }

  HostRuntime runtime;
  cuda::Stream stream = nullptr;
  float* device = nullptr;
  float* in = nullptr;
  float* out = nullptr;
};

TEST(HostRuntime, MemoryIsNotANumberUntilItIsWritten) {
  Trial trial;
  EXPECT_TRUE(std::all_of(trial.device, trial.device + kNumbers, [](float x) { return std::isnan(x); }));
  EXPECT_TRUE(std::all_of(trial.in, trial.in + kNumbers, [](float x) { return std::isnan(x); }));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(trial.device) % 256, 0u);
}

TEST(HostRuntime, StreamRunsInOrderUnderEverySchedule) {
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    SetSeed(seed);
    Trial trial;
    for (int round = 0; round < 3; ++round) {
      std::fill_n(trial.in, kNumbers, static_cast<float>(round));
      trial.EnqueueAll();
      ASSERT_FINE(trial.runtime.Synchronize(trial.stream));
      EXPECT_THAT(trial.Out(), Each(static_cast<float>(round + 1))) << "seed " << seed;
    }
  }
}

TEST(HostRuntime, PinnedMemoryOverwrittenTooEarlyShows) {
  std::set<float> results;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    SetSeed(seed);
    Trial trial;
    std::fill_n(trial.in, kNumbers, 1.0f);
    trial.EnqueueAll();
    std::fill_n(trial.in, kNumbers, 5.0f);
    ASSERT_FINE(trial.runtime.Synchronize(trial.stream));
    results.insert(trial.out[0]);
  }
  EXPECT_EQ(results, (std::set<float>{2, 6}));
}

TEST(HostRuntime, ResultReadBeforeTheWaitIsNotANumber) {
  Trial trial(Schedule::kLate);
  std::fill_n(trial.in, kNumbers, 1.0f);
  std::fill_n(trial.out, kNumbers, 2.0f);  // as of a step before
  trial.EnqueueAll();
  EXPECT_TRUE(std::isnan(trial.out[0]));
  ASSERT_FINE(trial.runtime.Synchronize(trial.stream));
  EXPECT_EQ(trial.out[0], 2.0f);
}

TEST(HostRuntime, TargetThatOtherWorkIsStillToReadKeepsItsValues) {
  Trial trial(Schedule::kLate);
  std::fill_n(trial.in, kNumbers, 1.0f);
  ASSERT_FINE(trial.runtime.CopyToDevice(trial.stream, trial.device, trial.in, kBytes));
  ASSERT_FINE(trial.runtime.CopyToHost(trial.stream, trial.in, trial.device, kBytes));
  ASSERT_FINE(trial.runtime.Synchronize(trial.stream));
  EXPECT_EQ(trial.in[0], 1.0f);
}

// The second stream copies what the first one made; `waits`: after an event.
float ResultAcrossStreams(uint64_t seed, bool waits) {
  SetSeed(seed);
  Trial trial;
  cuda::Stream second = nullptr;
  cuda::Event event = nullptr;
  EXPECT_FINE(trial.runtime.NewStream(&second));
  EXPECT_FINE(trial.runtime.NewEvent(&event, false));
  std::fill_n(trial.in, kNumbers, 1.0f);
  EXPECT_FINE(trial.runtime.CopyToDevice(trial.stream, trial.device, trial.in, kBytes));
  EXPECT_FINE(LaunchAddOne({trial.device, kNumbers}, trial.stream));
  EXPECT_FINE(trial.runtime.Record(trial.stream, event));
  if (waits) {
    EXPECT_FINE(trial.runtime.WaitFor(second, event));
  }
  EXPECT_FINE(trial.runtime.CopyToHost(second, trial.out, trial.device, kBytes));
  EXPECT_FINE(trial.runtime.Synchronize(second));
  return trial.out[0];
}

TEST(HostRuntime, EventOrdersTwoStreamsAndItsLackShows) {
  int right = 0;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    EXPECT_EQ(ResultAcrossStreams(seed, true), 2.0f) << "seed " << seed;
    right += ResultAcrossStreams(seed, false) == 2.0f;
  }
  EXPECT_GT(right, 0);
  EXPECT_LT(right, kSeeds);
}

TEST(HostRuntime, WaitForAnEventRunsNoMoreThanIsBeforeIt) {
  Trial trial(Schedule::kLate);
  cuda::Event event = nullptr;
  ASSERT_FINE(trial.runtime.NewEvent(&event, false));
  ASSERT_FINE(trial.runtime.Synchronize(event));  // never recorded
  std::fill_n(trial.in, kNumbers, 1.0f);
  trial.EnqueueAll();
  ASSERT_FINE(trial.runtime.Record(trial.stream, event));
  ASSERT_FINE(LaunchAddOne({trial.device, kNumbers}, trial.stream));
  ASSERT_FINE(trial.runtime.Synchronize(event));
  EXPECT_EQ(trial.out[0], 2.0f);
  EXPECT_EQ(trial.device[0], 2.0f);
  ASSERT_FINE(trial.runtime.Synchronize(trial.stream));
  EXPECT_EQ(trial.device[0], 3.0f);
}

TEST(HostRuntime, EventRecordedAgainIsTheLaterOne) {
  Trial trial(Schedule::kLate);
  cuda::Event event = nullptr;
  ASSERT_FINE(trial.runtime.NewEvent(&event, false));
  ASSERT_FINE(trial.runtime.Fill(trial.stream, trial.device, 0, kBytes));
  ASSERT_FINE(trial.runtime.Record(trial.stream, event));
  ASSERT_FINE(LaunchAddOne({trial.device, kNumbers}, trial.stream));
  ASSERT_FINE(trial.runtime.Record(trial.stream, event));
  ASSERT_FINE(trial.runtime.Synchronize(event));
  EXPECT_EQ(trial.device[0], 1.0f);
}

TEST(HostRuntime, GraphReadsWhatLiesThereAtEachLaunch) {
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    SetSeed(seed);
    Trial trial;
    std::fill_n(trial.in, kNumbers, 7.0f);
    ASSERT_FINE(trial.runtime.BeginRecording(trial.stream));
    trial.EnqueueAll();
    cuda::Graph graph = nullptr;
    ASSERT_FINE(trial.runtime.EndRecording(trial.stream, &graph));
    ASSERT_FINE(trial.runtime.Synchronize(trial.stream));
    EXPECT_TRUE(std::isnan(trial.out[0])) << "recorded work is not run";
    for (int step = 0; step < 3; ++step) {
      std::fill_n(trial.in, kNumbers, static_cast<float>(step));
      ASSERT_FINE(trial.runtime.Launch(trial.stream, graph));
      ASSERT_FINE(trial.runtime.Synchronize(trial.stream));
      EXPECT_THAT(trial.Out(), Each(static_cast<float>(step + 1)));
    }
  }
}

TEST(HostRuntime, CountsWhatAStepAsks) {
  Trial trial;
  std::fill_n(trial.in, kNumbers, 1.0f);
  const RuntimeCounts made = trial.runtime.counts();
  EXPECT_EQ(made.allocations, 3);
  trial.EnqueueAll();
  ASSERT_FINE(trial.runtime.Synchronize(trial.stream));
  std::vector<float> pageable(kNumbers);
  ASSERT_FINE(trial.runtime.CopyToHost(trial.stream, pageable.data(), trial.device, kBytes));
  RuntimeCounts step = trial.runtime.counts() - made;
  EXPECT_EQ(step.kernels, 1);
  EXPECT_EQ(step.copies_to_device, 1);
  EXPECT_EQ(step.bytes_to_device, kBytes);
  EXPECT_EQ(step.copies_to_host, 2);
  EXPECT_EQ(step.bytes_to_host, 2 * kBytes);
  EXPECT_EQ(step.pageable_copies, 1);
  EXPECT_EQ(step.waits, 1);
  EXPECT_EQ(step.allocations, 0);

  ASSERT_FINE(trial.runtime.BeginRecording(trial.stream));
  trial.EnqueueAll();
  ASSERT_FINE(LaunchAddOne({trial.device, 3}, trial.stream));
  cuda::Graph graph = nullptr;
  ASSERT_FINE(trial.runtime.EndRecording(trial.stream, &graph));
  const RuntimeCounts recorded = trial.runtime.counts();
  EXPECT_EQ((recorded - made - step).recordings, 1);
  EXPECT_EQ((recorded - made - step).copies_to_device, 0);
  for (int i = 0; i < 2; ++i) ASSERT_FINE(trial.runtime.Launch(trial.stream, graph));
  ASSERT_FINE(trial.runtime.Free(trial.device));
  step = trial.runtime.counts() - recorded;
  EXPECT_EQ(step.kernels, 0);
  EXPECT_EQ(step.graph_launches, 2);
  EXPECT_EQ(step.graph_kernels, 4);
  EXPECT_EQ(step.copies_to_device, 2);
  EXPECT_EQ(step.device_waits, 1);
  EXPECT_EQ(trial.runtime.LaunchesByKernel(), (std::map<std::string, int64_t>{{"c3po::host_cuda::AddOneArgs", 5}}));
}

TEST(HostRuntime, WorkOutlivesItsHandles) {
  Trial trial(Schedule::kLate);
  std::fill_n(trial.in, kNumbers, 1.0f);
  cuda::Stream second = nullptr;
  cuda::Event event = nullptr;
  cuda::Graph graph = nullptr;
  ASSERT_FINE(trial.runtime.NewStream(&second));
  ASSERT_FINE(trial.runtime.NewEvent(&event, false));
  ASSERT_FINE(trial.runtime.BeginRecording(second));
  ASSERT_FINE(trial.runtime.CopyToDevice(second, trial.device, trial.in, kBytes));
  ASSERT_FINE(trial.runtime.EndRecording(second, &graph));
  ASSERT_FINE(trial.runtime.Launch(second, graph));
  ASSERT_FINE(trial.runtime.DeleteGraph(graph));
  ASSERT_FINE(trial.runtime.Record(second, event));
  ASSERT_FINE(trial.runtime.WaitFor(trial.stream, event));
  ASSERT_FINE(trial.runtime.DeleteEvent(event));
  ASSERT_FINE(trial.runtime.DeleteStream(second));
  ASSERT_FINE(trial.runtime.CopyToHost(trial.stream, trial.out, trial.device, kBytes));
  ASSERT_FINE(trial.runtime.Synchronize(trial.stream));
  EXPECT_EQ(trial.out[0], 1.0f);
}

TEST(HostRuntime, TwoThreadsHaveStreamsOfTheirOwn) {
  Trial trial;
  const auto work = [&trial] {
    cuda::Stream stream = nullptr;
    void* memory = nullptr;
    EXPECT_FINE(trial.runtime.NewStream(&stream));
    EXPECT_FINE(trial.runtime.Allocate(kBytes, &memory));
    EXPECT_FINE(trial.runtime.Fill(stream, memory, 0, kBytes));
    for (int i = 0; i < 50; ++i) EXPECT_FINE(LaunchAddOne({static_cast<float*>(memory), kNumbers}, stream));
    std::vector<float> values(kNumbers);
    EXPECT_FINE(trial.runtime.CopyToHost(stream, values.data(), memory, kBytes));
    EXPECT_FINE(trial.runtime.Synchronize(stream));
    EXPECT_THAT(values, Each(50.0f));
  };
  std::thread other(work);
  work();
  other.join();
}

TEST(HostRuntime, EndsWithNothingAlive) {
  HostRuntime runtime;
  void *device = nullptr, *pinned = nullptr;
  cuda::Stream stream = nullptr;
  cuda::Event event = nullptr;
  ASSERT_FINE(runtime.Allocate(10, &device));
  ASSERT_FINE(runtime.AllocatePinned(10, &pinned));
  ASSERT_FINE(runtime.NewStream(&stream));
  ASSERT_FINE(runtime.NewEvent(&event, false));
  EXPECT_EQ(runtime.Alive(), "1 allocations of device memory, 1 allocations of pinned memory, 1 streams, 1 events");
  ASSERT_FINE(runtime.Free(device));
  ASSERT_FINE(runtime.FreePinned(pinned));
  ASSERT_FINE(runtime.DeleteStream(stream));
  ASSERT_FINE(runtime.DeleteEvent(event));
  EXPECT_EQ(runtime.Alive(), "");
}

}  // namespace
}  // namespace c3po::host_cuda
