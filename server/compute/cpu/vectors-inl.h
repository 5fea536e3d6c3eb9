// What the kernels share, compiled once for each instruction set: included after hwy/foreach_target.h, by files
// that leave out the instruction sets whose vectors have no fixed length.

#if defined(C3PO_SERVER_COMPUTE_CPU_VECTORS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef C3PO_SERVER_COMPUTE_CPU_VECTORS_INL_H_
#undef C3PO_SERVER_COMPUTE_CPU_VECTORS_INL_H_
#else
#define C3PO_SERVER_COMPUTE_CPU_VECTORS_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace c3po::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;
constexpr size_t kLanes = HWY_LANES(float);

HWY_INLINE V Load(const float* p) { return hn::LoadU(D(), p); }

// bfloat16 is the upper half of a float32.
HWY_INLINE V Load(const uint16_t* p) {
  const hn::Rebind<uint16_t, D> half;
  const hn::RebindToUnsigned<D> whole;
  return hn::BitCast(D(), hn::ShiftLeft<16>(hn::PromoteTo(whole, hn::LoadU(half, p))));
}

// The first `count` elements, then `fill`.
template <typename W>
HWY_INLINE V LoadPart(const W* p, size_t count, W fill = 0) {
  W part[kLanes];
  std::fill_n(part, kLanes, fill);
  std::memcpy(part, p, count * sizeof(W));
  return Load(part);
}

HWY_INLINE void StorePart(V v, float* p, size_t count) {
  float part[kLanes];
  hn::StoreU(v, D(), part);
  std::memcpy(p, part, count * sizeof(float));
}

// Row i of a RowsView or MutableRowsView.
template <typename Row>
HWY_INLINE auto RowAt(const Row& view, int64_t i) {
  return view.data + (view.index ? view.index[i] : i) * view.stride;
}

// The sums of the lanes of four vectors. One order whatever the vectors hold: per block of four lanes (0+2) + (1+3),
// then upper half onto lower half.
HWY_INLINE void SumLanesOfFour(V a, V b, V c, V d, float* out) {
#if HWY_TARGET == HWY_SCALAR
  const V sums[4] = {a, b, c, d};
  for (size_t i = 0; i < 4; ++i) out[i] = hn::GetLane(sums[i]);
#else
  const hn::RepartitionToWide<hn::RebindToUnsigned<D> > pairs;
  const V ab = hn::Add(hn::InterleaveLower(D(), a, b), hn::InterleaveUpper(D(), a, b));
  const V cd = hn::Add(hn::InterleaveLower(D(), c, d), hn::InterleaveUpper(D(), c, d));
  const auto ab2 = hn::BitCast(pairs, ab), cd2 = hn::BitCast(pairs, cd);
  const V blocks = hn::Add(hn::BitCast(D(), hn::InterleaveLower(pairs, ab2, cd2)),
                           hn::BitCast(D(), hn::InterleaveUpper(pairs, ab2, cd2)));
  if constexpr (kLanes == 16) {
    const hn::Half<D> half;
    const auto folded = hn::Add(hn::LowerHalf(half, blocks), hn::UpperHalf(half, blocks));
    const hn::Half<decltype(half)> quarter;
    hn::StoreU(hn::Add(hn::LowerHalf(quarter, folded), hn::UpperHalf(quarter, folded)), quarter, out);
  } else if constexpr (kLanes == 8) {
    const hn::Half<D> half;
    hn::StoreU(hn::Add(hn::LowerHalf(half, blocks), hn::UpperHalf(half, blocks)), half, out);
  } else {
    hn::StoreU(blocks, D(), out);
  }
#endif
}

}  // namespace c3po::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
