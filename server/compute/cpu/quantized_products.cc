// Two ways to multiply x with quantized weights. The integers': tiles of quantized_tiles-inl.h with the vectors of each
// instruction set here, and with AVX-512 VNNI in vnni_products.cc and digit_products.cc. And widened: some panels
// become float32 in a buffer that stays in cache, laid out as panels of float32 are, and the products with these do the
// rest, so that the order of a sum is theirs. The way back, a W, is in quantized_outer.cc.

#include "server/compute/cpu/compiled_targets.h"
// Compiled once for each instruction set.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "server/compute/cpu/quantized_products.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "hwy/highway.h"
#include "server/compute/cpu/digit_products.h"
#include "server/compute/cpu/panel_products.h"
#include "server/compute/cpu/quantized_panels.h"
#include "server/compute/cpu/quantized_products.h"
#include "server/compute/cpu/vectors-inl.h"
#undef C3PO_QUANTIZED_TILES_NAMESPACE
#define C3PO_QUANTIZED_TILES_NAMESPACE HWY_NAMESPACE
#include "server/compute/cpu/quantized_tiles-inl.h"

HWY_BEFORE_NAMESPACE();
namespace c3po::cpu::HWY_NAMESPACE {
namespace {

using DI = hn::RebindToSigned<D>;
using VI = hn::Vec<DI>;

HWY_INLINE VI WordsAt(const char* p, int part) {
  return hn::LoadU(DI(), reinterpret_cast<const int32_t*>(p) + part * static_cast<int>(kLanes));
}

// x86 multiplies pairs of 16 bits and adds both, lane by lane, and with SSSE3 pairs of bytes. Highway's own operations
// promise no order of lanes, or are not there; elsewhere each level is multiplied as a number of 32 bits.
#undef C3PO_MULTIPLIES_PAIRS
#undef C3PO_MULTIPLIES_BYTES
#if HWY_ARCH_X86 && (HWY_TARGET == HWY_SSE4 || HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3)
#define C3PO_MULTIPLIES_PAIRS 1
#define C3PO_MULTIPLIES_BYTES 1
#else
#define C3PO_MULTIPLIES_PAIRS (HWY_ARCH_X86 && HWY_TARGET == HWY_SSE2)
#define C3PO_MULTIPLIES_BYTES 0
#endif

#if C3PO_MULTIPLIES_BYTES
// Four levels without a sign times four activations, as two sums of 16 bits; and their sum, of 32 bits.
#if HWY_TARGET == HWY_AVX3
HWY_INLINE VI AddBytes(VI sums, VI levels, VI activations) {
  return VI{_mm512_add_epi16(sums.raw, _mm512_maddubs_epi16(levels.raw, activations.raw))};
}
HWY_INLINE VI AddHalves(VI sums) { return VI{_mm512_madd_epi16(sums.raw, _mm512_set1_epi16(1))}; }
#elif HWY_TARGET == HWY_AVX2
HWY_INLINE VI AddBytes(VI sums, VI levels, VI activations) {
  return VI{_mm256_add_epi16(sums.raw, _mm256_maddubs_epi16(levels.raw, activations.raw))};
}
HWY_INLINE VI AddHalves(VI sums) { return VI{_mm256_madd_epi16(sums.raw, _mm256_set1_epi16(1))}; }
#else
HWY_INLINE VI AddBytes(VI sums, VI levels, VI activations) {
  return VI{_mm_add_epi16(sums.raw, _mm_maddubs_epi16(levels.raw, activations.raw))};
}
HWY_INLINE VI AddHalves(VI sums) { return VI{_mm_madd_epi16(sums.raw, _mm_set1_epi16(1))}; }
#endif
#endif

#if C3PO_MULTIPLIES_PAIRS
using D16 = hn::Repartition<int16_t, DI>;
#endif
// The field of `kBits` bits whose highest is bit kTop of each word.
template <int kTop, int kBits>
HWY_INLINE VI Signed(VI words) {
  return hn::ShiftRight<32 - kBits>(hn::ShiftLeft<31 - kTop>(words));
}

struct VectorUnit {
  static constexpr int kParts = static_cast<int>(kPanelRows / kLanes);
  // While products of kInt4 are added up, the sums of floats may wait in memory: a tile has more rows than registers.
  static constexpr int kInt4Rows = kLanes == 1 ? 1 : static_cast<int>(kLanes / 2);
  static constexpr int kInt8Rows = kLanes == 16 ? 6 : (kLanes == 8 ? 3 : 1);
  template <WeightLayout kLayout>
  static constexpr int kRows = kLayout == WeightLayout::kInt4 ? kInt4Rows : kInt8Rows;
  template <WeightLayout kLayout>
  static constexpr int Panels(int rows) {
    return kLanes == 16 ? (rows <= 2 ? 4 : (rows <= 6 ? 2 : 1)) : kLanes == 8 && rows == 1 ? 2 : 1;
  }

