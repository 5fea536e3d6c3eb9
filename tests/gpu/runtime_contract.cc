// What index/base/cuda/runtime.h promises, asked of whichever runtime a program opens: the GPU's, or the host model's,
// so that plans which pass on the one find the other the same.

#include "tests/gpu/runtime_contract.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <set>
#include <thread>
#include <vector>

namespace c3po {
namespace {

using cuda::Error;
using cuda::Event;
using cuda::Graph;
using cuda::Runtime;
using cuda::Stream;
using testing::Each;
using testing::IsNull;
using testing::NotNull;

class RuntimeContract : public testing::Test {
 protected:
  void SetUp() override {
    std::string why;
    runtime_ = OpenTestedRuntime(&why);
    if (runtime_ == nullptr) GTEST_SKIP() << why;
  }

  void TearDown() override {
    for (auto release = releases_.rbegin(); release != releases_.rend(); ++release) EXPECT_THAT((*release)(), IsNull());
  }

  Stream NewStream() {
    Stream stream = nullptr;
    EXPECT_THAT(runtime_->NewStream(&stream), IsNull());
    releases_.push_back([this, stream] { return runtime_->DeleteStream(stream); });
    return stream;
  }

  Event NewEvent(bool timed = false) {
    Event event = nullptr;
    EXPECT_THAT(runtime_->NewEvent(&event, timed), IsNull());
    releases_.push_back([this, event] { return runtime_->DeleteEvent(event); });
    return event;
  }

  uint8_t* Device(int64_t bytes) {
    void* memory = nullptr;
    EXPECT_THAT(runtime_->Allocate(bytes, &memory), IsNull());
    EXPECT_THAT(memory, NotNull());
    releases_.push_back([this, memory] { return runtime_->Free(memory); });
    return static_cast<uint8_t*>(memory);
  }

  uint8_t* Pinned(int64_t bytes, uint8_t filled = 0) {
    void* memory = nullptr;
    EXPECT_THAT(runtime_->AllocatePinned(bytes, &memory), IsNull());
    EXPECT_THAT(memory, NotNull());
    releases_.push_back([this, memory] { return runtime_->FreePinned(memory); });
    std::memset(memory, filled, static_cast<size_t>(bytes));
    return static_cast<uint8_t*>(memory);
  }

  Graph EndRecording(Stream stream) {
    Graph graph = nullptr;
    EXPECT_THAT(runtime_->EndRecording(stream, &graph), IsNull());
    EXPECT_THAT(graph, NotNull());
    releases_.push_back([this, graph] { return runtime_->DeleteGraph(graph); });
    return graph;
  }

  static bool Holds(const uint8_t* memory, int64_t bytes, int value) {
    return std::all_of(memory, memory + bytes, [value](uint8_t byte) { return byte == value; });
  }

  // That it works: bytes go to the device and come back.
  void ExpectRoundTrip(Stream stream) {
    constexpr int64_t kBytes = 1000;
    uint8_t* const device = Device(kBytes);
    uint8_t* const in = Pinned(kBytes, 7);
    uint8_t* const out = Pinned(kBytes);
    EXPECT_THAT(runtime_->CopyToDevice(stream, device, in, kBytes), IsNull());
    EXPECT_THAT(runtime_->CopyToHost(stream, out, device, kBytes), IsNull());
    EXPECT_THAT(runtime_->Synchronize(stream), IsNull());
    EXPECT_TRUE(Holds(out, kBytes, 7));
  }

  Runtime* runtime_ = nullptr;
  std::vector<std::function<Error()>> releases_;
};

TEST_F(RuntimeContract, PropertiesAreThoseOfADeviceThatKernelsAreCompiledFor) {
  cuda::DeviceProperties properties;
  ASSERT_THAT(runtime_->Properties(&properties), IsNull());
  EXPECT_GT(std::strlen(properties.name), 0u);
  EXPECT_GE(properties.compute_major, 8);
  EXPECT_GT(properties.multiprocessors, 0);
  EXPECT_GE(properties.shared_bytes_per_block, 48 * 1024);
  EXPECT_GT(properties.l2_bytes, 0);
  int64_t free = 0, total = 0;
  ASSERT_THAT(runtime_->MemoryInfo(&free, &total), IsNull());
  EXPECT_GT(free, 0);
  EXPECT_LE(free, total);
  EXPECT_GT(properties.memory_bytes, 0);
}

TEST_F(RuntimeContract, MemoryIsAlignedAndNoByteIsGivenTwice) {
  std::vector<std::pair<uint8_t*, int64_t>> given;
  for (const int64_t bytes : {1, 255, 256, 257, 4096, 1 << 20}) {
    for (int i = 0; i < 2; ++i) given.emplace_back(Device(bytes), bytes);
  }
  std::sort(given.begin(), given.end());
  for (size_t i = 0; i < given.size(); ++i) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(given[i].first) % 256, 0u);
    if (i > 0) {
      EXPECT_LE(given[i - 1].first + given[i - 1].second, given[i].first);
    }
  }
}

