// Three VNNI instructions multiply 64 weights with a row's digits, where float32 takes four multiply-adds and, for each
// 16 weights, three to five instructions that widen them. The walk over rows, panels and groups is that of all integer
// products, quantized_tiles-inl.h.

#include "server/compute/cpu/digit_products.h"

#if defined(__x86_64__)

#include <hwy/base.h>
#include <immintrin.h>

#include <cstring>

// What GCC 12's intrinsics leave undefined on purpose it takes for a variable that was forgotten (GCC's bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#define HWY_BEFORE_NAMESPACE() HWY_PUSH_ATTRIBUTES("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")
#define HWY_AFTER_NAMESPACE() HWY_POP_ATTRIBUTES
#define C3PO_QUANTIZED_TILES_NAMESPACE digits
#include "server/compute/cpu/quantized_tiles-inl.h"

HWY_BEFORE_NAMESPACE();
namespace c3po::cpu::digits {
namespace {

// What is added to a level so that it has no sign.
constexpr int AddedToLevels(WeightLayout layout) { return layout == WeightLayout::kInt4 ? 8 : 128; }

struct DigitUnit {
  static constexpr int kParts = 1;
  template <WeightLayout>
  static constexpr int kRows = 6;
  template <WeightLayout>
  static constexpr int Panels(int rows) {
    return rows == 1 ? 4 : (rows <= 3 ? 2 : 1);
  }
  template <WeightLayout kLayout>
  static constexpr int kSteps = kLayout == WeightLayout::kInt4 ? 2 : 1;
  template <WeightLayout>
  static constexpr int64_t kGroupBytes = kDigitGroupBytes;
  template <WeightLayout>
  static constexpr int kOffsets = kDigits;

  struct OfEachDigit {
    __m512i first, second, third;
  };
  using Words = __m512i;
  using Activations = OfEachDigit;
  using Ints = OfEachDigit;
  using Floats = __m512;

  static HWY_INLINE __m512i Four(const char* p) {
    int32_t bytes;
    std::memcpy(&bytes, p, sizeof(bytes));
    return _mm512_set1_epi32(bytes);
  }
  static HWY_INLINE Words LoadWords(const char* p, int) { return _mm512_loadu_si512(p); }
  static HWY_INLINE Activations All(const char* p) {
    return {Four(p), Four(p + kGroupColumns), Four(p + 2 * kGroupColumns)};
  }
  template <WeightLayout kLayout, int S>
  static HWY_INLINE Words Levels(Words words) {
    if constexpr (kLayout == WeightLayout::kInt8) {
      return _mm512_xor_si512(words, _mm512_set1_epi8(-128));
    } else {
      return _mm512_and_si512(S == 0 ? words : _mm512_srli_epi16(words, 4), _mm512_set1_epi8(15));
    }
  }
  template <WeightLayout>
  static HWY_INLINE Ints Start(const int32_t* offsets) {
    return {_mm512_set1_epi32(offsets[0]), _mm512_set1_epi32(offsets[1]), _mm512_set1_epi32(offsets[2])};
  }
  template <WeightLayout>
  static HWY_INLINE Ints MultiplyAdd(const Ints& sums, Words levels, const Activations& x) {
    return {_mm512_dpbusd_epi32(sums.first, levels, x.first), _mm512_dpbusd_epi32(sums.second, levels, x.second),
            _mm512_dpbusd_epi32(sums.third, levels, x.third)};
  }
  template <WeightLayout>
  static HWY_INLINE Ints Finish(const Ints& sums) {
    return sums;
  }
  static HWY_INLINE Floats Scales(const uint16_t* p, int) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }
  static HWY_INLINE Floats ZeroFloats() { return _mm512_setzero_ps(); }
  // Sums are at most 32 (128 * 127) in magnitude: the two lower ones fit an integer together.
  static HWY_INLINE Floats AddScaled(Floats sums, Floats scales, float factor, const Ints& ints) {
    const __m512i lower = _mm512_add_epi32(_mm512_slli_epi32(ints.second, 8), ints.third);
    const __m512 whole =
        _mm512_fmadd_ps(_mm512_cvtepi32_ps(ints.first), _mm512_set1_ps(65536), _mm512_cvtepi32_ps(lower));
    return _mm512_fmadd_ps(scales, _mm512_mul_ps(_mm512_set1_ps(factor), whole), sums);
  }
  static HWY_INLINE void Store(Floats sums, float* p, int) { _mm512_storeu_ps(p, sums); }
};

// Byte kByte of each of 32 integers.
template <int kByte>
HWY_INLINE __m256i BytesOf(__m512i first, __m512i last) {
  return _mm256_set_m128i(_mm512_cvtepi32_epi8(_mm512_srli_epi32(last, 8 * kByte)),
                          _mm512_cvtepi32_epi8(_mm512_srli_epi32(first, 8 * kByte)));
}

HWY_INLINE int32_t SumOfLanes(__m256i lanes) {
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xB1)));
}

