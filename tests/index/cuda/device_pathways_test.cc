#include "index/search/cuda/device_pathways.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "tests/index/cuda/host_index_device.h"

namespace c3po {
namespace {

TEST(DevicePathways, EndWhereTheBudgetDoes) {
  HostIndexDevice host(/*budget_bytes=*/(int64_t{8} << 20) + (64 << 10));
  const auto pathways = *DevicePathways::Create(host.device.get(), 4, 16, 1);
  const std::vector<float> row(64, 0.25f);
  for (int64_t label = 0; label < 300 && pathways->usable(); ++label) {
    const NewRow added = {label, row, 1};
    pathways->Add({&added, 1});
  }
  EXPECT_FALSE(pathways->usable());
  EXPECT_EQ(pathways->Search(std::vector<float>(16), std::vector<int>{0}, 1, 0).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(DevicePathways::Create(host.device.get(), 200, 256, 1).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace c3po
