#include "server/compute/cuda/packed_matrix.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <set>
#include <vector>

#include "tests/server/compute/cuda/device_rows.h"

namespace c3po::cuda {
namespace {

uint32_t Bits(std::mt19937& random) { return static_cast<uint32_t>(random()); }

double SumOf(const FloatPlanes& split) {
  return double{WidenBfloat16(split.planes[0])} + double{WidenBfloat16(split.planes[1])} +
         double{WidenBfloat16(split.planes[2])};
}

TEST(PlanesOfFloat, IsExactFromTwoToTheMinus110On) {
  std::mt19937 random(1);
  int rounded_toward_zero = 0;
  for (int i = 0; i < 300'000; ++i) {
    // Any sign and fraction, exponents from 2^-110 to the largest.
    const uint32_t exponent = (127 - 110) + Bits(random) % (254 - (127 - 110) + 1);
    const uint32_t fraction = i % 3 == 0 ? 0x7fffff - Bits(random) % 0x10000 : Bits(random) & 0x7fffff;
    const float x = std::bit_cast<float>((Bits(random) & 0x80000000u) | exponent << 23 | fraction);
    const FloatPlanes split = PlanesOfFloat(x);
    ASSERT_EQ(SumOf(split), double{x}) << x;
    ASSERT_EQ(FloatOfPlanes(split), x);
    if (!std::isfinite(WidenBfloat16(RoundToBfloat16(x)))) ++rounded_toward_zero;
    // What products of three planes leave out is small because each plane is.
    ASSERT_LE(std::abs(WidenBfloat16(split.planes[1])), std::abs(x) * 0x1p-7f);
    ASSERT_LE(std::abs(WidenBfloat16(split.planes[2])), std::abs(x) * 0x1p-15f);
  }
  EXPECT_GT(rounded_toward_zero, 0);
}

TEST(PlanesOfFloat, LosesOnlyWhatIsBelowBfloat16sSmallestNumber) {
  std::mt19937 random(2);
  for (int i = 0; i < 100'000; ++i) {
    const float x = std::bit_cast<float>(Bits(random) % 0x20 << 23 | (Bits(random) & 0x7fffff));
    ASSERT_LE(std::abs(SumOf(PlanesOfFloat(x)) - double{x}), 0x1p-134) << x;
    ASSERT_EQ(SumOf(PlanesOfFloat(std::ldexp(std::round(std::ldexp(x, 100)), -100))),
              double{std::ldexp(std::round(std::ldexp(x, 100)), -100)});
  }
  EXPECT_EQ(SumOf(PlanesOfFloat(0x1p-133f)), 0x1p-133);
}

TEST(PlanesOfFloat, KeepsInfinitiesAndWhatIsNotANumber) {
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(FloatOfPlanes(PlanesOfFloat(infinity)), infinity);
  EXPECT_EQ(FloatOfPlanes(PlanesOfFloat(-infinity)), -infinity);
  EXPECT_TRUE(std::isnan(FloatOfPlanes(PlanesOfFloat(std::numeric_limits<float>::quiet_NaN()))));
  EXPECT_TRUE(std::isnan(FloatOfPlanes(PlanesOfFloat(std::bit_cast<float>(0x7f800001u)))));
  EXPECT_EQ(std::bit_cast<uint32_t>(FloatOfPlanes(PlanesOfFloat(0.0f))), 0u);
}

TEST(Layout, PositionsAndPlacesAreInverse) {
  for (int i = 0; i < 32; ++i) {
    EXPECT_EQ(PlaceOf(PositionOf(i)), i);
    EXPECT_EQ(PositionOf(PlaceOf(i)), i);
  }
}

std::vector<float> Numbered(int64_t rows, int64_t columns) {
  std::vector<float> values(static_cast<size_t>(rows * columns));
  // Of 24 bits, so that all three planes count; no two are the same.
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(0x800001 + 2 * i);
  return values;
}

// The layout once more, from the operand's definition in the PTX manual: register r of a lane holds rows g (r even) or
// g + 8 (r odd), columns 2t and 2t + 1 (r < 2) or 2t + 8 and 2t + 9.
TEST(PackedLayout, LanesHoldTheOperandOfTheTensorCores) {
  const int rows = 40, columns = 72;
  for (const int planes : {1, 3}) {
    const PackedLayout layout = PackedLayout::Plain(rows, columns, planes);
    const std::vector<float> values = Numbered(rows, columns);
    std::vector<uint16_t> packed(static_cast<size_t>(layout.bytes() / 2));
    for (int r = 0; r < rows; ++r)
      layout.PackRow(r, 0, &values[static_cast<size_t>(r * columns)], columns, packed.data());
    size_t at = 0;
    for (int band = 0; band < 3; ++band) {
      for (int chunk = 0; chunk < 3; ++chunk) {
        for (int tile = 0; tile < 2; ++tile) {
          for (int p = 0; p < planes; ++p) {
            for (int lane = 0; lane < 32; ++lane) {
              const int g = lane / 4, t = lane % 4;
              for (int reg = 0; reg < 4; ++reg) {
                for (int i = 0; i < 2; ++i, ++at) {
                  const int row = 16 * band + g + reg % 2 * 8;
                  const int column = 32 * chunk + 8 * t + 4 * tile + reg / 2 * 2 + i;
                  const float x =
                      row < rows && column < columns ? values[static_cast<size_t>(row * columns + column)] : 0;
                  ASSERT_EQ(packed[at], planes == 1 ? RoundToBfloat16(x) : PlanesOfFloat(x).planes[p]);
                }
              }
            }
          }
        }
      }
    }
    EXPECT_EQ(at, packed.size());
  }
}

struct Kind {
  PackedLayout layout;
  int matrices, matrix_rows, matrix_columns;
};

TEST(PackedLayout, PiecesInAnyOrderGiveEveryEntryAPlaceOfItsOwn) {
  std::mt19937 random(3);
  for (const int planes : {1, 3}) {
    for (const Kind& kind : {Kind{PackedLayout::Plain(37, 45, planes), 1, 37, 45},
                             Kind{PackedLayout::GateUp(3, 24, 40, planes), 3, 64, 40},
                             Kind{PackedLayout::SideBySide(40, 3, 23, planes), 3, 40, 23}}) {
      const PackedLayout& layout = kind.layout;
      EXPECT_EQ(layout.matrices(), kind.matrices);
      EXPECT_EQ(layout.matrix_rows(), kind.matrix_rows);
      EXPECT_EQ(layout.matrix_columns(), kind.matrix_columns);
      const int64_t rows = layout.rows(), columns = layout.columns();
      const std::vector<float> values = Numbered(rows, columns);
      std::vector<std::byte> packed(static_cast<size_t>(layout.bytes()));
      for (int64_t r = rows - 1; r >= 0; --r) {
        for (int64_t c = 0; c < columns;) {
          const int64_t count = std::min<int64_t>(columns - c, 1 + static_cast<int64_t>(random() % 20));
          layout.PackRow(r, c, &values[static_cast<size_t>(r * columns + c)], count, packed.data());
          c += count;
        }
      }
      std::set<int64_t> places;
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < columns; ++c) {
          const float x = values[static_cast<size_t>(r * columns + c)];
          ASSERT_EQ(layout.Entry(r, c, packed.data()), planes == 1 ? WidenBfloat16(RoundToBfloat16(x)) : x);
          const int64_t offset = layout.OffsetOf(r, c);
          places.insert(offset);
          for (int p = 0; p < planes; ++p) std::memset(packed.data() + offset + p * kTileBytes, 0, 2);
        }
      }
      EXPECT_EQ(places.size(), static_cast<size_t>(rows * columns));
      // All else is padding, and zero.
      for (const std::byte b : packed) ASSERT_EQ(b, std::byte{0});
    }
  }
}