  template <WeightLayout>
  static constexpr int kSteps = 2;
  template <WeightLayout kLayout>
  static constexpr int64_t kGroupBytes = kGroupColumns* RoundedBytes(kLayout);
  template <WeightLayout kLayout>
  static constexpr int kOffsets = kLayout == WeightLayout::kInt4 ? 1 : 0;

  using Words = VI;
  using Activations = VI;
  using Ints = VI;
  using Floats = V;
  static HWY_INLINE VI LoadWords(const char* p, int part) { return WordsAt(p, part); }
  static HWY_INLINE VI All(const char* p) {
    int32_t bytes;
    std::memcpy(&bytes, p, sizeof(bytes));
    return hn::Set(DI(), bytes);
  }
  template <WeightLayout kLayout, int S>
  static HWY_INLINE VI Levels(VI words) {
    if constexpr (kLayout == WeightLayout::kInt8) {
#if C3PO_MULTIPLIES_PAIRS
      const auto halves = hn::BitCast(D16(), words);
      return hn::BitCast(DI(), hn::ShiftRight<8>(S == 0 ? hn::ShiftLeft<8>(halves) : halves));
#else
      return S == 0 ? hn::ShiftLeft<8>(words) : words;  // Each level is the upper byte of its half.
#endif
    } else {
      return hn::And(S == 0 ? words : hn::ShiftRight<4>(words), hn::Set(DI(), 0x0F0F0F0F));
    }
  }

  // Of kInt4 with bytes multiplied, sums are two of 16 bits each, the offset in the first. In the end that one is at
  // most 16 (8 * 127) of its own columns and 16 (8 * 127) of the other's offset in magnitude, the other 16 (15 * 127);
  // in between they may wrap.
  template <WeightLayout kLayout>
  static HWY_INLINE VI Start(const int32_t* offsets) {
    const int32_t offset = kOffsets<kLayout> > 0 ? *offsets : 0;
    return hn::Set(DI(), kLayout == WeightLayout::kInt4 && C3PO_MULTIPLIES_BYTES ? offset & 0xFFFF : offset);
  }
  template <WeightLayout kLayout>
  static HWY_INLINE VI MultiplyAdd(VI sums, VI levels, VI activations) {
    if constexpr (kLayout == WeightLayout::kInt8) {
#if C3PO_MULTIPLIES_PAIRS
      VI unused = hn::Zero(DI());
      return hn::ReorderWidenMulAccumulate(DI(), hn::BitCast(D16(), levels), hn::BitCast(D16(), activations), sums,
                                           unused);
#else
      sums = hn::Add(sums, hn::Mul(Signed<15, 8>(levels), Signed<15, 16>(activations)));
      return hn::Add(sums, hn::Mul(Signed<31, 8>(levels), Signed<31, 16>(activations)));
#endif
    } else {
#if C3PO_MULTIPLIES_BYTES
      return AddBytes(sums, levels, activations);
#else
      sums = hn::Add(sums, hn::Mul(Signed<7, 8>(levels), Signed<7, 8>(activations)));
      sums = hn::Add(sums, hn::Mul(Signed<15, 8>(levels), Signed<15, 8>(activations)));
      sums = hn::Add(sums, hn::Mul(Signed<23, 8>(levels), Signed<23, 8>(activations)));
      return hn::Add(sums, hn::Mul(Signed<31, 8>(levels), Signed<31, 8>(activations)));
#endif
    }
  }
  template <WeightLayout kLayout>
  static HWY_INLINE VI Finish(VI sums) {
#if C3PO_MULTIPLIES_BYTES
    if constexpr (kLayout == WeightLayout::kInt4) return AddHalves(sums);
#endif
    return sums;
  }

