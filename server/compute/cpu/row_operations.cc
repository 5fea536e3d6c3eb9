// Sums run in one vector accumulator over the row, then across its lanes: their order depends on the row's size alone.

#include "server/compute/cpu/compiled_targets.h"
// Compiled once for each instruction set.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "server/compute/cpu/row_operations.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
#include "server/compute/cpu/row_operations.h"
#include "server/compute/cpu/thread_pool.h"
#include "server/compute/cpu/vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace c3po::cpu::HWY_NAMESPACE {
namespace {

HWY_INLINE V Set(float v) { return hn::Set(D(), v); }

HWY_INLINE float Sum(V v) { return hn::GetLane(hn::SumOfLanes(D(), v)); }

// step(i, load, store) over [0, size): `load(p, fill)` reads the step's elements of p, float32 or bfloat16, `store(v,
// p)` writes them; the last step may hold fewer than a vector. `fill` is a number of p's type.
template <typename Step>
HWY_INLINE void ForEachVector(int64_t size, const Step& step) {
  constexpr auto kVector = static_cast<int64_t>(kLanes);
  int64_t i = 0;
  for (; i + kVector <= size; i += kVector) {
    step(
        i, [](const auto* p, float) HWY_ATTR { return Load(p); },
        [](V v, float* p) HWY_ATTR { hn::StoreU(v, D(), p); });
  }
  if (i < size) {
    const auto count = static_cast<size_t>(size - i);
    step(
        i,
        [count](const auto* p, float fill)
            HWY_ATTR { return LoadPart(p, count, static_cast<std::decay_t<decltype(*p)>>(fill)); },
        [count](V v, float* p) HWY_ATTR { StorePart(v, p, count); });
  }
}

template <typename Y>
HWY_INLINE float DotWith(const float* x, const Y* y, int64_t size) {
  V sum = hn::Zero(D());
  ForEachVector(size,
                [&](int64_t i, auto load, auto) HWY_ATTR { sum = hn::MulAdd(load(x + i, 0), load(y + i, 0), sum); });
  return Sum(sum);
}
float DotOf(const float* x, const float* y, int64_t size) { return DotWith(x, y, size); }
float DotOfBfloat16(const float* x, const uint16_t* y, int64_t size) { return DotWith(x, y, size); }

template <typename X>
HWY_INLINE void AddScaledOf(float a, const X* x, int64_t size, float* y) {
  const V factor = Set(a);
  ForEachVector(size, [&](int64_t i, auto load, auto store)
                          HWY_ATTR { store(hn::MulAdd(factor, load(x + i, 0), load(y + i, 0)), y + i); });
}
void AddScaledTo(float a, const float* x, int64_t size, float* y) { AddScaledOf(a, x, size, y); }
void AddScaledBfloat16To(float a, const uint16_t* x, int64_t size, float* y) { AddScaledOf(a, x, size, y); }

void RmsNormRow(const float* x, const float* weight, double eps, int64_t size, float* y) {
  const V rstd = Set(static_cast<float>(1 / std::sqrt(double{DotOf(x, x, size)} / static_cast<double>(size) + eps)));
  ForEachVector(size, [&](int64_t i, auto load, auto store)
                          HWY_ATTR { store(hn::Mul(hn::Mul(load(x + i, 0), rstd), load(weight + i, 0)), y + i); });
}

void RmsNormBackwardRow(const float* dy, const float* x, const float* weight, const float* add, double eps,
                        int64_t size, float* dx) {
  const double rstd = 1 / std::sqrt(double{DotOf(x, x, size)} / static_cast<double>(size) + eps);
  V sum = hn::Zero(D());
  ForEachVector(size, [&](int64_t i, auto load, auto) HWY_ATTR {
    sum = hn::MulAdd(hn::Mul(load(dy + i, 0), load(weight + i, 0)), load(x + i, 0), sum);
  });
  // mean(g n) n rstd = mean(g x) rstd^3 x.
  const V factor = Set(static_cast<float>(rstd));
  const V slope = Set(static_cast<float>(double{Sum(sum)} / static_cast<double>(size) * rstd * rstd * rstd));
  ForEachVector(size, [&](int64_t i, auto load, auto store) HWY_ATTR {
    const V g = hn::Mul(load(dy + i, 0), load(weight + i, 0));
    const V own = hn::NegMulAdd(slope, load(x + i, 0), hn::Mul(factor, g));
    store(add ? hn::Add(load(add + i, 0), own) : own, dx + i);
  });
}

void RotateHead(const float* x, const float* cos, const float* sin, float sign, int64_t half, float* y) {
  const V s = Set(sign);
  ForEachVector(half, [&](int64_t i, auto load, auto store) HWY_ATTR {
    const V a = load(x + i, 0), b = load(x + half + i, 0), c = load(cos + i, 0), t = hn::Mul(s, load(sin + i, 0));
    store(hn::NegMulAdd(b, t, hn::Mul(a, c)), y + i);
    store(hn::MulAdd(a, t, hn::Mul(b, c)), y + half + i);
  });
}

void SumChosenRows(const float* x, const int64_t* index, int64_t count, int64_t size, float* y) {
  ForEachVector(size, [&](int64_t i, auto load, auto store) HWY_ATTR {
    V sum = load(x + index[0] * size + i, 0);
    for (int64_t j = 1; j < count; ++j) sum = hn::Add(sum, load(x + index[j] * size + i, 0));
    store(sum, y + i);
  });
}

HWY_INLINE V Sigmoid(V x) { return hn::Div(Set(1), hn::Add(Set(1), hn::Exp(D(), hn::Neg(x)))); }

void SwigluBlock(const float* gate, float scale, int64_t size, float* out) {
  const float* up = gate + size;
  const V factor = Set(scale);
  ForEachVector(size, [&](int64_t i, auto load, auto store) HWY_ATTR {
    const V g = load(gate + i, 0);
    store(hn::Mul(hn::Mul(hn::Mul(g, Sigmoid(g)), load(up + i, 0)), factor), out + i);
  });
}

float SwigluBackwardBlock(const float* t, const float* gate, float scale, int64_t size, float* dgate) {
  const float* up = gate + size;
  float* dup = dgate + size;
  const V factor = Set(scale);
  V sum = hn::Zero(D());
  ForEachVector(size, [&](int64_t i, auto load, auto store) HWY_ATTR {
    const V g = load(gate + i, 0), u = load(up + i, 0), dt = load(t + i, 0);
    const V s = Sigmoid(g), silu = hn::Mul(g, s), d = hn::Mul(dt, factor);
    sum = hn::MulAdd(dt, hn::Mul(silu, u), sum);
    // d silu(g) / dg = s (1 + g (1 - s)).
    const V slope = hn::Mul(s, hn::MulAdd(g, hn::Sub(Set(1), s), Set(1)));
    store(hn::Mul(hn::Mul(d, u), slope), dgate + i);
    store(hn::Mul(d, silu), dup + i);
  });
  return Sum(sum);
}

constexpr float kLowest = -3.0e38f;

float Maximum(const float* x, int64_t size) {
  V top = Set(kLowest);
  ForEachVector(size, [&](int64_t i, auto load, auto) HWY_ATTR { top = hn::Max(top, load(x + i, kLowest)); });
  return hn::GetLane(hn::MaxOfLanes(D(), top));
}

void SoftmaxRow(float* x, int64_t length, int64_t width, float factor) {
  const V shift = Set(Maximum(x, length)), scale = Set(factor);
  V sum = hn::Zero(D());
  ForEachVector(length, [&](int64_t i, auto load, auto store) HWY_ATTR {
    const V e = hn::Exp(D(), hn::Mul(scale, hn::Sub(load(x + i, kLowest), shift)));
    sum = hn::Add(sum, e);
    store(e, x + i);
  });
  const V inverse = Set(1 / Sum(sum));
  ForEachVector(length,
                [&](int64_t i, auto load, auto store) HWY_ATTR { store(hn::Mul(load(x + i, 0), inverse), x + i); });
  std::fill(x + length, x + width, 0.0f);
}

double SumOfExpOf(const float* x, int64_t size, float* largest) {
  *largest = Maximum(x, size);
  const V shift = Set(*largest);
  double total = 0;
  for (int64_t begin = 0; begin < size; begin += 4096) {
    V sum = hn::Zero(D());
    ForEachVector(std::min<int64_t>(4096, size - begin), [&](int64_t i, auto load, auto) HWY_ATTR {
      sum = hn::Add(sum, hn::Exp(D(), hn::Sub(load(x + begin + i, kLowest), shift)));
    });
    total += double{Sum(sum)};
  }
  return total;
}

void ScaledExp(float* x, int64_t size, float shift, float factor) {
  const V offset = Set(shift), scale = Set(factor);
  ForEachVector(size, [&](int64_t i, auto load, auto store)
                          HWY_ATTR { store(hn::Mul(scale, hn::Exp(D(), hn::Sub(load(x + i, 0), offset))), x + i); });
}

}  // namespace
}  // namespace c3po::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace c3po::cpu {

