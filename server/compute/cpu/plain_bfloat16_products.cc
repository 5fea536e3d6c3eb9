// What AVX-512 BF16 computes, in loops that any processor runs. VDPBF16PS adds the product of a pair's second numbers
// to a sum, then the product of its first ones (Intel SDM, volume 2). Products of two bfloat16 are exact in float32, so
// that each addition rounds once. Numbers below 2^-126 are 0 there, and count here.

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#include "server/compute/cpu/bfloat16_products.h"

#define C3PO_BFLOAT16_TILES_NAMESPACE plain_unit
#include "server/compute/cpu/bfloat16_tiles.h"

namespace c3po::cpu {
namespace {

float Widened(uint16_t bits) {
  const uint32_t whole = uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &whole, sizeof(value));
  return value;
}

// To the nearest, ties to even. What is not a number stays so.
uint16_t Rounded(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if (value != value) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

struct PlainUnit {
  using Sums = std::array<float, 16>;
  // A pair's first numbers and its second ones, widened.
  struct Words {
    std::array<float, 16> first, second;
  };
  static void Round(const float* x, int64_t count, uint16_t* out) { std::transform(x, x + count, out, Rounded); }
  static Sums Zero() { return {}; }
  static Words LoadWords(const uint16_t* p) {
    Words words;
    for (size_t i = 0; i < 16; ++i) words.first[i] = Widened(p[2 * i]), words.second[i] = Widened(p[2 * i + 1]);
    return words;
  }
  static Words Pair(const uint16_t* p) {
    Words words;
    words.first.fill(Widened(p[0]));
    words.second.fill(Widened(p[1]));
    return words;
  }
  static Sums MultiplyAdd(Sums sums, const Words& pair, const Words& words) {
    for (size_t i = 0; i < 16; ++i) sums[i] += pair.second[i] * words.second[i];
    for (size_t i = 0; i < 16; ++i) sums[i] += pair.first[i] * words.first[i];
    return sums;
  }
  static void Store(const Sums& sums, float* p) { std::copy(sums.begin(), sums.end(), p); }
};

}  // namespace

void PlainPairDotBlock(const DotProduct& p, int64_t row, int64_t row_end, int64_t begin, int64_t end) {
  plain_unit::DotBlock<plain_unit::VectorTiles<PlainUnit>>(p, row, row_end, begin, end);
}

}  // namespace c3po::cpu