  static HWY_INLINE V Scales(const uint16_t* p, int part) { return Load(p + part * static_cast<int>(kLanes)); }
  static HWY_INLINE V ZeroFloats() { return hn::Zero(D()); }
  static HWY_INLINE V AddScaled(V sums, V scales, float factor, VI ints) {
    return hn::MulAdd(scales, hn::Mul(hn::Set(D(), factor), hn::ConvertTo(D(), ints)), sums);
  }
  static HWY_INLINE void Store(V sums, float* p, int part) {
    hn::StoreU(sums, D(), p + part * static_cast<int>(kLanes));
  }
};

void DotPanels(const RoundedActivations& x, const WeightView& w, int64_t panel, int64_t panel_end, float* const* y) {
  QuantizedDotWith<VectorUnit>(x, w, panel, panel_end, y);
}

// The levels of columns [0, 32) of a group, 16 rows each, times their scales: `count` of them to out [count, 16].
template <WeightLayout kLayout>
HWY_INLINE void WidenOf(const char* scales, const char* quants, int64_t count, float* out) {
  constexpr int kParts = VectorUnit::kParts;
  constexpr int kInWord = kLayout == WeightLayout::kInt8 ? 4 : 8;
  for (int i = 0; i < kParts; ++i) {
    const V scale = VectorUnit::Scales(reinterpret_cast<const uint16_t*>(scales), i);
    const auto store = [&](VI levels, int64_t k) HWY_ATTR {
      if (k < count) VectorUnit::Store(hn::Mul(scale, hn::ConvertTo(D(), levels)), out + k * kPanelRows, i);
    };
    for (int64_t k = 0; k < count; k += kInWord) {
      const VI words = WordsAt(quants + k / kInWord * 4 * kPanelRows, i);
      if constexpr (kLayout == WeightLayout::kInt8) {
        store(hn::ShiftRight<24>(hn::ShiftLeft<24>(words)), k);
        store(hn::ShiftRight<24>(hn::ShiftLeft<8>(words)), k + 1);
        store(hn::ShiftRight<24>(hn::ShiftLeft<16>(words)), k + 2);
        store(hn::ShiftRight<24>(words), k + 3);
      } else {
        const VI low = hn::Set(DI(), 15), eight = hn::Set(DI(), 8);
        const auto level = [&](VI shifted) HWY_ATTR { return hn::Sub(hn::And(shifted, low), eight); };
        store(level(words), k);
        store(level(hn::ShiftRight<8>(words)), k + 1);
        store(level(hn::ShiftRight<16>(words)), k + 2);
        store(level(hn::ShiftRight<24>(words)), k + 3);
        store(level(hn::ShiftRight<4>(words)), k + 4);
        store(level(hn::ShiftRight<12>(words)), k + 5);
        store(level(hn::ShiftRight<20>(words)), k + 6);
        store(level(hn::ShiftRight<28>(words)), k + 7);
      }
    }
  }
}

// Columns [group's first, ...) of groups [group, group_end) of a panel of w, to out [columns, 16].
void WidenPanel(const WeightView& w, int64_t panel, int64_t group, int64_t group_end, float* out) {
  const int64_t groups = w.cut.panel_groups, quants = QuantBytes(w.layout);
  const char* const at = static_cast<const char*>(w.data) + panel * PanelBytes(w.layout, groups);
  for (; group < group_end; ++group) {
    const int64_t count = w.cut.ColumnsOf(group), own = w.cut.first_group + group;
    const char* const words = at + ScalesBytes(groups) + own * quants;
    if (w.layout == WeightLayout::kInt8) {
      WidenOf<WeightLayout::kInt8>(at + own * kScaleBytes, words, count, out);
    } else {
      WidenOf<WeightLayout::kInt4>(at + own * kScaleBytes, words, count, out);
    }
    out += count * kPanelRows;
  }
}

}  // namespace
}  // namespace c3po::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace c3po::cpu {

