#include "server/pipeline/index_placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "index/base/device_failure.h"
#include "tests/index/cuda/host_index_device.h"

namespace c3po {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kBudget = int64_t{32} << 20;

TEST(IndexPlacement, CpuOpensNothing) {
  const auto never = []() -> absl::StatusOr<IndexDeviceParts> {
    ADD_FAILURE() << "opened";
    return absl::InternalError("");
  };
  EXPECT_EQ(*PlaceIndex("cpu", "cuda", kBudget, nullptr, never), nullptr);
  EXPECT_EQ(*PlaceIndex("cpu", "cpu", kBudget, nullptr, never), nullptr);
  EXPECT_EQ(*PlaceIndex("auto", "cpu", kBudget, nullptr, never), nullptr);
}

TEST(IndexPlacement, WithoutAGpuCudaFailsInOneSentenceAndAutoIsTheCpu) {
  const auto none = []() -> absl::StatusOr<IndexDeviceParts> {
    return absl::FailedPreconditionError("device cuda: no GPU is there");
  };
  const absl::Status status = PlaceIndex("cuda", "cpu", kBudget, nullptr, none).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(status.message(), "--index-device cuda: device cuda: no GPU is there");
  EXPECT_EQ(*PlaceIndex("auto", "cuda", kBudget, nullptr, none), nullptr);
}

TEST(IndexPlacement, GpuIsTakenAndItsFiguresAreTold) {
  host_cuda::HostRuntime runtime;
  const auto open = [&]() -> absl::StatusOr<IndexDeviceParts> {
    return IndexDeviceParts{&runtime, HostIndexKernels()};
  };
  for (const char* word : {"cuda", "auto"}) {
    Metrics metrics("model", "1");
    auto device = PlaceIndex(word, "cuda", kBudget, &metrics, open);
    ASSERT_TRUE(device.ok()) << device.status();
    ASSERT_NE(*device, nullptr);
    EXPECT_TRUE(CheckIndexRoom(word, device->get()).ok());
    (*device)->CountQueries(5, 2, 0);
    EXPECT_FALSE((*device)->Allocate(kBudget).ok());
    const std::string text = metrics.PrometheusText();
    EXPECT_THAT(text, HasSubstr("c3po_index_device_budget_bytes 33554432"));
    EXPECT_THAT(text, HasSubstr("c3po_index_device_queries_total{place=\"device\"} 5"));
    EXPECT_THAT(text, HasSubstr("c3po_index_device_queries_total{place=\"host\"} 2"));
    EXPECT_THAT(text, HasSubstr("c3po_index_device_refusals_total 1"));
    EXPECT_THAT(text, HasSubstr("c3po_index_device_failed 0"));
    // Counters do not grow by being asked.
    EXPECT_THAT(metrics.PrometheusText(), HasSubstr("c3po_index_device_queries_total{place=\"device\"} 5"));
    const absl::Status room = CheckIndexRoom(word, device->get());
    EXPECT_EQ(room.ok(), std::string(word) == "auto");
    if (room.ok()) continue;
    EXPECT_EQ(room.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(room.message()), HasSubstr("--index-memory-mb 32: 33554432 bytes more than the "));
  }
}

TEST(IndexPlacement, BudgetIsAShareOfTheGpuWhereNobodySetOne) {
  EXPECT_EQ(IndexBudget(int64_t{24} << 30), int64_t{1536} << 20);
  EXPECT_EQ(IndexBudget(int64_t{256} << 30), int64_t{8} << 30);
  EXPECT_EQ(IndexBudget(int64_t{512} << 20), int64_t{64} << 20);
  host_cuda::HostRuntime runtime(host_cuda::HostRuntime::Options{.memory_bytes = int64_t{2} << 30});
  Metrics metrics("model", "1");
  const auto device = PlaceIndex("cuda", "cpu", 0, &metrics, [&]() -> absl::StatusOr<IndexDeviceParts> {
    return IndexDeviceParts{&runtime, HostIndexKernels()};
  });
  ASSERT_TRUE(device.ok()) << device.status();
  EXPECT_EQ((*device)->budget_bytes(), int64_t{128} << 20);
}

// With the model on the GPU an index's error is the server's end; with the model on the CPU the server goes on.
TEST(IndexPlacement, FailureIsTheServersWhereTheModelIsOnTheGpu) {
  for (const char* model : {"cuda", "cpu"}) {
    host_cuda::HostRuntime runtime;
    Metrics metrics("model", "1");
    const auto device = *PlaceIndex("cuda", model, kBudget, &metrics, [&]() -> absl::StatusOr<IndexDeviceParts> {
      return IndexDeviceParts{&runtime, HostIndexKernels()};
    });
    EXPECT_EQ(device->Check("an illegal memory access").code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(DeviceFailure().ok(), std::string(model) == "cpu");
    EXPECT_TRUE(device->failed());
    EXPECT_THAT(metrics.PrometheusText(), HasSubstr("c3po_index_device_failed 1"));
    ForgetDeviceFailure();
  }
  // The other way round: what the model met is the index's failure.
  host_cuda::HostRuntime runtime;
  Metrics metrics("model", "1");
  const auto device = *PlaceIndex("cuda", "cuda", kBudget, &metrics, [&]() -> absl::StatusOr<IndexDeviceParts> {
    return IndexDeviceParts{&runtime, HostIndexKernels()};
  });
  NoteDeviceFailure("computing: an illegal memory access");
  EXPECT_TRUE(device->failed());
  EXPECT_EQ(device->Allocate(256).status(), DeviceFailure());
  ForgetDeviceFailure();
}

}  // namespace
}  // namespace c3po
