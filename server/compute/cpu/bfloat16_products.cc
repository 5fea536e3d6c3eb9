#include "server/compute/cpu/bfloat16_products.h"

#include <atomic>

#if defined(__x86_64__)

#include <cpuid.h>
#include <hwy/base.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "server/compute/cpu/panels.h"

HWY_PUSH_ATTRIBUTES("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16")
#define C3PO_BFLOAT16_TILES_NAMESPACE bfloat16_units
#include "server/compute/cpu/bfloat16_tiles.h"

namespace c3po::cpu::bfloat16_units {
namespace {

void RoundRow(const float* x, int64_t count, uint16_t* out) {
  for (int64_t i = 0; i < count; i += 16) {
    const auto mask = static_cast<__mmask16>((1u << std::min<int64_t>(16, count - i)) - 1);
    const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, x + i));
    _mm256_mask_storeu_epi16(out + i, mask, reinterpret_cast<const __m256i&>(rounded));
  }
}

struct Avx512Unit {
  using Sums = __m512;
  using Words = __m512i;
  static void Round(const float* x, int64_t count, uint16_t* out) { RoundRow(x, count, out); }
  static Sums Zero() { return _mm512_setzero_ps(); }
  static Words LoadWords(const uint16_t* p) { return _mm512_loadu_si512(p); }
  static Words Pair(const uint16_t* p) {
    int pair;
    std::memcpy(&pair, p, sizeof(pair));
    return _mm512_set1_epi32(pair);
  }
  static Sums MultiplyAdd(Sums sums, Words pair, Words words) {
    return _mm512_dpbf16_ps(sums, reinterpret_cast<const __m512bh&>(pair), reinterpret_cast<const __m512bh&>(words));
  }
  static void Store(Sums sums, float* p) { _mm512_storeu_ps(p, sums); }
};

// Tile registers: 0 to 3 sums, 4 x, 5 weights; 6 and 7 the same for the columns that are left. The instructions name
// registers by literals.
struct AmxUnit {
  static void Round(const float* x, int64_t count, uint16_t* out) { RoundRow(x, count, out); }
  static void Configure(int64_t rows, int64_t columns_left) {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } tiles;
    static_assert(sizeof(tiles) == 64);
    const auto set = [&tiles](int tile, int64_t tile_rows, int64_t bytes) {
      tiles.rows[tile] = static_cast<uint8_t>(tile_rows);
      tiles.row_bytes[tile] = static_cast<uint16_t>(bytes);
    };
    for (int sums = 0; sums < 4; ++sums) set(sums, rows, 64);
    set(4, rows, 64);
    set(5, 16, 64);
    if (columns_left > 0) {
      set(6, rows, columns_left * 2);
      set(7, columns_left / 2, 64);
    }
    _tile_loadconfig(&tiles);
  }
  static void Release() { _tile_release(); }

  template <int Q>
  static void ZeroSums() {
    if constexpr (Q == 0) _tile_zero(0);
    if constexpr (Q == 1) _tile_zero(1);
    if constexpr (Q == 2) _tile_zero(2);
    if constexpr (Q == 3) _tile_zero(3);
  }
  template <bool kRest>
  static void LoadX(const uint16_t* x, int64_t row_bytes) {
    if constexpr (kRest) {
      _tile_loadd(6, x, row_bytes);
    } else {
      _tile_loadd(4, x, row_bytes);
    }
  }
  template <int Q, bool kRest>
  static void MultiplyAdd(const uint16_t* w) {
    if constexpr (kRest) {
      _tile_loadd(7, w, 64);
      if constexpr (Q == 0) _tile_dpbf16ps(0, 6, 7);
      if constexpr (Q == 1) _tile_dpbf16ps(1, 6, 7);
      if constexpr (Q == 2) _tile_dpbf16ps(2, 6, 7);
      if constexpr (Q == 3) _tile_dpbf16ps(3, 6, 7);
    } else {
      _tile_loadd(5, w, 64);
      if constexpr (Q == 0) _tile_dpbf16ps(0, 4, 5);
      if constexpr (Q == 1) _tile_dpbf16ps(1, 4, 5);
      if constexpr (Q == 2) _tile_dpbf16ps(2, 4, 5);
      if constexpr (Q == 3) _tile_dpbf16ps(3, 4, 5);
    }
  }
  template <int Q>
  static void StoreSums(float* sums, int64_t row_bytes) {
    if constexpr (Q == 0) _tile_stored(0, sums, row_bytes);
    if constexpr (Q == 1) _tile_stored(1, sums, row_bytes);
    if constexpr (Q == 2) _tile_stored(2, sums, row_bytes);
    if constexpr (Q == 3) _tile_stored(3, sums, row_bytes);
  }
};

