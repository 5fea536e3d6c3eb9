// Compiled without fused multiply-adds, so that the same numbers become the same bits on every processor.

#include "server/compute/cpu/quantized_panels.h"

#include <hwy/base.h>

#include <algorithm>
#include <array>
#include <cstring>

#define C3PO_QUANTIZE_NAMESPACE four_rows
#define C3PO_QUANTIZE_LANES 4
#include "server/compute/cpu/quantize_rows-inl.h"
#undef C3PO_QUANTIZE_NAMESPACE
#undef C3PO_QUANTIZE_LANES

#if defined(__x86_64__)
HWY_PUSH_ATTRIBUTES("avx,avx2")
#define C3PO_QUANTIZE_NAMESPACE eight_rows
#define C3PO_QUANTIZE_LANES 8
#include "server/compute/cpu/quantize_rows-inl.h"
#undef C3PO_QUANTIZE_NAMESPACE
#undef C3PO_QUANTIZE_LANES
HWY_POP_ATTRIBUTES

HWY_PUSH_ATTRIBUTES("avx,avx2,avx512f,avx512bw,avx512vl,avx512dq")
#define C3PO_QUANTIZE_NAMESPACE sixteen_rows
#define C3PO_QUANTIZE_LANES 16
#include "server/compute/cpu/quantize_rows-inl.h"
#undef C3PO_QUANTIZE_NAMESPACE
#undef C3PO_QUANTIZE_LANES
HWY_POP_ATTRIBUTES
#endif

namespace c3po::cpu {
namespace {

constexpr size_t kRows = kPanelRows, kColumns = kGroupColumns;

float OfBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
uint32_t BitsOf(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
float Widened(uint16_t half) { return OfBits(uint32_t{half} << 16); }

// The first bit of column k of a word, and how many bits it has.
constexpr int BitOf(WeightLayout layout, int k) {
  return layout == WeightLayout::kInt8 ? 8 * (k % 2 * 2 + k / 2) : 8 * (k % 4) + 4 * (k / 4);
}
constexpr int BitsOfLevel(WeightLayout layout) { return layout == WeightLayout::kInt8 ? 8 : 4; }

// q [32, 16] into words [., 16].
template <WeightLayout kLayout>
void ToWords(const int32_t* q, uint32_t* words) {
  constexpr int kBits = BitsOfLevel(kLayout), kInWord = 32 / kBits, kAbove = kLayout == WeightLayout::kInt4 ? 8 : 0;
  for (size_t w = 0; w < kColumns / kInWord; ++w) {
    for (size_t r = 0; r < kRows; ++r) words[w * kRows + r] = 0;
    for (int k = 0; k < kInWord; ++k) {
      const int32_t* const levels = q + (w * kInWord + static_cast<size_t>(k)) * kRows;
      for (size_t r = 0; r < kRows; ++r) {
        words[w * kRows + r] |= (static_cast<uint32_t>(levels[r] + kAbove) & ((1u << kBits) - 1)) << BitOf(kLayout, k);
      }
    }
  }
}

// Nibbles 0, 2, 4, 6 side by side.
constexpr uint32_t EvenNibbles(uint32_t x) {
  x &= 0x0F0F0F0F;
  x = (x | x >> 4) & 0x00FF00FF;
  return (x | x >> 8) & 0xFFFF;
}

// The level of column k of the group in its word.
int8_t LevelIn(WeightLayout layout, uint32_t word, int k) {
  const int bits = BitsOfLevel(layout);
  const uint32_t field = word >> BitOf(layout, k % (32 / bits)) & ((1u << bits) - 1);
  return static_cast<int8_t>(layout == WeightLayout::kInt4 ? static_cast<int>(field) - 8 : static_cast<int8_t>(field));
}

constexpr int64_t WordsOf(WeightLayout layout) { return QuantBytes(layout) / (4 * kPanelRows); }  // of a row's group

// Of a row's words in a panel the first one; the others follow 64 bytes apart.
int64_t FirstWord(WeightLayout layout, int64_t place, int64_t group, int64_t panel_groups) {
  return ScalesBytes(panel_groups) + group * QuantBytes(layout) + 4 * place;
}

}  // namespace

bool QuantizeGroups(WeightLayout layout, const float* w, QuantizedGroups& to, const float* roots) {
  static const int widest = WidestLanes();
  return QuantizeGroupsBy(widest, layout, w, to, roots);
}

int WidestLanes() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl")) {
    return 16;
  }
  if (__builtin_cpu_supports("avx2")) return 8;
#endif
  return 4;
}