HWY_EXPORT(DotOf);
HWY_EXPORT(DotOfBfloat16);
HWY_EXPORT(AddScaledTo);
HWY_EXPORT(AddScaledBfloat16To);
HWY_EXPORT(RmsNormRow);
HWY_EXPORT(RmsNormBackwardRow);
HWY_EXPORT(RotateHead);
HWY_EXPORT(SumChosenRows);
HWY_EXPORT(SwigluBlock);
HWY_EXPORT(SwigluBackwardBlock);
HWY_EXPORT(SoftmaxRow);
HWY_EXPORT(SumOfExpOf);
HWY_EXPORT(ScaledExp);

namespace {

// Rows enough that handing them to another thread pays: some microseconds of work.
int64_t Grain(int64_t row_cost) { return std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(1, row_cost)); }

}  // namespace

void RmsNormRows(const float* x, int64_t stride, const float* weight, double eps, int64_t rows, int64_t size,
                 float* y) {
  ParallelFor(rows, Grain(size), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      HWY_DYNAMIC_DISPATCH(RmsNormRow)(x + r * stride, weight, eps, size, y + r * size);
  });
}

void RmsNormBackwardRows(const float* dy, const float* x, int64_t stride, const float* weight, const float* add,
                         double eps, int64_t rows, int64_t size, float* dx) {
  ParallelFor(rows, Grain(size), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      HWY_DYNAMIC_DISPATCH(RmsNormBackwardRow)
      (dy + r * size, x + r * stride, weight, add ? add + r * size : nullptr, eps, size, dx + r * size);
    }
  });
}

