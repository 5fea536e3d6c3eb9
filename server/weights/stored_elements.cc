#include "server/weights/stored_elements.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <stdexcept>

#include "absl/strings/str_cat.h"
#include "server/weights/gguf_blocks.h"
#include "server/weights/packed_tensors.h"

namespace c3po {
namespace {

float FloatOfBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
uint32_t BitsOf(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

float OfBfloat16(uint16_t half) { return FloatOfBits(uint32_t{half} << 16); }

// Nearest, ties to even. A number that is none stays none: its upper half could be that of an infinity.
uint16_t RoundToBfloat16(float value) {
  const uint32_t bits = BitsOf(value);
  const auto rounded = static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
  const auto quiet = static_cast<uint16_t>(bits >> 16 | 0x40);
  return (bits & 0x7FFFFFFF) > 0x7F800000 ? quiet : rounded;
}

// Exponent and fraction of a half at float32's places are 2^-112 of its value, subnormal halves included.
float OfHalf(uint16_t half) {
  const uint32_t magnitude = half & 0x7FFF, sign = uint32_t{half} >> 15 << 31;
  const float finite = FloatOfBits(magnitude << 13) * 0x1p112f;
  const uint32_t bits = magnitude < 0x7C00 ? BitsOf(finite) : magnitude << 13 | 0x7F800000;
  return FloatOfBits(sign | bits);
}

// The bfloat16 of each F8_E4M3: sign, four bits of exponent with a bias of 7, three of fraction. All bits set: no
// number. There is no infinity (https://arxiv.org/abs/2209.05433, table 1).
const std::array<uint16_t, 256>& Bfloat16OfF8() {
  static const auto* const kTable = [] {
    auto* const table = new std::array<uint16_t, 256>;
    for (uint32_t code = 0; code < 256; ++code) {
      const uint32_t exponent = code >> 3 & 15, fraction = code & 7, sign = code >> 7 << 31;
      float value =
          exponent == 0 ? static_cast<float>(fraction) * 0x1p-9f : FloatOfBits((exponent + 120) << 23 | fraction << 20);
      if ((code & 0x7F) == 0x7F) value = FloatOfBits(0x7FC00000);
      (*table)[code] = static_cast<uint16_t>((BitsOf(value) | sign) >> 16);
    }
    return table;
  }();
  return *kTable;
}

// to[i] = convert(the i-th element of `from`).
template <typename Stored, typename To, typename Convert>
void Each(const std::byte* from, int64_t count, To* to, const Convert& convert) {
  for (int64_t i = 0; i < count; ++i) {
    Stored stored;
    std::memcpy(&stored, from + i * static_cast<int64_t>(sizeof stored), sizeof stored);
    to[i] = convert(stored);
  }
}

void BlocksToBfloat16(DType type, const std::byte* from, int64_t count, uint16_t* to) {
  std::array<float, 256> wide;  // A block of any type.
  const int64_t block = DTypeBlock(type);
  for (int64_t i = 0; i < count; i += block, from += DTypeBytes(type)) {
    DequantizeBlocks(type, from, std::min(block, count - i), wide.data());
    for (int64_t j = 0; j < block; ++j) to[i + j] = RoundToBfloat16(wide[static_cast<size_t>(j)]);
  }
}

[[noreturn]] void Refuse(DType type) {
  throw std::invalid_argument(absl::StrCat("elements of type ", DTypeName(type), " are no weights"));
}

}  // namespace

bool IsWeightType(DType type) {
  return type == DType::kF32 || type == DType::kBF16 || type == DType::kF16 || type == DType::kF8E4M3 ||
         IsBlockType(type) || IsPackedType(type);
}

void ToFloat32(DType type, const std::byte* from, int64_t count, float* to) {
  switch (type) {
    case DType::kF32:
      if (count > 0) std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
      return;
    case DType::kBF16:
      return Each<uint16_t>(from, count, to, [](uint16_t half) { return OfBfloat16(half); });
    case DType::kF16:
      return Each<uint16_t>(from, count, to, [](uint16_t half) { return OfHalf(half); });
    case DType::kF8E4M3: {
      const std::array<uint16_t, 256>& table = Bfloat16OfF8();
      return Each<uint8_t>(from, count, to, [&table](uint8_t code) { return OfBfloat16(table[code]); });
    }
    default:
      if (!IsBlockType(type)) Refuse(type);
      DequantizeBlocks(type, from, count, to);
  }
}

void ToBfloat16(DType type, const std::byte* from, int64_t count, uint16_t* to) {
  switch (type) {
    case DType::kF32:
      return Each<float>(from, count, to, [](float value) { return RoundToBfloat16(value); });
    case DType::kBF16:
      if (count > 0) std::memcpy(to, from, static_cast<size_t>(count) * sizeof(uint16_t));
      return;
    case DType::kF16:
      return Each<uint16_t>(from, count, to, [](uint16_t half) { return RoundToBfloat16(OfHalf(half)); });
    case DType::kF8E4M3: {
      const std::array<uint16_t, 256>& table = Bfloat16OfF8();
      return Each<uint8_t>(from, count, to, [&table](uint8_t code) { return table[code]; });
    }
    default:
      if (!IsBlockType(type)) Refuse(type);
      BlocksToBfloat16(type, from, count, to);
  }
}

}  // namespace c3po
