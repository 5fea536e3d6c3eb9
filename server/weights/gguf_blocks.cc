// This file is compiled without fused multiply-adds: a product is rounded before it is added to.

#include "server/weights/gguf_blocks.h"

#include <array>
#include <cstring>
#include <stdexcept>

#include "absl/strings/str_cat.h"
#include "server/weights/stored_elements.h"

namespace c3po {
namespace {

constexpr int kSmall = 32, kLarge = 256;

float HalfAt(const uint8_t* at) {
  float value;
  ToFloat32(DType::kF16, reinterpret_cast<const std::byte*>(at), 1, &value);
  return value;
}

uint32_t WordAt(const uint8_t* at) {
  return uint32_t{at[0]} | uint32_t{at[1]} << 8 | uint32_t{at[2]} << 16 | uint32_t{at[3]} << 24;
}

// The low halves of 16 bytes, then their high halves.
void Nibbles(const uint8_t* from, int bytes, uint8_t* codes) {
  for (int i = 0; i < bytes; ++i) {
    codes[i] = from[i] & 15;
    codes[bytes + i] = from[i] >> 4;
  }
}

void AddFifthBits(const uint8_t* from, uint8_t* codes) {
  const uint32_t bits = WordAt(from);
  for (int i = 0; i < kSmall; ++i) codes[i] = static_cast<uint8_t>(codes[i] | (bits >> i & 1) << 4);
}

void Centered(float d, const uint8_t* codes, int middle, float* to) {
  for (int i = 0; i < kSmall; ++i) to[i] = d * static_cast<float>(codes[i] - middle);
}

void Shifted(float d, const uint8_t* codes, float m, float* to) {
  for (int i = 0; i < kSmall; ++i) to[i] = d * static_cast<float>(codes[i]) + m;
}

void OfQ4_0(const uint8_t* from, float* to) {
  uint8_t codes[kSmall];
  Nibbles(from + 2, kSmall / 2, codes);
  Centered(HalfAt(from), codes, 8, to);
}

void OfQ4_1(const uint8_t* from, float* to) {
  uint8_t codes[kSmall];
  Nibbles(from + 4, kSmall / 2, codes);
  Shifted(HalfAt(from), codes, HalfAt(from + 2), to);
}

void OfQ5_0(const uint8_t* from, float* to) {
  uint8_t codes[kSmall];
  Nibbles(from + 6, kSmall / 2, codes);
  AddFifthBits(from + 2, codes);
  Centered(HalfAt(from), codes, 16, to);
}

void OfQ5_1(const uint8_t* from, float* to) {
  uint8_t codes[kSmall];
  Nibbles(from + 8, kSmall / 2, codes);
  AddFifthBits(from + 4, codes);
  Shifted(HalfAt(from), codes, HalfAt(from + 2), to);
}

void OfQ8_0(const uint8_t* from, float* to) {
  const float d = HalfAt(from);
  for (int i = 0; i < kSmall; ++i) to[i] = d * static_cast<float>(static_cast<int8_t>(from[2 + i]));
}

struct ScalePair {
  uint8_t scale, minimum;
};

// Pairs 0 to 3 are the low six bits of bytes 0 to 3 and 4 to 7. Of pairs 4 to 7 the low four bits are the two halves of
// bytes 8 to 11, the high two the upper bits of the former.
ScalePair PairAt(const uint8_t* packed, int j) {
  if (j < 4) return {static_cast<uint8_t>(packed[j] & 63), static_cast<uint8_t>(packed[j + 4] & 63)};
  const uint8_t low = packed[j + 4];
  return {static_cast<uint8_t>((low & 15) | (packed[j - 4] >> 6) << 4),
          static_cast<uint8_t>((low >> 4) | (packed[j] >> 6) << 4)};
}

// `fifth_bits` null: codes of four bits.
void OfPairs(float d, float m, const uint8_t* packed, const uint8_t* fifth_bits, const uint8_t* nibbles, float* to) {
  for (int j = 0; j < kLarge / 32; ++j) {
    const ScalePair pair = PairAt(packed, j);
    const float scale = d * static_cast<float>(pair.scale), minimum = m * static_cast<float>(pair.minimum);
    const uint8_t* const bytes = nibbles + j / 2 * 32;
    for (int i = 0; i < 32; ++i) {
      int code = bytes[i] >> (j % 2 * 4) & 15;
      if (fifth_bits != nullptr) code |= (fifth_bits[i] >> j & 1) << 4;
      to[j * 32 + i] = scale * static_cast<float>(code) - minimum;
    }
  }
}

void OfQ4_K(const uint8_t* from, float* to) {
  OfPairs(HalfAt(from), HalfAt(from + 2), from + 4, nullptr, from + 16, to);
}

void OfQ5_K(const uint8_t* from, float* to) {
  OfPairs(HalfAt(from), HalfAt(from + 2), from + 4, from + 16, from + 48, to);
}

// Each half of 128 elements: 64 bytes of low bits, the low halves of all before the high ones, and 32 bytes of high
// bits, two for each of four groups of 32.
void OfQ6_K(const uint8_t* from, float* to) {
  const uint8_t* const low = from;
  const uint8_t* const high = from + 128;
  const uint8_t* const scales = from + 192;
  const float d = HalfAt(from + 208);
  for (int group = 0; group < kLarge / 32; ++group) {
    const int half = group / 4, within = group % 4;
    for (int i = 0; i < 32; ++i) {
      const int low_bits = low[half * 64 + within % 2 * 32 + i] >> (within / 2 * 4) & 15;
      const int high_bits = high[half * 32 + i] >> (within * 2) & 3;
      const float scale = d * static_cast<float>(static_cast<int8_t>(scales[(group * 32 + i) / 16]));
      to[group * 32 + i] = scale * static_cast<float>((low_bits | high_bits << 4) - 32);
    }
  }
}

using Dequantize = void (*)(const uint8_t* from, float* to);

Dequantize FunctionOf(DType type) {
  switch (type) {
    case DType::kQ4_0:
      return OfQ4_0;
    case DType::kQ4_1:
      return OfQ4_1;
    case DType::kQ5_0:
      return OfQ5_0;
    case DType::kQ5_1:
      return OfQ5_1;
    case DType::kQ8_0:
      return OfQ8_0;
    case DType::kQ4_K:
      return OfQ4_K;
    case DType::kQ5_K:
      return OfQ5_K;
    case DType::kQ6_K:
      return OfQ6_K;
    default:
      return nullptr;
  }
}

}  // namespace

bool IsBlockType(DType type) { return FunctionOf(type) != nullptr; }

void DequantizeBlocks(DType type, const std::byte* from, int64_t count, float* to) {
  const Dequantize dequantize = FunctionOf(type);
  const int64_t block = DTypeBlock(type), bytes = DTypeBytes(type);
  if (dequantize == nullptr || count % block != 0) {
    throw std::invalid_argument(absl::StrCat(count, " elements are no blocks of type ", DTypeName(type)));
  }
  const auto* at = reinterpret_cast<const uint8_t*>(from);
  for (int64_t i = 0; i < count; i += block, at += bytes) dequantize(at, to + i);
}

}  // namespace c3po