HWY_EXPORT(DotPanels);
HWY_EXPORT(WidenPanel);

namespace {

constexpr int64_t kWidenedBytes = 192 << 10;  // Of widened panels, which are read again at once.

void Widen(const WeightView& w, int64_t panel, int64_t group, int64_t group_end, float* out) {
  HWY_DYNAMIC_DISPATCH(WidenPanel)(w, panel, group, group_end, out);
}

float* RowAt(const MutableRowsView& view, int64_t i) {
  return view.data + (view.index ? view.index[i] : i) * view.stride;
}
const float* RowAt(const RowsView& view, int64_t i) {
  return view.data + (view.index ? view.index[i] : i) * view.stride;
}

// The calling thread's buffer number `I`, of `size` at least.
template <int I, typename T>
T* Buffer(int64_t size) {
  thread_local std::vector<T> buffer;
  if (buffer.size() < static_cast<size_t>(size)) buffer.resize(static_cast<size_t>(size));
  return buffer.data();
}

// The calling thread's rounded rows, and of which product they are.
struct RoundedRows {
  std::vector<char> q;
  std::vector<float> scales;
  std::vector<int32_t> offsets;
  int64_t job = 0;  // 0: of none
  const DotProduct* product = nullptr;
  int64_t row = 0, row_end = 0;
};

// One row of x as the product takes it.
void RoundRow(const WeightView& w, const float* x, char* q, float* scales, int32_t* offsets) {
  auto* const bytes = reinterpret_cast<int8_t*>(q);
  if (!w.rounds_activations) return CutIntoDigits(w.layout, x, w.cut, w.columns, bytes, scales, offsets);
  if (w.layout == WeightLayout::kInt4) return RoundRow8(x, w.cut, w.columns, bytes, scales, offsets);
  RoundRow16(x, w.cut, w.columns, reinterpret_cast<int16_t*>(q), scales);
}

RoundedActivations RoundRows(const DotProduct& p, int64_t row, int64_t row_end, int64_t job) {
  thread_local RoundedRows own;
  const bool digits = !p.w.rounds_activations;
  const int64_t rows = row_end - row, groups = p.w.cut.Groups(p.w.columns),
                row_offsets = groups * (digits ? kDigits : 1);
  if (job == 0 || own.job != job || own.product != &p || own.row != row || own.row_end != row_end) {
    const auto resize = [](auto& buffer, int64_t size) {
      if (buffer.size() < static_cast<size_t>(size)) buffer.resize(static_cast<size_t>(size));
    };
    const int64_t row_bytes = groups * (digits ? kDigitGroupBytes : kGroupColumns * RoundedBytes(p.w.layout));
    resize(own.q, rows * row_bytes);
    resize(own.scales, rows * groups);
    resize(own.offsets, rows * row_offsets);
    for (int64_t m = 0; m < rows; ++m) {
      RoundRow(p.w, RowAt(p.x, row + m), own.q.data() + m * row_bytes, own.scales.data() + m * groups,
               own.offsets.data() + m * row_offsets);
    }
    own.job = job, own.product = &p, own.row = row, own.row_end = row_end;
  }
  return {own.q.data(), own.scales.data(), own.offsets.data(), rows, groups};
}

void IntegerDotBlock(const DotProduct& p, int64_t row, int64_t row_end, int64_t panel, int64_t panel_end, int64_t job) {
  float** const y = Buffer<0, float*>(row_end - row);
  for (int64_t m = row; m < row_end; ++m) y[m - row] = RowAt(p.y, m);
  const RoundedActivations x = RoundRows(p, row, row_end, job);
  if (!p.w.rounds_activations) return DigitDotPanels(x, p.w, panel, panel_end, y);
  IntegerDotPanels(FastestIntegerUnit(), x, p.w, panel, panel_end, y);
}

void WidenedDotBlock(const DotProduct& p, int64_t row, int64_t row_end, int64_t panel, int64_t panel_end) {
  const int64_t columns = p.w.columns, groups = p.w.cut.Groups(columns), rows = row_end - row;
  const int64_t fitting = kWidenedBytes / (kPanelRows * columns * int64_t{sizeof(float)});
  const int64_t together = p.w.cut.whole_panels() ? std::clamp<int64_t>(fitting, 1, 4) : 1;
  for (; panel < panel_end; panel += together) {
    const int64_t count = std::min(together, panel_end - panel);
    float* const widened = Buffer<1, float>(together * kPanelRows * columns);
    for (int64_t i = 0; i < count; ++i) Widen(p.w, panel + i, 0, groups, widened + i * kPanelRows * columns);
    DotProduct block{p.x, {widened, false, count * kPanelRows, columns, WeightLayout::kPanels}, p.y};
    block.y.data += p.w.cut.PanelRow(panel);
    const int64_t own = p.w.cut.RowsOf(panel);
    if (own == kPanelRows) {
      PanelDotBlock(block, row, row_end, 0, count * kPanelRows);
      continue;
    }
    float* const whole = Buffer<2, float>(rows * kPanelRows);
    block.x = p.x.index ? RowsView{p.x.data, p.x.stride, rows, p.x.index + row}
                        : RowsView{p.x.data + row * p.x.stride, p.x.stride, rows, nullptr};
    block.y = {whole, kPanelRows, nullptr};
    PanelDotBlock(block, 0, rows, 0, kPanelRows);
    for (int64_t m = 0; m < rows; ++m) {
      std::copy_n(whole + m * kPanelRows, own, RowAt(p.y, row + m) + p.w.cut.PanelRow(panel));
    }
  }
}

constexpr int kUnitNotSet = -1;
std::atomic<int> unit_for_test = kUnitNotSet;

bool HasVnni() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

}  // namespace

