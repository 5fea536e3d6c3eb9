// The integer products of quantized weights by AVX-512 VNNI: a step's two or four products and their sum are one
// instruction.

#include "server/compute/cpu/quantized_products.h"

#if defined(__x86_64__)

#include <hwy/base.h>
#include <immintrin.h>

// What GCC 12's intrinsics leave undefined on purpose it takes for a variable that was forgotten (GCC's bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#define HWY_BEFORE_NAMESPACE() HWY_PUSH_ATTRIBUTES("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")
#define HWY_AFTER_NAMESPACE() HWY_POP_ATTRIBUTES
#define C3PO_QUANTIZED_TILES_NAMESPACE vnni
#include "server/compute/cpu/quantized_tiles-inl.h"

HWY_BEFORE_NAMESPACE();
namespace c3po::cpu::vnni {
namespace {

struct VnniUnit {
  static constexpr int kParts = 1;
  template <WeightLayout kLayout>
  static constexpr int kRows = kLayout == WeightLayout::kInt4 ? 8 : 6;
  template <WeightLayout kLayout>
  static constexpr int Panels(int rows) {
    return rows <= 2 ? 4 : (rows <= 6 ? 2 : 1);
  }

  template <WeightLayout>
  static constexpr int kSteps = 2;
  template <WeightLayout kLayout>
  static constexpr int64_t kGroupBytes = kGroupColumns* RoundedBytes(kLayout);
  template <WeightLayout kLayout>
  static constexpr int kOffsets = kLayout == WeightLayout::kInt4 ? 1 : 0;

  using Words = __m512i;
  using Activations = __m512i;
  using Ints = __m512i;
  using Floats = __m512;
  static HWY_INLINE Ints LoadWords(const char* p, int) { return _mm512_loadu_si512(p); }
  static HWY_INLINE Ints All(const char* p) {
    int32_t bytes;
    std::memcpy(&bytes, p, sizeof(bytes));
    return _mm512_set1_epi32(bytes);
  }
  template <WeightLayout kLayout, int S>
  static HWY_INLINE Ints Levels(Ints words) {
    if constexpr (kLayout == WeightLayout::kInt8) {
      return _mm512_srai_epi16(S == 0 ? _mm512_slli_epi16(words, 8) : words, 8);
    } else {
      return _mm512_and_si512(S == 0 ? words : _mm512_srli_epi16(words, 4), _mm512_set1_epi8(15));
    }
  }
  template <WeightLayout kLayout>
  static HWY_INLINE Ints Start(const int32_t* offsets) {
    return _mm512_set1_epi32(kOffsets<kLayout> > 0 ? *offsets : 0);
  }
  template <WeightLayout kLayout>
  static HWY_INLINE Ints MultiplyAdd(Ints sums, Ints levels, Ints activations) {
    if constexpr (kLayout == WeightLayout::kInt8) return _mm512_dpwssd_epi32(sums, levels, activations);
    return _mm512_dpbusd_epi32(sums, levels, activations);
  }
  template <WeightLayout kLayout>
  static HWY_INLINE Ints Finish(Ints sums) {
    return sums;
  }
  static HWY_INLINE Floats Scales(const uint16_t* p, int) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }
  static HWY_INLINE Floats ZeroFloats() { return _mm512_setzero_ps(); }
  static HWY_INLINE Floats AddScaled(Floats sums, Floats scales, float factor, Ints ints) {
    return _mm512_fmadd_ps(scales, _mm512_mul_ps(_mm512_set1_ps(factor), _mm512_cvtepi32_ps(ints)), sums);
  }
  static HWY_INLINE void Store(Floats sums, float* p, int) { _mm512_storeu_ps(p, sums); }
};

void DotPanels(const RoundedActivations& x, const WeightView& w, int64_t panel, int64_t panel_end, float* const* y) {
  QuantizedDotWith<VnniUnit>(x, w, panel, panel_end, y);
}

}  // namespace
}  // namespace c3po::cpu::vnni
HWY_AFTER_NAMESPACE();

namespace c3po::cpu {

void VnniDotPanels(const RoundedActivations& x, const WeightView& w, int64_t panel, int64_t panel_end,
                   float* const* y) {
  vnni::DotPanels(x, w, panel, panel_end, y);
}

}  // namespace c3po::cpu

#else

namespace c3po::cpu {

void VnniDotPanels(const RoundedActivations& x, const WeightView& w, int64_t panel, int64_t panel_end,
                   float* const* y) {
  IntegerDotPanels(IntegerUnit::kVectors, x, w, panel, panel_end, y);
}

}  // namespace c3po::cpu

#endif
