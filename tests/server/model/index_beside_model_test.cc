// References in the memory of the GPU that the model computes on, on the host model of one.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <string>

#include "index/base/device_failure.h"
#include "server/compute/cache_fit.h"
#include "tests/index/cuda/host_index_device.h"
#include "tests/server/model/model_on_cuda.h"
#include "tests/server/model/neighbor_scenario.h"
#include "tests/server/model/tiny_model.h"

namespace c3po {
namespace {

using host_cuda::HostRuntime;

// One GPU, one record: whoever meets the error first, neither model nor index asks the device again.
TEST(IndexBesideModel, FailureOfEitherIsTheOthers) {
  const std::unique_ptr<MoeModel> cpu = LoadTiny("olmoe_tiny");
  for (const bool model_first : {true, false}) {
    HostRuntime runtime;
    const auto gpu = ModelOnCuda("olmoe_tiny", cpu->config(), runtime);
    ASSERT_TRUE(gpu->AllocateKvCache(SlotsOf(64)).ok());
    const auto index = *IndexDevice::Open(&runtime, HostIndexKernels(), int64_t{64} << 20, &ComputingDevice());
    std::mt19937 rng(1);
    const auto step = [&](int start) {
      return RunSegments(*gpu, {PromptSegment({{0, 64}}, RandomTokens(rng, 1, cpu->shape().vocabulary_size), start)});
    };
    ASSERT_TRUE(step(0).ok());
    EXPECT_FALSE(index->failed());
    runtime.BreakAfter(0);
    const auto search = [&] {
      auto slot = index->AcquireSlot();
      if (!slot.ok()) return slot.status();
      const absl::Status room = (*slot)->Reserve(64, 64, 64);
      if (!room.ok()) return room;
      const absl::Status sent = (*slot)->FetchOut(64);
      return sent.ok() ? (*slot)->Wait() : sent;
    };
    const absl::Status first = model_first ? step(1).status() : search();
    const absl::Status second = model_first ? search() : step(1).status();
    EXPECT_EQ(first.code(), absl::StatusCode::kUnavailable) << first;
    EXPECT_EQ(second, DeviceFailure());
    EXPECT_TRUE(index->failed());
    EXPECT_EQ(index->failure(), DeviceFailure());
    EXPECT_THAT(std::string(DeviceFailure().message()), testing::HasSubstr("unspecified launch failure"));
    ForgetDeviceFailure();
  }
}

// What the index may take is kept for it; what it has taken is told as its own, not as something else's.
TEST(IndexBesideModel, HasItsShareOfTheMemoryAndTheCacheTheRest) {
  const std::unique_ptr<MoeModel> cpu = LoadTiny("olmoe_tiny");
  HostRuntime runtime(HostRuntime::Options{.memory_bytes = int64_t{64} << 20});
  const auto gpu = ModelOnCuda("olmoe_tiny", cpu->config(), runtime);
  CacheSettings settings;
  settings.block_positions = 32;
  settings.context_window = cpu->config().context_window;
  settings.reference_bytes = int64_t{1} << 20;
  settings.work_bytes = int64_t{4} << 20;
  const absl::StatusOr<CachePlan> plan = PlanCache(gpu->backend(), settings);
  ASSERT_TRUE(plan.ok()) << plan.status();
  CacheSettings with_index = settings;
  with_index.index_bytes_max = int64_t{16} << 20;
  std::unique_ptr<IndexDevice> index = *IndexDevice::Open(&runtime, HostIndexKernels(), with_index.index_bytes_max);
  with_index.index_bytes = index->bytes_in_use();
  EXPECT_GE(with_index.index_bytes, int64_t{8} << 20);
  const absl::StatusOr<CachePlan> beside = PlanCache(gpu->backend(), with_index);
  ASSERT_TRUE(beside.ok()) << beside.status();
  EXPECT_EQ(beside->device->index, with_index.index_bytes_max);
  EXPECT_EQ(beside->device->other, plan->device->other);
  EXPECT_EQ(beside->device->weights, gpu->backend().info().weight_bytes);
  EXPECT_NEAR(static_cast<double>(beside->device->kv_cache),
              static_cast<double>(plan->device->kv_cache - (int64_t{16} << 20)),
              static_cast<double>(gpu->backend().KvCacheBytes({1, 32})));
  // Keys and values take theirs, and the index its own to the last byte.
  EXPECT_TRUE(gpu->AllocateKvCache({beside->positions / 32, 32}).ok());
  EXPECT_EQ(gpu->kv_cache_bytes(), beside->device->kv_cache);
  EXPECT_TRUE(index->Allocate(with_index.index_bytes_max - index->bytes_in_use()).ok());
  with_index.index_bytes_max = int64_t{1} << 30;
  const absl::Status too_much = PlanCache(gpu->backend(), with_index).status();
  EXPECT_EQ(too_much.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(too_much.message()), testing::HasSubstr("index of references (index-memory-mb) 1.07 GB"));
}

}  // namespace
}  // namespace c3po