void Avx512DotBlock(const DotProduct& p, int64_t row, int64_t row_end, int64_t begin, int64_t end) {
  DotBlock<VectorTiles<Avx512Unit>>(p, row, row_end, begin, end);
}

void AmxDotBlock(const DotProduct& p, int64_t row, int64_t row_end, int64_t begin, int64_t end) {
  DotBlock<MatrixTiles<AmxUnit>>(p, row, row_end, begin, end);
}

}  // namespace
}  // namespace c3po::cpu::bfloat16_units
HWY_POP_ATTRIBUTES

namespace c3po::cpu {
namespace {

// The kernel saves tile registers for processes that ask for it (Documentation/arch/x86/xstate.rst); threads inherit.
bool MayUseTiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// CPUID leaf 7, EDX; not every compiler's __builtin_cpu_supports knows their names.
bool HasTiles() {
  constexpr unsigned kAmxBfloat16 = 1u << 22, kAmxTile = 1u << 24, kBoth = kAmxBfloat16 | kAmxTile;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx & kBoth) == kBoth;
}

Bfloat16Unit Find() {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512bw")) return Bfloat16Unit::kNone;
  if (HasTiles() && MayUseTiles()) return Bfloat16Unit::kAmx;
  return Bfloat16Unit::kAvx512;
}

}  // namespace

void PairDotBlock(Bfloat16Unit unit, const DotProduct& product, int64_t row, int64_t row_end, int64_t begin,
                  int64_t end) {
  if (unit == Bfloat16Unit::kAmx) return bfloat16_units::AmxDotBlock(product, row, row_end, begin, end);
  if (unit == Bfloat16Unit::kAvx512) return bfloat16_units::Avx512DotBlock(product, row, row_end, begin, end);
  PlainPairDotBlock(product, row, row_end, begin, end);
}

}  // namespace c3po::cpu

#else

namespace c3po::cpu {
namespace {

Bfloat16Unit Find() { return Bfloat16Unit::kNone; }

}  // namespace

void PairDotBlock(Bfloat16Unit, const DotProduct& product, int64_t row, int64_t row_end, int64_t begin, int64_t end) {
  PlainPairDotBlock(product, row, row_end, begin, end);
}

}  // namespace c3po::cpu

#endif

namespace c3po::cpu {
namespace {

#if defined(C3PO_PLAIN_BFLOAT16)
constexpr Bfloat16Unit kWithoutUnit = Bfloat16Unit::kPlain;
#else
constexpr Bfloat16Unit kWithoutUnit = Bfloat16Unit::kNone;
#endif

constexpr int kNotSet = -1;
std::atomic<int> unit_for_test = kNotSet;

}  // namespace

Bfloat16Unit FastestBfloat16Unit() {
  static const Bfloat16Unit found = Find(), unit = found == Bfloat16Unit::kNone ? kWithoutUnit : found;
  const int chosen = unit_for_test.load(std::memory_order_relaxed);
  return chosen == kNotSet ? unit : static_cast<Bfloat16Unit>(chosen);
}

void SetBfloat16UnitForTest(std::optional<Bfloat16Unit> unit) {
  unit_for_test = unit ? static_cast<int>(*unit) : kNotSet;
}

const char* Bfloat16UnitName(Bfloat16Unit unit) {
  switch (unit) {
    case Bfloat16Unit::kNone:
      break;
    case Bfloat16Unit::kPlain:
      return "plain";
    case Bfloat16Unit::kAvx512:
      return "avx512-bf16";
    case Bfloat16Unit::kAmx:
      return "amx-bf16";
  }
  return "none";
}

}  // namespace c3po::cpu
