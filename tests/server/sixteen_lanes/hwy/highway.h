#ifndef C3PO_TESTS_SERVER_SIXTEEN_LANES_HWY_HIGHWAY_H_
#define C3PO_TESTS_SERVER_SIXTEEN_LANES_HWY_HIGHWAY_H_

// Vectors of 64 bytes in plain loops, in place of Highway's: the operations that our kernels use, as Highway's
// reference (g3doc/quick_reference.md) defines them. A kernel compiled with this folder before Highway's takes the
// paths of 16 lanes on any processor, among them those that AVX-512 alone has. What differs is speed, the order in
// which lanes are summed, and that a multiply-add rounds twice.

#include <hwy/base.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

// One instruction set, compiled once.
#define HWY_NAMESPACE N_SIXTEEN_LANES
#define HWY_BEFORE_NAMESPACE() static_assert(true)
#define HWY_AFTER_NAMESPACE() static_assert(true)
#define HWY_ATTR
#define HWY_ONCE 1
#define HWY_SCALAR 1
#define HWY_TARGET 2
#define HWY_LANES(T) (64 / sizeof(T))
#define HWY_EXPORT(function) static_assert(true)
#define HWY_DYNAMIC_DISPATCH(function) HWY_NAMESPACE::function

namespace hwy::HWY_NAMESPACE {

// A tag: N lanes of T.
template <typename LaneType, size_t N>
struct Simd {
  using T = LaneType;
  static constexpr size_t kLanes = N;
};
// The compiler's own vectors, which it computes with whatever the processor has.
template <typename Tag>
struct VectorOf {
  typedef typename Tag::T Lanes __attribute__((vector_size(sizeof(typename Tag::T) * Tag::kLanes)));
  Lanes lane;
};

template <typename T>
using ScalableTag = Simd<T, 64 / sizeof(T)>;
template <typename D>
using Vec = VectorOf<D>;
template <typename T, typename D>
using Rebind = Simd<T, D::kLanes>;
template <typename T, typename D>
using Repartition = Simd<T, D::kLanes * sizeof(typename D::T) / sizeof(T)>;
template <typename D>
using RebindToUnsigned = Rebind<std::conditional_t<sizeof(typename D::T) == 4, uint32_t, uint64_t>, D>;
template <typename D>
using RebindToSigned = Rebind<std::conditional_t<sizeof(typename D::T) == 4, int32_t, int64_t>, D>;
template <typename D>
using RepartitionToWide = Repartition<uint64_t, D>;
template <typename D>
using Half = Simd<typename D::T, D::kLanes / 2>;

template <typename D>
constexpr size_t MaxLanes(D) {
  return D::kLanes;
}
template <typename D>
constexpr size_t Lanes(D) {
  return D::kLanes;
}

// Lane i is f(i).
template <typename D, typename F>
HWY_INLINE Vec<D> ForEachLane(const F& f) {
  Vec<D> result;
  for (size_t i = 0; i < D::kLanes; ++i) result.lane[i] = static_cast<typename D::T>(f(i));
  return result;
}

template <typename D, typename Number>
HWY_INLINE Vec<D> Set(D, Number value) {
  return {static_cast<typename D::T>(value) - typename Vec<D>::Lanes{}};
}
template <typename D>
HWY_INLINE Vec<D> Zero(D d) {
  return Set(d, 0);
}
template <typename D>
HWY_INLINE Vec<D> LoadU(D, const typename D::T* p) {
  Vec<D> result;
  std::memcpy(&result.lane, p, sizeof(result.lane));
  return result;
}
template <typename D>
HWY_INLINE void StoreU(const Vec<D>& v, D, typename D::T* p) {
  std::memcpy(p, &v.lane, sizeof(v.lane));
}
template <typename D>
HWY_INLINE typename D::T GetLane(const VectorOf<D>& v) {
  return v.lane[0];
}

template <typename D>
HWY_INLINE VectorOf<D> Add(const VectorOf<D>& a, const VectorOf<D>& b) {
  return {a.lane + b.lane};
}
template <typename D>
HWY_INLINE VectorOf<D> Sub(const VectorOf<D>& a, const VectorOf<D>& b) {
  return {a.lane - b.lane};
}
template <typename D>
HWY_INLINE VectorOf<D> Mul(const VectorOf<D>& a, const VectorOf<D>& b) {
  return {a.lane * b.lane};
}
template <typename D>
HWY_INLINE VectorOf<D> Div(const VectorOf<D>& a, const VectorOf<D>& b) {
  return {a.lane / b.lane};
}
template <typename D>
HWY_INLINE VectorOf<D> Max(const VectorOf<D>& a, const VectorOf<D>& b) {
  return {a.lane < b.lane ? b.lane : a.lane};
}
template <typename D>
HWY_INLINE VectorOf<D> Neg(const VectorOf<D>& v) {
  return {-v.lane};
}
// mul * x + add, and add - mul * x.
template <typename D>
HWY_INLINE VectorOf<D> MulAdd(const VectorOf<D>& mul, const VectorOf<D>& x, const VectorOf<D>& add) {
  return {mul.lane * x.lane + add.lane};
}
template <typename D>
HWY_INLINE VectorOf<D> NegMulAdd(const VectorOf<D>& mul, const VectorOf<D>& x, const VectorOf<D>& add) {
  return {add.lane - mul.lane * x.lane};
}
template <typename D>
HWY_INLINE VectorOf<D> Exp(D, const VectorOf<D>& v) {
  return ForEachLane<D>([&](size_t i) { return std::exp(v.lane[i]); });
}
template <typename D>
HWY_INLINE VectorOf<D> SumOfLanes(D d, const VectorOf<D>& v) {
  typename D::T sum = 0;
  for (size_t i = 0; i < D::kLanes; ++i) sum += v.lane[i];
  return Set(d, sum);
}
template <typename D>
HWY_INLINE VectorOf<D> MaxOfLanes(D d, const VectorOf<D>& v) {
  typename D::T largest = v.lane[0];
  for (size_t i = 1; i < D::kLanes; ++i) largest = std::max(largest, v.lane[i]);
  return Set(d, largest);
}

template <typename D>
HWY_INLINE VectorOf<D> And(const VectorOf<D>& a, const VectorOf<D>& b) {
  return {a.lane & b.lane};
}
template <int kBits, typename D>
HWY_INLINE VectorOf<D> ShiftLeft(const VectorOf<D>& v) {
  return {v.lane << kBits};
}
// Of signed lanes the sign comes in from above.
template <int kBits, typename D>
HWY_INLINE VectorOf<D> ShiftRight(const VectorOf<D>& v) {
  return {v.lane >> kBits};
}
template <typename To, typename From>
HWY_INLINE Vec<To> ConvertTo(To, const VectorOf<From>& v) {
  static_assert(To::kLanes == From::kLanes);
  return {__builtin_convertvector(v.lane, typename Vec<To>::Lanes)};
}
template <typename To, typename From>
HWY_INLINE Vec<To> BitCast(To, const VectorOf<From>& v) {
  Vec<To> result;
  static_assert(sizeof(result.lane) == sizeof(v.lane));
  std::memcpy(&result.lane, &v.lane, sizeof(v.lane));
  return result;
}
template <typename To, typename From>
HWY_INLINE Vec<To> PromoteTo(To, const VectorOf<From>& v) {
  static_assert(To::kLanes == From::kLanes);
  return ForEachLane<To>([&](size_t i) { return v.lane[i]; });
}

// Blocks of 128 bits by themselves: the lower, or the upper, halves of a's and b's, a lane of each in turn.
template <typename D>
HWY_INLINE VectorOf<D> Interleave(const VectorOf<D>& a, const VectorOf<D>& b, size_t first) {
  constexpr size_t kBlock = 16 / sizeof(typename D::T);
  return ForEachLane<D>([&](size_t i) {
    const size_t from = i / kBlock * kBlock + first * kBlock / 2 + i % kBlock / 2;
    return i % 2 == 0 ? a.lane[from] : b.lane[from];
  });
}
template <typename D>
HWY_INLINE VectorOf<D> InterleaveLower(D, const VectorOf<D>& a, const VectorOf<D>& b) {
  return Interleave(a, b, 0);
}
template <typename D>
HWY_INLINE VectorOf<D> InterleaveUpper(D, const VectorOf<D>& a, const VectorOf<D>& b) {
  return Interleave(a, b, 1);
}
template <typename D, typename Whole>
HWY_INLINE Vec<D> LowerHalf(D, const VectorOf<Whole>& v) {
  return ForEachLane<D>([&](size_t i) { return v.lane[i]; });
}
template <typename D, typename Whole>
HWY_INLINE Vec<D> UpperHalf(D, const VectorOf<Whole>& v) {
  return ForEachLane<D>([&](size_t i) { return v.lane[D::kLanes + i]; });
}

// Lane i of the lookup is lane index[i].
template <typename D>
HWY_INLINE Vec<Rebind<int32_t, D>> SetTableIndices(D, const int32_t* index) {
  return LoadU(Rebind<int32_t, D>(), index);
}
template <typename D>
HWY_INLINE VectorOf<D> TableLookupLanes(const VectorOf<D>& v, const Vec<Rebind<int32_t, D>>& index) {
  return ForEachLane<D>([&](size_t i) { return v.lane[index.lane[i]]; });
}

}  // namespace hwy::HWY_NAMESPACE

#endif  // C3PO_TESTS_SERVER_SIXTEEN_LANES_HWY_HIGHWAY_H_
