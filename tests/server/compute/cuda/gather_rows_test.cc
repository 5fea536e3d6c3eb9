#include "server/compute/cuda/gather_rows.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "tests/host_cuda/device_array.h"
#include "tests/server/compute/cuda/device_rows.h"

namespace c3po::cuda {
namespace {

// The same bytes as if those rows had been packed from the beginning.
TEST(GatherRows, AreThePackedMatrixOfThoseRows) {
  for (const Lying& lying : kLyings) {
    for (const int count : {1, 5, 16, 19}) {
      std::mt19937 random(static_cast<unsigned>(count));
      const Floats w = RandomFloats(37, 40, random);
      const DeviceWeights whole(PackedLayout::Plain(w.rows, w.columns, lying.planes).WithBits(lying.bits), w);
      std::vector<int> indices;
      Floats picked(count, w.columns);
      for (int i = 0; i < count; ++i) {
        indices.push_back(i == 0 ? w.rows - 1 : static_cast<int>(random() % 37u));
        for (int c = 0; c < w.columns; ++c) picked(i, c) = w(indices.back(), c);
      }
      Floats held;
      const std::vector<uint8_t> expected =
          PackedMatrix(PackedLayout::Plain(count, w.columns, lying.planes).WithBits(lying.bits), picked, &held);
      const DeviceArray<int> wanted(indices);
      const DeviceArray<uint8_t> gathered(expected.size());
      ASSERT_EQ(LaunchGatherRows({whole.view(), wanted.data(), count, gathered.data()}, nullptr), nullptr);
      EXPECT_EQ(gathered.Values(), expected) << Named(lying) << ", " << count << " rows";
    }
  }
}

}  // namespace
}  // namespace c3po::cuda