IntegerUnit FastestIntegerUnit() {
  static const IntegerUnit found = HasVnni() ? IntegerUnit::kVnni : IntegerUnit::kVectors;
  const int chosen = unit_for_test.load(std::memory_order_relaxed);
  return chosen == kUnitNotSet ? found : static_cast<IntegerUnit>(chosen);
}

void SetIntegerUnitForTest(std::optional<IntegerUnit> unit) {
  unit_for_test = unit ? static_cast<int>(*unit) : kUnitNotSet;
}

void IntegerDotPanels(IntegerUnit unit, const RoundedActivations& x, const WeightView& w, int64_t panel,
                      int64_t panel_end, float* const* y) {
  if (unit == IntegerUnit::kVnni) return VnniDotPanels(x, w, panel, panel_end, y);
  HWY_DYNAMIC_DISPATCH(DotPanels)(x, w, panel, panel_end, y);
}

void QuantizedDotBlock(const DotProduct& p, int64_t row, int64_t row_end, int64_t begin, int64_t end, int64_t job) {
  const int64_t panel = p.w.cut.PanelOf(begin);
  const int64_t panel_end = panel + p.w.Rows(begin, end).cut.Panels(end - begin);
  if (p.w.rounds_activations || FastestIntegerUnit() == IntegerUnit::kVnni) {
    IntegerDotBlock(p, row, row_end, panel, panel_end, job);
  } else {
    WidenedDotBlock(p, row, row_end, panel, panel_end);
  }
}

void CopyQuantizedRow(const WeightView& w, int64_t row, float* out) {
  const int64_t panel = w.cut.PanelOf(row);
  const char* const at = static_cast<const char*>(w.data) + panel * PanelBytes(w.layout, w.cut.panel_groups);
  float group[kGroupColumns];
  for (int64_t g = 0; g < w.cut.Groups(w.columns); ++g) {
    WidenGroup(w.layout, at, row - w.cut.PanelRow(panel), w.cut.first_group + g, w.cut.panel_groups, group);
    std::copy_n(group, w.cut.ColumnsOf(g), out + w.cut.GroupColumn(g));
  }
}

}  // namespace c3po::cpu
#endif  // HWY_ONCE