TEST_F(RuntimeContract, WhatCannotBeAllocatedIsAnErrorThatBreaksNothing) {
  for (const int64_t bytes : {int64_t{0}, int64_t{-1}, int64_t{1} << 50}) {
    void* memory = &memory;
    EXPECT_THAT(runtime_->Allocate(bytes, &memory), NotNull()) << bytes;
    EXPECT_THAT(memory, IsNull());
  }
  void* memory = &memory;
  EXPECT_THAT(runtime_->AllocatePinned(0, &memory), NotNull());
  EXPECT_THAT(memory, IsNull());
  ExpectRoundTrip(NewStream());
}

TEST_F(RuntimeContract, AStreamRunsItsWorkInOrder) {
  for (const int64_t bytes : {1, 3, 4096, (1 << 20) + 7}) {
    const Stream stream = NewStream();
    uint8_t* const device = Device(3 * bytes);
    uint8_t* const in = Pinned(bytes);
    uint8_t* const out = Pinned(3 * bytes);
    for (int64_t i = 0; i < bytes; ++i) in[i] = static_cast<uint8_t>(i * 31 + 5);
    ASSERT_THAT(runtime_->Fill(stream, device, 1, 3 * bytes), IsNull());
    ASSERT_THAT(runtime_->CopyToDevice(stream, device, in, bytes), IsNull());
    ASSERT_THAT(runtime_->CopyOnDevice(stream, device + 2 * bytes, device, bytes), IsNull());
    ASSERT_THAT(runtime_->Fill(stream, device, 2, bytes), IsNull());
    ASSERT_THAT(runtime_->CopyToHost(stream, out, device, 3 * bytes), IsNull());
    ASSERT_THAT(runtime_->Synchronize(stream), IsNull());
    EXPECT_TRUE(Holds(out, bytes, 2)) << bytes;
    EXPECT_TRUE(Holds(out + bytes, bytes, 1)) << bytes;
    EXPECT_TRUE(std::equal(in, in + bytes, out + 2 * bytes)) << bytes;
  }
}

TEST_F(RuntimeContract, PinnedMemoryIsFreeAgainAfterAnEvent) {
  constexpr int64_t kBytes = 1 << 20;
  const Stream stream = NewStream();
  const Event copied = NewEvent();
  uint8_t* const device = Device(4 * kBytes);
  uint8_t* const in = Pinned(kBytes);
  uint8_t* const out = Pinned(4 * kBytes);
  for (int i = 0; i < 4; ++i) {  // One event, happening again and again.
    std::memset(in, 10 + i, kBytes);
    ASSERT_THAT(runtime_->CopyToDevice(stream, device + i * kBytes, in, kBytes), IsNull());
    ASSERT_THAT(runtime_->Record(stream, copied), IsNull());
    ASSERT_THAT(runtime_->Synchronize(copied), IsNull());
  }
  ASSERT_THAT(runtime_->CopyToHost(stream, out, device, 4 * kBytes), IsNull());
  ASSERT_THAT(runtime_->Synchronize(stream), IsNull());
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(Holds(out + i * kBytes, kBytes, 10 + i));
}