bool QuantizeGroupsBy(int lanes, WeightLayout layout, const float* w, QuantizedGroups& to, const float* roots) {
  // By the largest of the group, so that no square is lost. Where all are 0 none counts more than another.
  std::array<float, kColumns> relative = {};
  const float largest = roots == nullptr ? 0 : *std::max_element(roots, roots + kColumns);
  for (size_t k = 0; largest > 0 && k < kColumns; ++k) relative[k] = roots[k] / largest;
  roots = largest > 0 ? relative.data() : nullptr;
  float scales[kPanelRows];
  int32_t q[kGroupColumns * kPanelRows];
  bool finite;
#if defined(__x86_64__)
  if (lanes == 16) {
    finite = sixteen_rows::QuantizeSixteen(layout, w, roots, scales, q);
  } else if (lanes == 8) {
    finite = eight_rows::QuantizeSixteen(layout, w, roots, scales, q);
  } else
#endif
  {
    finite = four_rows::QuantizeSixteen(layout, w, roots, scales, q);
  }
  if (!finite) return false;
  for (int64_t r = 0; r < kPanelRows; ++r) to.scales[r] = static_cast<uint16_t>(BitsOf(scales[r]) >> 16);
  if (layout == WeightLayout::kInt8) {
    ToWords<WeightLayout::kInt8>(q, to.words);
  } else {
    ToWords<WeightLayout::kInt4>(q, to.words);
  }
  return true;
}

uint32_t PackedOfQuants(WeightLayout layout, uint32_t quants) {
  if (layout == WeightLayout::kInt8) return SwappedBytes(quants) ^ kPackedOffsets;
  return EvenNibbles(quants) | EvenNibbles(quants >> 4) << 16;
}

void LevelsOf(WeightLayout layout, const QuantizedGroups& groups, int64_t row, int8_t* q) {
  const int bits = BitsOfLevel(layout), in_word = 32 / bits;
  for (int k = 0; k < kGroupColumns; ++k) q[k] = LevelIn(layout, groups.words[k / in_word * kPanelRows + row], k);
}

void StoreGroup(WeightLayout layout, const QuantizedGroups& from, int64_t row, void* panel, int64_t place,
                int64_t group, int64_t panel_groups) {
  char* const bytes = static_cast<char*>(panel);
  std::memcpy(bytes + group * kScaleBytes + 2 * place, from.scales + row, 2);
  char* const to = bytes + FirstWord(layout, place, group, panel_groups);
  for (int64_t i = 0; i < WordsOf(layout); ++i) {
    std::memcpy(to + i * 4 * kPanelRows, from.words + i * kPanelRows + row, 4);
  }
}

void StorePanelGroup(WeightLayout layout, const QuantizedGroups& from, void* panel, int64_t group,
                     int64_t panel_groups) {
  char* const bytes = static_cast<char*>(panel);
  std::memcpy(bytes + group * kScaleBytes, from.scales, sizeof(from.scales));
  std::memcpy(bytes + FirstWord(layout, 0, group, panel_groups), from.words, static_cast<size_t>(QuantBytes(layout)));
}

void WidenGroup(WeightLayout layout, const void* panel, int64_t place, int64_t group, int64_t panel_groups,
                float* out) {
  const char* const bytes = static_cast<const char*>(panel);
  uint16_t stored;
  std::memcpy(&stored, bytes + group * kScaleBytes + 2 * place, 2);
  const float scale = Widened(stored);
  const char* const from = bytes + FirstWord(layout, place, group, panel_groups);
  const int bits = BitsOfLevel(layout), in_word = 32 / bits;
  for (int k = 0; k < kGroupColumns; ++k) {
    uint32_t word;
    std::memcpy(&word, from + k / in_word * 4 * kPanelRows, 4);
    out[k] = scale * static_cast<float>(LevelIn(layout, word, k));
  }
}

void RoundRow16(const float* x, const QuantizedCut& cut, int64_t columns, int16_t* q, float* scales) {
#if defined(__x86_64__)
  static const int widest = WidestLanes();
  if (widest == 16) return sixteen_rows::RoundSixteen(x, cut, columns, q, scales);
  if (widest == 8) return eight_rows::RoundSixteen(x, cut, columns, q, scales);
#endif
  four_rows::RoundSixteen(x, cut, columns, q, scales);
}

void RoundRow8(const float* x, const QuantizedCut& cut, int64_t columns, int8_t* q, float* scales, int32_t* offsets) {
  static const int widest = WidestLanes();
  RoundRow8By(widest, x, cut, columns, q, scales, offsets);
}

void RoundRow8By([[maybe_unused]] int lanes, const float* x, const QuantizedCut& cut, int64_t columns, int8_t* q,
                 float* scales, int32_t* offsets) {
#if defined(__x86_64__)
  if (lanes == 16) return sixteen_rows::RoundEight(x, cut, columns, q, scales, offsets);
  if (lanes == 8) return eight_rows::RoundEight(x, cut, columns, q, scales, offsets);
#endif
  four_rows::RoundEight(x, cut, columns, q, scales, offsets);
}

}  // namespace c3po::cpu
