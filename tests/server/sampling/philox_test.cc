#include "server/sampling/philox.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>

#include "gtest/gtest.h"

namespace c3po {
namespace {

using Block = std::array<uint32_t, 4>;

// Known answers of the algorithm's authors for philox4x32 with 10 rounds: all bits zero, all bits one, and the digits
// of pi.
TEST(Philox, MatchesTheKnownAnswers) {
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}), (Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr uint32_t kOnes = 0xffffffff;
  EXPECT_EQ(Philox4x32({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}),
            (Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, UniformUsesAllBitsOfSeedPositionAndStream) {
  const double base = PhiloxUniform(1, 1);
  for (int bit = 0; bit < 64; ++bit) {
    EXPECT_NE(PhiloxUniform(1 ^ (uint64_t{1} << bit), 1), base) << "seed bit " << bit;
    EXPECT_NE(PhiloxUniform(1, 1 ^ (uint64_t{1} << bit)), base) << "position bit " << bit;
  }
  for (int bit = 0; bit < 32; ++bit) EXPECT_NE(PhiloxUniform(1, 1, uint32_t{1} << bit), base) << "stream bit " << bit;
}

TEST(Philox, UniformStaysInItsInterval) {
  double smallest = 1, largest = 0, sum = 0;
  constexpr int kDraws = 100000;
  for (int i = 0; i < kDraws; ++i) {
    const double u = PhiloxUniform(std::numeric_limits<uint64_t>::max(), i);
    smallest = std::min(smallest, u);
    largest = std::max(largest, u);
    sum += u;
  }
  EXPECT_GE(smallest, 0);
  EXPECT_LT(smallest, 1e-3);
  EXPECT_LT(largest, 1);
  EXPECT_GT(largest, 1 - 1e-3);
  EXPECT_NEAR(sum / kDraws, 0.5, 5e-3);  // Five standard deviations of the mean.
}

}  // namespace
}  // namespace c3po