// Of 32 columns, the first `count` of them at x. q + 0x808080 has each digit plus 128 as a byte.
void CutGroup(WeightLayout layout, const float* x, int64_t count, int8_t* digits, float* scale, int32_t* offsets) {
  constexpr float kLargest = 8355000, kSmallest = 0x1p-100f;  // |q| + 0x808080 stays below 2^24.
  const auto valid = static_cast<uint32_t>((uint64_t{1} << count) - 1);
  const __m512 first = _mm512_maskz_loadu_ps(static_cast<__mmask16>(valid), x);
  const __m512 last = _mm512_maskz_loadu_ps(static_cast<__mmask16>(valid >> 16), x + 16);
  const __m512i magnitude = _mm512_set1_epi32(0x7FFFFFFF);  // Magnitudes compare as the integers that their bits are.
  const int32_t bits = _mm512_reduce_max_epi32(_mm512_max_epi32(
      _mm512_and_si512(_mm512_castps_si512(first), magnitude), _mm512_and_si512(_mm512_castps_si512(last), magnitude)));
  float largest;
  std::memcpy(&largest, &bits, sizeof(largest));
  const bool finite = bits < 0x7F800000, some = finite && largest >= kSmallest;
  if (!some) {
    const uint32_t none = finite ? 0 : 0x7FC00000;
    std::memcpy(scale, &none, sizeof(none));
    std::memset(digits, 0, kDigitGroupBytes);
    std::memset(offsets, 0, kDigits * sizeof(*offsets));
    return;
  }
  *scale = largest / kLargest;
  const __m512 inverse = _mm512_set1_ps(kLargest / largest);
  const __m512i center = _mm512_set1_epi32(0x808080);
  const __m512i q = _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(first, inverse)), center);
  const __m512i r = _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(last, inverse)), center);
  const __m256i of_digits[kDigits] = {BytesOf<2>(q, r), BytesOf<1>(q, r), BytesOf<0>(q, r)};
  const __m256i added = _mm256_set1_epi8(static_cast<char>(AddedToLevels(layout)));
  const __m256i order = _mm256_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15,  //
                                         0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
  for (int i = 0; i < kDigits; ++i) {
    __m256i own = _mm256_xor_si256(of_digits[i], _mm256_set1_epi8(-128));
    if (layout == WeightLayout::kInt8) own = _mm256_shuffle_epi8(own, order);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(digits + i * kGroupColumns), own);
    offsets[i] = -SumOfLanes(_mm256_dpbusd_epi32(_mm256_setzero_si256(), added, own));
  }
}

void CutRow(WeightLayout layout, const float* x, const QuantizedCut& cut, int64_t columns, int8_t* digits,
            float* scales, int32_t* offsets) {
  const int64_t groups = cut.Groups(columns);
  for (int64_t g = 0; g < groups; ++g) {
    CutGroup(layout, x + cut.GroupColumn(g), cut.ColumnsOf(g), digits + g * kDigitGroupBytes, scales + g,
             offsets + g * kDigits);
  }
}

void DotPanels(const RoundedActivations& x, const WeightView& w, int64_t panel, int64_t panel_end, float* const* y) {
  QuantizedDotWith<DigitUnit>(x, w, panel, panel_end, y);
}

}  // namespace
}  // namespace c3po::cpu::digits
HWY_AFTER_NAMESPACE();

namespace c3po::cpu {

void CutIntoDigits(WeightLayout layout, const float* x, const QuantizedCut& cut, int64_t columns, int8_t* digits,
                   float* scales, int32_t* offsets) {
  digits::CutRow(layout, x, cut, columns, digits, scales, offsets);
}

void DigitDotPanels(const RoundedActivations& x, const WeightView& w, int64_t panel, int64_t panel_end,
                    float* const* y) {
  digits::DotPanels(x, w, panel, panel_end, y);
}

}  // namespace c3po::cpu

#else

namespace c3po::cpu {

// No processor of this kind has the unit, so nobody asks.
void CutIntoDigits(WeightLayout, const float*, const QuantizedCut&, int64_t, int8_t*, float*, int32_t*) {}
void DigitDotPanels(const RoundedActivations&, const WeightView&, int64_t, int64_t, float* const*) {}

}  // namespace c3po::cpu

#endif