TEST_F(RuntimeContract, AStreamWaitsForTheEventOfAnother) {
  constexpr int64_t kBytes = 8 << 20;
  const Stream first = NewStream(), second = NewStream();
  const Event written = NewEvent();
  uint8_t* const device = Device(kBytes);
  uint8_t* const out = Pinned(kBytes);
  for (uint8_t round = 1; round < 4; ++round) {
    for (int i = 0; i < 20; ++i) ASSERT_THAT(runtime_->Fill(first, device, 0, kBytes), IsNull());
    ASSERT_THAT(runtime_->Fill(first, device, round, kBytes), IsNull());
    ASSERT_THAT(runtime_->Record(first, written), IsNull());
    ASSERT_THAT(runtime_->WaitFor(second, written), IsNull());
    ASSERT_THAT(runtime_->CopyToHost(second, out, device, kBytes), IsNull());
    ASSERT_THAT(runtime_->Synchronize(second), IsNull());
    EXPECT_TRUE(Holds(out, kBytes, round));
  }
}

TEST_F(RuntimeContract, OnlyTimedEventsTellTheTimeBetweenThem) {
  constexpr int64_t kBytes = 1 << 20;
  const Stream stream = NewStream();
  const Event begin = NewEvent(true), end = NewEvent(true), untimed = NewEvent();
  uint8_t* const device = Device(kBytes);
  ASSERT_THAT(runtime_->Record(stream, begin), IsNull());
  ASSERT_THAT(runtime_->Fill(stream, device, 0, kBytes), IsNull());
  ASSERT_THAT(runtime_->Record(stream, end), IsNull());
  ASSERT_THAT(runtime_->Record(stream, untimed), IsNull());
  ASSERT_THAT(runtime_->Synchronize(stream), IsNull());
  float milliseconds = -1;
  ASSERT_THAT(runtime_->Milliseconds(begin, end, &milliseconds), IsNull());
  EXPECT_TRUE(std::isfinite(milliseconds) && milliseconds >= 0) << milliseconds;
  EXPECT_THAT(runtime_->Milliseconds(begin, untimed, &milliseconds), NotNull());
}

TEST_F(RuntimeContract, RecordedWorkRunsAtEachLaunchAndNotBefore) {
  constexpr int64_t kBytes = 3000;
  const Stream stream = NewStream();
  uint8_t* const device = Device(2 * kBytes);
  uint8_t* const in = Pinned(kBytes);
  uint8_t* const out = Pinned(2 * kBytes);
  ASSERT_THAT(runtime_->Fill(stream, device, 9, 2 * kBytes), IsNull());
  ASSERT_THAT(runtime_->BeginRecording(stream), IsNull());
  EXPECT_THAT(runtime_->CopyToDevice(stream, device, in, kBytes), IsNull());
  EXPECT_THAT(runtime_->CopyOnDevice(stream, device + kBytes, device, kBytes), IsNull());
  EXPECT_THAT(runtime_->Fill(stream, device, 4, kBytes / 2), IsNull());
  EXPECT_THAT(runtime_->CopyToHost(stream, out, device, 2 * kBytes), IsNull());
  const Graph graph = EndRecording(stream);
  ASSERT_THAT(runtime_->CopyToHost(stream, out, device, 2 * kBytes), IsNull());
  ASSERT_THAT(runtime_->Synchronize(stream), IsNull());
  EXPECT_TRUE(Holds(out, 2 * kBytes, 9)) << "it ran while it was recorded";
  for (uint8_t round = 20; round < 23; ++round) {  // The addresses are recorded, what lies there is read at a launch.
    std::memset(in, round, kBytes);
    ASSERT_THAT(runtime_->Launch(stream, graph), IsNull());
    ASSERT_THAT(runtime_->Synchronize(stream), IsNull());
    EXPECT_TRUE(Holds(out, kBytes / 2, 4));
    EXPECT_TRUE(Holds(out + kBytes / 2, kBytes + kBytes / 2, round));
  }
}

TEST_F(RuntimeContract, GraphsAreLaunchedInTurnAndInAnyStream) {
  constexpr int64_t kBytes = 512;
  const Stream recorder = NewStream(), runner = NewStream();
  uint8_t* const device = Device(kBytes);
  uint8_t* const out = Pinned(kBytes);
  std::vector<Graph> graphs;
  for (uint8_t value = 1; value <= 3; ++value) {
    ASSERT_THAT(runtime_->BeginRecording(recorder), IsNull());
    EXPECT_THAT(runtime_->Fill(recorder, device, value, kBytes), IsNull());
    graphs.push_back(EndRecording(recorder));
  }
  ASSERT_THAT(runtime_->Synchronize(recorder), IsNull());
  for (const int which : {2, 0, 1, 1, 2}) {
    ASSERT_THAT(runtime_->Launch(runner, graphs[which]), IsNull());
    ASSERT_THAT(runtime_->CopyToHost(runner, out, device, kBytes), IsNull());
    ASSERT_THAT(runtime_->Synchronize(runner), IsNull());
    EXPECT_TRUE(Holds(out, kBytes, which + 1));
  }
}

