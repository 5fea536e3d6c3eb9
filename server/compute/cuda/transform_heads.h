#ifndef C3PO_SERVER_COMPUTE_CUDA_TRANSFORM_HEADS_H_
#define C3PO_SERVER_COMPUTE_CUDA_TRANSFORM_HEADS_H_

#include "index/base/cuda/device.h"
#include "server/compute/cuda/block_reductions.h"
#include "server/compute/cuda/head_rows.h"
#include "server/compute/cuda/row_planes.h"

// HeadTransform for kernel code. All kernels that transform heads do it by these functions and in blocks of
// kTransformThreads, so that they get the same bits.
namespace c3po::cuda {

inline constexpr int kTransformThreads = 128;

// x limited to [-clip, clip]; NaN stays.
C3PO_DEVICE float Clipped(float x, float clip) { return x > clip ? clip : x < -clip ? -clip : x; }

// 1 / rms of n entries, by the whole block or by each warp for itself. A thread of the block asks for 16 entries at
// once: all that there are of 2,048.
C3PO_DEVICE float InverseRmsOfBlock(const float* x, int n, float eps, float* scratch) {
  constexpr int kAtOnce = 4;
  const bool aligned = reinterpret_cast<uintptr_t>(x) % 16 == 0;
  const int apart = 4 * device::Threads();
  float sum = 0;
  for (int first = 4 * device::Thread(); first < n; first += kAtOnce * apart) {
    float four[kAtOnce][4];
    C3PO_UNROLL for (int i = 0; i < kAtOnce; ++i) { LoadFour(x, first + i * apart, n, aligned, four[i]); }
    C3PO_UNROLL for (int i = 0; i < kAtOnce; ++i) {
      C3PO_UNROLL for (int j = 0; j < 4; ++j) { sum = device::FusedMultiplyAdd(four[i][j], four[i][j], sum); }
    }
  }
  return InverseRms(BlockSum(sum, scratch), n, eps);
}
C3PO_DEVICE float InverseRmsOfWarp(const float* x, int n, float eps) {
  float sum = 0;
  for (int i = device::Lane(); i < n; i += 32) sum = device::FusedMultiplyAdd(x[i], x[i], sum);
  return InverseRms(WarpSum(sum), n, eps);
}

// The factor that kWhole gives all heads of a row; 1 for others. A collective of the block.
C3PO_DEVICE float WholeFactor(const HeadTransform& t, const float* x, int heads, float* scratch) {
  return t.norm == HeadNorm::kWhole ? InverseRmsOfBlock(x, heads * t.head_dim, t.eps, scratch) : 1.0f;
}

// One head's entries before norm and rotation: x[i], but the last rope_dim ones are tail[0], tail[1] ...
struct RawHead {
  const float* x;
  const float* tail;
};

// Head `head` of queries or keys, transformed: put(i, entry i) once for each i < head_dim. `weight` is q_norm or
// k_norm, `factor` what WholeFactor gave. A collective of the warp.
template <class Put>
C3PO_DEVICE void TransformHead(const HeadTransform& t, const RawHead& raw, const float* weight, int head, float factor,
                               int position, const Put& put) {
  const bool normed = t.norm != HeadNorm::kNone;
  if (t.norm == HeadNorm::kPerHead) factor = InverseRmsOfWarp(raw.x, t.head_dim, t.eps);
  if (t.norm == HeadNorm::kWhole) weight += head * t.head_dim;
  const auto entry = [&](float x, int i) {
    return Clipped(normed ? device::Multiply(device::Multiply(x, factor), weight[i]) : x, t.clip);
  };
  const int half = t.rope_dim / 2, plain = t.head_dim - t.rope_dim;
  const float* const cos = t.cos + static_cast<int64_t>(position) * half;
  const float* const sin = t.sin + static_cast<int64_t>(position) * half;
  for (int i = device::Lane(); i < plain + half; i += 32) {
    if (i < plain) {
      put(i, entry(raw.x[i], i));
      continue;
    }
    const int j = i - plain;
    const float a = entry(raw.tail[j], i), b = entry(raw.tail[j + half], i + half);
    put(i, device::FusedMultiplyAdd(-b, sin[j], device::Multiply(a, cos[j])));
    put(i + half, device::FusedMultiplyAdd(a, sin[j], device::Multiply(b, cos[j])));
  }
}

C3PO_DEVICE RawHead RawQuery(const HeadTransform& t, const HeadSource& source, int64_t row, int head) {
  const float* const x = source.q + row * source.q_stride + head * t.head_dim;
  return {x, x + t.head_dim - t.rope_dim};
}

C3PO_DEVICE RawHead RawKey(const HeadTransform& t, const HeadSource& source, int64_t row, int head) {
  const float* const x = source.k + row * source.k_stride + static_cast<int64_t>(head) * source.k_head_stride;
  if (source.shared_key != nullptr) return {x, source.shared_key + row * source.shared_stride};
  return {x, x + t.head_dim - t.rope_dim};
}

C3PO_DEVICE const float* RawValue(const HeadSource& source, int64_t row, int head) {
  return source.v + row * source.v_stride + static_cast<int64_t>(head) * source.v_head_stride;
}

// Where a position's keys and values lie in the cache, in rows of one key-value head.
C3PO_DEVICE int CacheRowOf(const AttentionSequence& sequence, const int32_t* tables, int block_positions, int kv_heads,
                           int kv_head, int position) {
  const bool shared = position < sequence.beginning_positions;
  const int local = shared ? position : position - sequence.beginning_positions;
  const int block = tables[(shared ? sequence.beginning : sequence.own) + local / block_positions];
  return (block * kv_heads + kv_head) * block_positions + local % block_positions;
}

// The type of the cache's entries.
template <int kPlanes>
struct CacheElement {
  using Type = device::BFloat16;
  C3PO_DEVICE static Type Of(float x) { return device::ToBFloat16(x); }
};
template <>
struct CacheElement<3> {
  using Type = float;
  C3PO_DEVICE static Type Of(float x) { return x; }
};

// Puts one row's key or value head into the cache; a collective of the warp.
template <int kPlanes>
C3PO_DEVICE void AppendKey(const HeadTransform& t, const HeadSource& source, const KvLayer& cache, int64_t row,
                           int kv_head, int position, float factor, int cache_row) {
  using Element = CacheElement<kPlanes>;
  auto* const to =
      static_cast<typename Element::Type*>(cache.keys) + static_cast<int64_t>(cache_row) * CacheWidth(t.head_dim);
  TransformHead(t, RawKey(t, source, row, kv_head), t.k_norm, kv_head, factor, position,
                [&](int i, float x) { to[i] = Element::Of(x); });
  for (int i = t.head_dim + device::Lane(); i < CacheWidth(t.head_dim); i += 32) to[i] = Element::Of(0);
}
template <int kPlanes>
C3PO_DEVICE void AppendValue(const HeadTransform& t, const HeadSource& source, const KvLayer& cache, int64_t row,
                             int kv_head, int cache_row) {
  using Element = CacheElement<kPlanes>;
  auto* const to =
      static_cast<typename Element::Type*>(cache.values) + static_cast<int64_t>(cache_row) * CacheWidth(t.value_dim);
  const float* const from = RawValue(source, row, kv_head);
  for (int i = device::Lane(); i < CacheWidth(t.value_dim); i += 32) {
    to[i] = Element::Of(i < t.value_dim ? Clipped(from[i], t.clip) : 0.0f);
  }
}

}  // namespace c3po::cuda

#endif  // C3PO_SERVER_COMPUTE_CUDA_TRANSFORM_HEADS_H_