void RotateRows(const float* x, int64_t stride, const float* cos, const float* sin, bool inverse, int64_t rows,
                int64_t heads, int64_t half, float* y) {
  ParallelFor(rows, Grain(heads * half * 2), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t h = 0; h < heads; ++h) {
        HWY_DYNAMIC_DISPATCH(RotateHead)
        (x + r * stride + h * 2 * half, cos + r * half, sin + r * half, inverse ? -1.0f : 1.0f, half,
         y + (r * heads + h) * 2 * half);
      }
    }
  });
}

void SumRows(const float* x, const int64_t* index, int64_t rows, int64_t count, int64_t size, float* y) {
  ParallelFor(rows, Grain(count * size), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      HWY_DYNAMIC_DISPATCH(SumChosenRows)(x, index + r * count, count, size, y + r * size);
  });
}

void SwigluBlocks(const float* gate_up, const float* scale, int64_t blocks, int64_t size, float* out) {
  ParallelFor(blocks, Grain(size * 8), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      HWY_DYNAMIC_DISPATCH(SwigluBlock)(gate_up + b * 2 * size, scale[b], size, out + b * size);
  });
}

void SwigluBackwardBlocks(const float* t, const float* gate_up, const float* scale, int64_t blocks, int64_t size,
                          float* dscale, float* dgate_up) {
  ParallelFor(blocks, Grain(size * 8), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      dscale[b] = HWY_DYNAMIC_DISPATCH(SwigluBackwardBlock)(t + b * size, gate_up + b * 2 * size, scale[b], size,
                                                            dgate_up + b * 2 * size);
    }
  });
}

void SoftmaxInPlace(float* x, int64_t length, int64_t width, float factor) {
  HWY_DYNAMIC_DISPATCH(SoftmaxRow)(x, length, width, factor);
}

double SumOfExp(const float* x, int64_t size, float* top) { return HWY_DYNAMIC_DISPATCH(SumOfExpOf)(x, size, top); }

void ScaledExpInPlace(float* x, int64_t size, float shift, float factor) {
  HWY_DYNAMIC_DISPATCH(ScaledExp)(x, size, shift, factor);
}

float Dot(const float* x, const float* y, int64_t size) { return HWY_DYNAMIC_DISPATCH(DotOf)(x, y, size); }
float Dot(const float* x, const uint16_t* y, int64_t size) { return HWY_DYNAMIC_DISPATCH(DotOfBfloat16)(x, y, size); }

void AddScaled(float a, const float* x, int64_t size, float* y) { HWY_DYNAMIC_DISPATCH(AddScaledTo)(a, x, size, y); }
void AddScaled(float a, const uint16_t* x, int64_t size, float* y) {
  HWY_DYNAMIC_DISPATCH(AddScaledBfloat16To)(a, x, size, y);
}

void RoundToBfloat16(const float* x, int64_t size, uint16_t* y) {
  for (int64_t i = 0; i < size; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof(bits));
    const auto rounded = static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
    const auto quiet = static_cast<uint16_t>(bits >> 16 | 0x40);
    y[i] = (bits & 0x7FFFFFFF) > 0x7F800000 ? quiet : rounded;
  }
}

}  // namespace c3po::cpu
#endif  // HWY_ONCE
