#include "server/compute/cache_fit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

namespace c3po {
namespace {

CacheRequest Request() {
  CacheRequest request;
  request.device_bytes = 10'000'000'000;
  request.fraction = 0.9;
  request.parts = {{"weights", 3'000'000'000}, {"reference states", 1'000'000'000}};
  request.position_bytes = 1'000'000;
  request.block_positions = 32;
  request.positions_least = 64;
  request.positions_max = 1 << 20;
  return request;
}

TEST(FitCache, TakesWhatIsLeftInWholeBlocks) {
  EXPECT_EQ(*FitCache(Request()), 4992);  // 5,000 positions are left.
  CacheRequest little = Request();
  little.positions_max = 1000;
  EXPECT_EQ(*FitCache(little), 992);
}

TEST(FitCache, TakesWhatIsAskedForWhereItFits) {
  CacheRequest request = Request();
  request.positions = 4990;
  EXPECT_EQ(*FitCache(request), 4990);
  request.positions = 4993;
  EXPECT_EQ(FitCache(request).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(FitCache, SaysTheSumOfWhatDoesNotFit) {
  CacheRequest request = Request();
  request.parts.push_back({"other programs", 4'970'000'000});
  const absl::Status status = FitCache(request).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(
      status.message(),
      "the device's memory is too small: weights 3.00 GB + reference states 1.00 GB + other programs 4.97 GB + keys "
      "and values of 64 positions 0.06 GB = 9.03 GB, of 9.00 GB (0.9 of 10.00 GB, gpu-memory-fraction)");
  request.parts.back().bytes = 100'000'000'000;  // More than there is.
  EXPECT_FALSE(FitCache(request).ok());
}

// Of a GPU that has references alone; the model is elsewhere.
TEST(PlanIndexAlone, KeepsItsBudgetBesideWhatIsThere) {
  const Backend::OwnMemory memory{.bytes = 10'000'000'000, .free_bytes = 4'000'000'000};
  const absl::StatusOr<DevicePlan> plan = PlanIndexAlone(memory, 0.9, 4'000'000'000, 1'000'000'000);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->index, 4'000'000'000);
  EXPECT_EQ(plan->other, 5'000'000'000);
  EXPECT_EQ(plan->all(), plan->limit_bytes());
  EXPECT_EQ(PlanIndexAlone(memory, 0.9, 4'010'000'000, 1'000'000'000).status(),
            absl::FailedPreconditionError(
                "the device's memory is too small: index of references (index-memory-mb) 4.01 GB + what else is there "
                "now 5.00 GB = 9.01 GB, of 9.00 GB (0.9 of 10.00 GB, gpu-memory-fraction)"));
}

TEST(DevicePlan, NamesEachPartOnce) {
  DevicePlan plan;
  plan.weights = 1;
  plan.encoder = 2;
  plan.index = 4;
  plan.reference_states = 8;
  plan.work = 16;
  plan.other = 32;
  plan.kv_cache = 64;
  EXPECT_EQ(plan.all(), 127);
  const std::vector<DevicePart> parts = plan.Parts();
  for (const char* name :
       {"weights", "encoder", "index of references", "reference states", "work space", "what else"}) {
    EXPECT_EQ(std::count_if(parts.begin(), parts.end(),
                            [&](const DevicePart& part) { return part.name.rfind(name, 0) == 0; }),
              1)
        << name;
  }
}

}  // namespace
}  // namespace c3po