TEST_F(RuntimeContract, WhatAGraphCannotHoldFailsItsRecordingAlone) {
  constexpr int64_t kBytes = 64;
  const Stream stream = NewStream();
  uint8_t* const device = Device(kBytes);
  uint8_t* const pinned = Pinned(kBytes);
  std::vector<uint8_t> pageable(kBytes);
  void* memory = nullptr;
  const std::function<Error()> faults[] = {
      [&] { return runtime_->CopyToDevice(stream, device, pageable.data(), kBytes); },
      [&] { return runtime_->CopyToHost(stream, pageable.data(), device, kBytes); },
      [&] { return runtime_->Allocate(kBytes, &memory); },
      [&] { return runtime_->AllocatePinned(kBytes, &memory); },
      [&] { return runtime_->Synchronize(stream); },
  };
  for (size_t i = 0; i < std::size(faults); ++i) {
    ASSERT_THAT(runtime_->BeginRecording(stream), IsNull());
    EXPECT_THAT(runtime_->CopyToDevice(stream, device, pinned, kBytes), IsNull());
    EXPECT_THAT(faults[i](), NotNull()) << "fault " << i;
    Graph graph = nullptr;
    EXPECT_THAT(runtime_->EndRecording(stream, &graph), NotNull()) << "fault " << i;
    EXPECT_THAT(graph, IsNull());
    ExpectRoundTrip(stream);
  }
}

TEST_F(RuntimeContract, OthersAllocateWhileAThreadRecords) {
  constexpr int64_t kBytes = 64;
  const Stream stream = NewStream();
  uint8_t* const device = Device(kBytes);
  ASSERT_THAT(runtime_->BeginRecording(stream), IsNull());
  EXPECT_THAT(runtime_->Fill(stream, device, 3, kBytes), IsNull());
  std::thread([&] {
    void* memory = nullptr;
    EXPECT_THAT(runtime_->Allocate(kBytes, &memory), IsNull());
    EXPECT_THAT(runtime_->Free(memory), IsNull());
    EXPECT_THAT(runtime_->AllocatePinned(kBytes, &memory), IsNull());
    EXPECT_THAT(runtime_->FreePinned(memory), IsNull());
  }).join();
  const Graph graph = EndRecording(stream);
  uint8_t* const out = Pinned(kBytes);
  ASSERT_THAT(runtime_->Launch(stream, graph), IsNull());
  ASSERT_THAT(runtime_->CopyToHost(stream, out, device, kBytes), IsNull());
  ASSERT_THAT(runtime_->Synchronize(stream), IsNull());
  EXPECT_TRUE(Holds(out, kBytes, 3));
}

TEST_F(RuntimeContract, ThreadsHaveStreamsOfTheirOwn) {
  constexpr int64_t kBytes = 1 << 16;
  constexpr int kThreads = 4, kRounds = 20;
  struct Owned {
    Stream stream;
    uint8_t *device, *in, *out;
  };
  std::vector<Owned> owned;
  for (int t = 0; t < kThreads; ++t) owned.push_back({NewStream(), Device(kBytes), Pinned(kBytes), Pinned(kBytes)});
  std::vector<int> right(kThreads);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      const Owned& own = owned[t];
      for (int round = 0; round < kRounds; ++round) {
        const auto value = static_cast<uint8_t>(t * kRounds + round);
        std::memset(own.in, value, kBytes);
        if (runtime_->CopyToDevice(own.stream, own.device, own.in, kBytes) != nullptr) return;
        if (runtime_->CopyToHost(own.stream, own.out, own.device, kBytes) != nullptr) return;
        if (runtime_->Synchronize(own.stream) != nullptr) return;
        right[t] += Holds(own.out, kBytes, value);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(right, Each(kRounds));
}

}  // namespace
}  // namespace c3po
