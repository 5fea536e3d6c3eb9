#include "server/pipeline/index_placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

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

}  // namespace
}  // namespace c3po