TEST(PackedLayout, TilesOfGateAndUpAlternate) {
  const PackedLayout layout = PackedLayout::GateUp(2, 40, 32, 1);
  const PackedLayout plain = PackedLayout::Plain(96, 32, 1);
  for (int64_t network = 0; network < 2; ++network) {
    for (int64_t i = 0; i < 40; ++i) {
      const int64_t band = i / 16 * 2;
      EXPECT_EQ(layout.OffsetOf(network * 80 + i, 5), network * plain.bytes() + plain.OffsetOf(band * 16 + i % 16, 5));
      EXPECT_EQ(layout.OffsetOf(network * 80 + 40 + i, 5),
                network * plain.bytes() + plain.OffsetOf((band + 1) * 16 + i % 16, 5));
    }
  }
}

TEST(PackedLayout, Bfloat16ValuesStayAsTheyAre) {
  for (const int planes : {1, 3}) {
    const PackedLayout layout = PackedLayout::Plain(16, 32, planes);
    std::vector<uint16_t> values(32);
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<uint16_t>(0x3f80 + 37 * i);
    std::vector<std::byte> packed(static_cast<size_t>(layout.bytes()));
    layout.PackRow(3, 0, values.data(), 32, packed.data());
    for (int64_t c = 0; c < 32; ++c) EXPECT_EQ(layout.Entry(3, c, packed.data()), WidenBfloat16(values[size_t(c)]));
  }
}

// Where a block of levels begins, and where its scales do, once more from layout.h.
struct BlockPlace {
  size_t levels, scales;
};
BlockPlace PlaceOfBlock(int bits, int columns, int band, int chunk) {
  const int chunks = (columns + 31) / 32, of_block = bits == 8 ? 1 : 2;
  const int blocks = (chunks + of_block - 1) / of_block, bytes = bits == 8 ? 544 : 576;
  const auto at = static_cast<size_t>((band * blocks + chunk / of_block) * bytes);
  return {at, at + 512 + static_cast<size_t>(chunk % of_block) * 4};
}

