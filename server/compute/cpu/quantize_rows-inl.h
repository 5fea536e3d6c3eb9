// The search for scales, for some rows side by side in the compiler's own vectors; and activations rounded with them.
// Included once for each width of vectors, inside the attributes of an instruction set that has it: of
// C3PO_QUANTIZE_LANES lanes, in the namespace C3PO_QUANTIZE_NAMESPACE. No function here may be shared between
// instruction sets. Each lane is a row, or a column, by itself, without fused multiply-adds, so that all widths give
// the same bits.

#include <array>
#include <cstring>

#include "server/compute/cpu/quantized_panels.h"

namespace c3po::cpu::C3PO_QUANTIZE_NAMESPACE {
namespace {

constexpr size_t kRows = kPanelRows, kColumns = kGroupColumns;
constexpr float kSmallest = 0x1p-100f;     // Below it a group is 0.
constexpr int32_t kTooLarge = 0x7B800000;  // The bits of 2^120: no number, and no level, is beyond float32.

constexpr size_t kLanes = C3PO_QUANTIZE_LANES;
typedef float Lanes __attribute__((vector_size(4 * C3PO_QUANTIZE_LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * C3PO_QUANTIZE_LANES)));

template <typename To, typename From>
inline To BitsAs(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}
inline Lanes All(float value) { return value - Lanes{}; }

// To the nearest integer, ties to even, of numbers below 2^22.
constexpr float kMagic = 0x1.8p23f;
inline Lanes Nearest(Lanes value) { return (value + All(kMagic)) - All(kMagic); }

// A format's levels, and the divisors of its candidates. Where `fits_each`, each candidate has its least-squares scale
// beside it; else the best one alone.
struct Format {
  float low, high;
  float first_divisor, step;
  int candidates;
  bool fits_each;
};
// `weighted`: by columns. A column that weighs little may be clipped far, so there are more candidates.
inline Format FormatOf(WeightLayout layout, bool weighted) {
  if (layout == WeightLayout::kInt8) return {-127, 127, 127, -1, 5, weighted};
  if (weighted) return {-8, 7, -5, -0.25f, 18, true};
  return {-8, 7, -6.5f, -0.25f, 10, false};
}

// A scale for each row, rounded to bfloat16; of weights that are divided by their largest.
struct Scales {
  Lanes stored;   // of the weights themselves
  Lanes scale;    // of the divided ones
  Lanes inverse;  // of it; 0 where it is 0
};

inline Scales Rounded(Lanes wanted, Lanes largest) {
  Ints bits = BitsAs<Ints>(wanted);
  bits = (bits + 0x7FFF + (bits >> 16 & 1)) & static_cast<int32_t>(0xFFFF0000);
  Scales scales;
  scales.stored = BitsAs<Lanes>(bits);
  const Lanes zero = All(0), one = All(1);
  scales.scale = scales.stored / (largest > zero ? largest : one);
  scales.inverse = scales.stored != zero ? largest / (scales.stored != zero ? scales.stored : one) : zero;
  return scales;
}

inline Lanes Level(Lanes u, Lanes inverse, Lanes low, Lanes high) {
  Lanes q = Nearest(u * inverse);
  q = q < low ? low : q;
  return q > high ? high : q;
}

// What the columns' errors are multiplied by, [32], the same for all rows: the roots of their weights; null: 1.
using Roots = const float*;

// sum_k a_k (u - s q)^2.
inline Lanes ErrorOf(const Lanes* u, Roots roots, const Scales& scales, const Format& format) {
  const Lanes low = All(format.low), high = All(format.high), scale = scales.scale, inverse = scales.inverse;
  Lanes error = All(0);
  for (size_t k = 0; k < kColumns; ++k) {
    Lanes off = u[k] - scale * Level(u[k], inverse, low, high);
    if (roots != nullptr) off *= All(roots[k]);
    error += off * off;
  }
  return error;
}

// The scale that fits the levels of `scales` best: sum a u q / sum a q^2, times what weights were divided by.
inline Lanes LeastSquares(const Lanes* u, Roots roots, const Scales& scales, const Format& format, Lanes largest) {
  const Lanes low = All(format.low), high = All(format.high), zero = All(0);
  Lanes above = zero, below = zero;
  for (size_t k = 0; k < kColumns; ++k) {
    Lanes level = Level(u[k], scales.inverse, low, high), weight = u[k];
    if (roots != nullptr) {
      level *= All(roots[k]);
      weight *= All(roots[k]);
    }
    above += weight * level;
    below += level * level;
  }
  return below > zero ? above / (below > zero ? below : All(1)) * largest : zero;
}

inline void TakeBetter(const Scales& other, Lanes error, Scales& best, Lanes& best_error) {
  const auto better = error < best_error;
  best_error = better ? error : best_error;
  best.stored = better ? other.stored : best.stored;
  best.scale = better ? other.scale : best.scale;
  best.inverse = better ? other.inverse : best.inverse;
}

// The least-squares scale of the levels of `levels`, where that is better.
inline void TakeFitted(const Lanes* u, Roots roots, const Scales& levels, const Format& format, Lanes largest,
                       Scales& best, Lanes& best_error) {
  const Scales fitted = Rounded(LeastSquares(u, roots, levels, format, largest), largest);
  TakeBetter(fitted, ErrorOf(u, roots, fitted, format), best, best_error);
}

// Among the candidates of a format.
inline Scales BestScales(const Lanes* u, Roots roots, const Format& format, Lanes signed_largest, Lanes largest) {
  Scales best = Rounded(signed_largest / All(format.first_divisor), largest);
  Lanes best_error = ErrorOf(u, roots, best, format);
  for (int i = 1; i < format.candidates; ++i) {
    const float levels = format.first_divisor + static_cast<float>(i) * format.step;
    const Scales candidate = Rounded(signed_largest / All(levels), largest);
    TakeBetter(candidate, ErrorOf(u, roots, candidate, format), best, best_error);
    if (format.fits_each) TakeFitted(u, roots, candidate, format, largest, best, best_error);
  }
  TakeFitted(u, roots, Scales(best), format, largest, best, best_error);
  return best;
}

// Rows of w [32, 16], from `w` on: their scales, and q [32, 16]. False where a weight is none.
inline bool QuantizeRows(const Format& format, const float* w, Roots roots, Lanes& stored, int32_t* q) {
  std::array<Lanes, kColumns> u;
  Ints most = {};
  Lanes signed_largest = All(0);
  for (size_t k = 0; k < kColumns; ++k) {
    std::memcpy(&u[k], w + k * kRows, sizeof(Lanes));
    const Ints magnitude = BitsAs<Ints>(u[k]) & 0x7FFFFFFF;
    signed_largest = magnitude > most ? u[k] : signed_largest;
    most = magnitude > most ? magnitude : most;
  }
  for (size_t r = 0; r < kLanes; ++r) {
    if (most[r] >= kTooLarge) return false;
  }
  Lanes largest = BitsAs<Lanes>(most);
  const auto some = largest >= All(kSmallest);
  largest = some ? largest : All(0);
  signed_largest = some ? signed_largest : All(0);
  const Lanes divisor = some ? largest : All(1);
  for (Lanes& each : u) each = some ? each / divisor : All(0);
  const Scales best = BestScales(u.data(), roots, format, signed_largest, largest);
  for (size_t k = 0; k < kColumns; ++k) {
    const Lanes level = Level(u[k], best.inverse, All(format.low), All(format.high));
    const auto integers = BitsAs<Ints>(level + All(kMagic)) - BitsAs<Ints>(All(kMagic));
    std::memcpy(q + k * kRows, &integers, sizeof(integers));
  }
  stored = best.stored;
  return true;
}

// All 16 rows: scales [16] as float32, q [32, 16]. `roots` likewise.
bool QuantizeSixteen(WeightLayout layout, const float* w, Roots roots, float* scales, int32_t* q) {
  const Format format = FormatOf(layout, roots != nullptr);
  for (size_t r = 0; r < kRows; r += kLanes) {
    Lanes stored;
    if (!QuantizeRows(format, w + r, roots, stored, q + r)) return false;
    std::memcpy(scales + r, &stored, sizeof(stored));
  }
  return true;
}

// `combine` of all lanes, halves onto halves; it must not mind the order.
template <typename Combine>
inline int32_t Folded(const Ints& lanes, const Combine& combine) {
  typedef int32_t Four __attribute__((vector_size(16)));
  std::array<Four, kLanes / 4> parts;
  std::memcpy(parts.data(), &lanes, sizeof(lanes));
  for (size_t count = kLanes / 8; count > 0; count /= 2) {
    for (size_t i = 0; i < count; ++i) parts[i] = combine(parts[i], parts[i + count]);
  }
  Four all = combine(parts[0], __builtin_shufflevector(parts[0], parts[0], 2, 3, 0, 1));
  all = combine(all, __builtin_shufflevector(all, all, 1, 0, 3, 2));
  return all[0];
}

// 32 activations as integers of Level's size up to its largest: see RoundRow16, RoundRow8. Returns the integers' sum.
template <typename Level>
inline int32_t RoundGroup(const float* x, Level* q, float* scale) {
  constexpr size_t kParts = kColumns / kLanes;
  constexpr auto kLargest = static_cast<float>((1 << (8 * sizeof(Level) - 1)) - 1);
  typedef Level Narrow __attribute__((vector_size(sizeof(Level) * C3PO_QUANTIZE_LANES)));
  std::array<Lanes, kParts> own;
  Ints most = {};  // Magnitudes compare as the integers that their bits are.
  for (size_t i = 0; i < kParts; ++i) {
    std::memcpy(&own[i], x + i * kLanes, sizeof(Lanes));
    const Ints magnitude = BitsAs<Ints>(own[i]) & 0x7FFFFFFF;
    most = magnitude > most ? magnitude : most;
  }
  const int32_t bits = Folded(most, [](auto a, auto b) { return a > b ? a : b; });
  const auto largest = BitsAs<float>(bits);
  const bool finite = bits < 0x7F800000, some = finite && largest >= kSmallest;
  *scale = some ? largest / kLargest : finite ? 0 : BitsAs<float>(0x7FC00000);
  if (!some) return std::memset(q, 0, kColumns * sizeof(Level)), 0;
  const float inverse = kLargest / largest;
  Ints total = {};
  for (size_t i = 0; i < kParts; ++i) {
    const Ints level = BitsAs<Ints>(own[i] * All(inverse) + All(kMagic)) - BitsAs<Ints>(All(kMagic));
    const Narrow narrow = __builtin_convertvector(level, Narrow);
    std::memcpy(q + i * kLanes, &narrow, sizeof(narrow));
    total += level;
  }
  return Folded(total, [](auto a, auto b) { return a + b; });
}

// offsets: null, or [groups].
template <typename Level>
inline void RoundGroups(const float* x, const QuantizedCut& cut, int64_t columns, Level* q, float* scales,
                        int32_t* offsets) {
  const int64_t groups = cut.Groups(columns);
  for (int64_t g = 0; g < groups; ++g) {
    const float* from = x + cut.GroupColumn(g);
    float part[kColumns] = {};
    const int64_t count = cut.ColumnsOf(g);
    if (count < kGroupColumns) {
      std::memcpy(part, from, static_cast<size_t>(count) * sizeof(float));
      from = part;
    }
    const int32_t sum = RoundGroup(from, q + g * kGroupColumns, scales + g);
    if (offsets) offsets[g] = -8 * sum;
  }
}

void RoundSixteen(const float* x, const QuantizedCut& cut, int64_t columns, int16_t* q, float* scales) {
  RoundGroups(x, cut, columns, q, scales, nullptr);
}
void RoundEight(const float* x, const QuantizedCut& cut, int64_t columns, int8_t* q, float* scales, int32_t* offsets) {
  RoundGroups(x, cut, columns, q, scales, offsets);
}

}  // namespace
}  // namespace c3po::cpu::C3PO_QUANTIZE_NAMESPACE
