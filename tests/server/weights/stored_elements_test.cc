#include "server/weights/stored_elements.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "server/weights/host_matrix.h"

namespace c3po {
namespace {

float FloatOf(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
uint32_t BitsOf(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// sign * 2^(exponent - bias) * (1 + fraction / 2^width), and 0 + ... where the exponent is 0.
double Decoded(uint32_t code, int exponent_bits, int fraction_bits, int bias) {
  const uint32_t fraction = code & ((1u << fraction_bits) - 1);
  const int exponent = static_cast<int>(code >> fraction_bits & ((1u << exponent_bits) - 1));
  const double sign = code >> (exponent_bits + fraction_bits) & 1 ? -1 : 1;
  const double part = std::ldexp(double(fraction), -fraction_bits);
  return sign * (exponent == 0 ? std::ldexp(part, 1 - bias) : std::ldexp(1 + part, exponent - bias));
}

// One element behind a byte, so that it is not aligned.
template <typename Stored>
std::vector<std::byte> Unaligned(Stored stored) {
  std::vector<std::byte> bytes(1 + sizeof stored);
  std::memcpy(bytes.data() + 1, &stored, sizeof stored);
  return bytes;
}
template <typename Stored>
float Wide(DType type, Stored stored) {
  float value = 0;
  ToFloat32(type, Unaligned(stored).data() + 1, 1, &value);
  return value;
}
template <typename Stored>
float Rounded(DType type, Stored stored) {
  uint16_t half = 0;
  ToBfloat16(type, Unaligned(stored).data() + 1, 1, &half);
  return FloatOf(uint32_t{half} << 16);
}

TEST(StoredElements, EveryHalfIsExactInFloat32) {
  for (uint32_t code = 0; code < 1 << 16; ++code) {
    const float got = Wide(DType::kF16, static_cast<uint16_t>(code));
    if ((code >> 10 & 31) == 31) {
      const bool infinite = (code & 0x3FF) == 0;
      ASSERT_EQ(infinite ? std::isinf(got) : std::isnan(got), true) << code;
      ASSERT_EQ(std::signbit(got), code >> 15 == 1) << code;
    } else {
      ASSERT_EQ(BitsOf(got), BitsOf(static_cast<float>(Decoded(code, 5, 10, 15)))) << code;
    }
  }
}

TEST(StoredElements, EveryEightBitNumberIsExactInBoth) {
  for (uint32_t code = 0; code < 256; ++code) {
    const float wide = Wide(DType::kF8E4M3, static_cast<uint8_t>(code));
    const float rounded = Rounded(DType::kF8E4M3, static_cast<uint8_t>(code));
    if ((code & 0x7F) == 0x7F) {
      EXPECT_TRUE(std::isnan(wide) && std::isnan(rounded)) << code;
    } else {
      EXPECT_EQ(BitsOf(wide), BitsOf(static_cast<float>(Decoded(code, 4, 3, 7)))) << code;
      EXPECT_EQ(BitsOf(rounded), BitsOf(wide)) << code;
    }
  }
}

TEST(StoredElements, BfloatsAreKeptAndWidenedBitByBit) {
  for (uint32_t code = 0; code < 1 << 16; ++code) {
    ASSERT_EQ(BitsOf(Wide(DType::kBF16, static_cast<uint16_t>(code))), code << 16);
    ASSERT_EQ(BitsOf(Rounded(DType::kBF16, static_cast<uint16_t>(code))), code << 16);
  }
}

// To the nearest of the two neighbors, to the even one where they are as near.
TEST(StoredElements, FloatsAreRoundedToTheNearestBfloatTiesToEven) {
  const auto rounded = [](uint32_t bits) { return BitsOf(Rounded(DType::kF32, FloatOf(bits))); };
  for (const uint32_t upper : {0x3F80u, 0x3F81u, 0xC2F7u, 0x0000u, 0x8000u, 0x007Fu, 0x7F7Eu}) {
    const uint32_t low = upper << 16, high = (upper + 1) << 16;
    EXPECT_EQ(rounded(low), low);
    EXPECT_EQ(rounded(low | 0x7FFF), low);
    EXPECT_EQ(rounded(low | 0x8000), upper % 2 == 0 ? low : high);
    EXPECT_EQ(rounded(low | 0x8001), high);
  }
  EXPECT_EQ(rounded(0x7F7FFFFF), 0x7F800000u);  // The largest float rounds to infinity.
  EXPECT_EQ(rounded(0x7F800000), 0x7F800000u);
  // No number stays none, also where its upper half is that of infinity.
  for (const uint32_t bits : {0x7F800001u, 0xFF800001u, 0x7FFFFFFFu, 0x7FC00000u}) {
    EXPECT_TRUE(std::isnan(Rounded(DType::kF32, FloatOf(bits)))) << bits;
  }
  // 1 + 2^-8 and 1 + 3 * 2^-8 lie between two bfloats each.
  EXPECT_EQ(Rounded(DType::kF16, uint16_t{0x3C04}), 1.0f);
  EXPECT_EQ(Rounded(DType::kF16, uint16_t{0x3C0C}), 1.015625f);
}

TEST(StoredElements, OfOtherTypesAreNoWeights) {
  float wide;
  uint16_t half;
  const std::byte bytes[8] = {};
  for (const DType type : {DType::kI32, DType::kF64, DType::kF8E5M2, DType::kBool}) {
    EXPECT_FALSE(IsWeightType(type));
    EXPECT_THROW(ToFloat32(type, bytes, 1, &wide), std::invalid_argument);
    EXPECT_THROW(ToBfloat16(type, bytes, 1, &half), std::invalid_argument);
  }
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16, DType::kF8E4M3}) EXPECT_TRUE(IsWeightType(type));
}

TEST(HostMatrix, ViewsTensorsOfAnyRankAndTheirRows) {
  const std::vector<std::byte> bytes(24 * 2);
  const HostMatrix vector = HostMatrix::Of({DType::kBF16, {24}, bytes});
  EXPECT_EQ(vector.rows, 24);
  EXPECT_EQ(vector.columns, 1);
  EXPECT_EQ(vector.row_bytes(), 2);
  const HostMatrix several = HostMatrix::Of({DType::kBF16, {2, 3, 4}, bytes});
  EXPECT_EQ(several.rows, 6);
  EXPECT_EQ(several.columns, 4);
  EXPECT_EQ(several.row_bytes(), 8);
  const HostMatrix second = several.Rows(3, 3);
  EXPECT_EQ(second.bytes.data(), bytes.data() + 24);
  EXPECT_EQ(second.bytes.size(), 24u);
  EXPECT_TRUE(second.mapped);
}

// The system would fill a page that it takes from a heap with zeros.
TEST(HostMatrix, KeepsBytesThatAreNotMapped) {
  std::vector<std::byte> bytes(64 << 10, std::byte{7});
  HostMatrix matrix;
  matrix.rows = 16;
  matrix.columns = (64 << 10) / 4 / 16;
  matrix.bytes = bytes;
  DropPages(matrix);
  EXPECT_EQ(bytes, std::vector<std::byte>(64 << 10, std::byte{7}));
}

}  // namespace
}  // namespace c3po