// What lanes hold of levels, from the definition: the operand's registers one by one, each two levels.
TEST(PackedLayout, LanesHoldTheLevelsOfTheOperand) {
  std::mt19937 random(4);
  const int rows = 40, columns = 72;
  const Floats w = RandomFloats(rows, columns, random);
  for (const int bits : {8, 4}) {
    Floats held;
    const std::vector<uint8_t> packed = PackedMatrix(PackedLayout::Plain(rows, columns, 1).WithBits(bits), w, &held);
    ASSERT_EQ(packed.size(), bits == 8 ? size_t(3 * 3 * 544) : size_t(3 * 2 * 576));
    for (int row = 0; row < 48; ++row) {
      for (int column = 0; column < 96; ++column) {
        const BlockPlace block = PlaceOfBlock(bits, columns, row / 16, column / 32);
        const int g = row % 8, half = row % 16 / 8, t = column % 32 / 8, tile = column % 8 / 4, second = column % 4 / 2;
        const size_t lane = block.levels + static_cast<size_t>(g * 4 + t) * 16;
        const size_t in_block = bits == 8 ? size_t(tile * 8 + second * 4) : size_t(column / 32 % 2 * 8 + tile * 4);
        const int byte = packed[lane + in_block + static_cast<size_t>(half + column % 2 * 2)];
        int level = byte < 128 ? byte : 128 - byte;
        if (bits == 4) {
          const int nibble = second == 1 ? byte >> 4 : byte & 15;
          level = nibble < 8 ? nibble : nibble - 16;
        }
        uint16_t scale;
        std::memcpy(&scale, &packed[block.scales + static_cast<size_t>(g * (bits == 8 ? 4 : 8) + half * 2)], 2);
        const bool inside = row < rows && column < columns;
        ASSERT_EQ(WidenBfloat16(scale) * static_cast<float>(level), inside ? held(row, column) : 0.0f)
            << bits << " bits, row " << row << " column " << column;
      }
    }
  }
}

TEST(PackedLayout, GroupsInAnyOrderKeepEachOthersLevels) {
  std::mt19937 random(5);
  for (const int bits : {8, 4}) {
    for (const PackedLayout& plain :
         {PackedLayout::Plain(37, 45, 1), PackedLayout::GateUp(3, 24, 40, 1), PackedLayout::SideBySide(40, 3, 23, 1)}) {
      const PackedLayout layout = plain.WithBits(bits);
      EXPECT_EQ(layout.bytes(), layout.matrices() * layout.Weights(nullptr).matrix_bytes);
      const Floats w = RandomFloats(static_cast<int>(layout.rows()), static_cast<int>(layout.columns()), random);
      Floats held;
      const std::vector<uint8_t> packed = PackedMatrix(layout, w, &held);
      for (int r = 0; r < w.rows; ++r) {
        for (int c = 0; c < w.columns; ++c) ASSERT_EQ(layout.Entry(r, c, packed.data()), held(r, c)) << r << " " << c;
      }
      double error = 0, size = 0;
      for (size_t i = 0; i < held.values.size(); ++i) {
        error += std::pow(double{held.values[i]} - w.values[i], 2);
        size += std::pow(double{w.values[i]}, 2);
      }
      EXPECT_LT(std::sqrt(error / size), bits == 8 ? 0.01 : 0.15);
    }
  }
}

// Two rows of a band share words: levels that are written anew leave the other row's as they were.
TEST(PackedLayout, AGroupThatIsPackedTwiceIsTheSecond) {
  for (const int bits : {8, 4}) {
    const PackedLayout layout = PackedLayout::Plain(16, 32, 1).WithBits(bits);
    std::vector<std::byte> packed(static_cast<size_t>(layout.bytes()));
    std::vector<int8_t> first(32), second(32);
    for (int k = 0; k < 32; ++k) first[size_t(k)] = static_cast<int8_t>(k % 16 - 8);
    for (int k = 0; k < 32; ++k) second[size_t(k)] = static_cast<int8_t>(7 - k % 15);
    layout.PackGroup(1, 0, first.data(), 32, RoundToBfloat16(2), packed.data());
    layout.PackGroup(9, 0, first.data(), 32, RoundToBfloat16(4), packed.data());
    layout.PackGroup(1, 0, second.data(), 32, RoundToBfloat16(0.5f), packed.data());
    for (int k = 0; k < 32; ++k) {
      EXPECT_EQ(layout.Entry(1, k, packed.data()), 0.5f * second[size_t(k)]);
      EXPECT_EQ(layout.Entry(9, k, packed.data()), 4.0f * first[size_t(k)]);
    }
  }
}

}  // namespace
}  // namespace c3po::cuda
