#include "server/compute/cuda/row_sums.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "tests/host_cuda/device_array.h"
#include "tests/host_cuda/kernel_run.h"
#include "tests/server/compute/cuda/device_rows.h"

namespace c3po::cuda {
namespace {

// In one call, and in two, under any order of the threads.
TEST(RowSums, AreTheSumsInDoublePrecisionHoweverRowsAreCut) {
  constexpr int kRows = 9, kColumns = 70, kStride = 72;
  std::mt19937 random(3);
  const Floats x = RandomFloats(kRows, kColumns, random);
  const DeviceFloats rows(x, kStride);
  std::vector<double> expected(kColumns, 0.0);
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kColumns; ++c) expected[static_cast<size_t>(c)] += double{x(r, c)};
  }
  for (const int first : {kRows, 4}) {
    const DeviceArray<double> sums(std::vector<double>(kColumns, 0.0));
    ASSERT_EQ(LaunchRowSums({rows.data(), first, kColumns, kStride, sums.data()}, nullptr), nullptr);
    ASSERT_EQ(LaunchRowSums({rows.data() + first * kStride, kRows - first, kColumns, kStride, sums.data()}, nullptr),
              nullptr);
    EXPECT_EQ(sums.Values(), expected) << first;
  }
}

}  // namespace
}  // namespace c3po::cuda
