#include "server/compute/cpu/projections.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "server/compute/cpu/row_operations.h"
#include "server/compute/cpu/thread_pool.h"

namespace c3po::cpu {
namespace {

constexpr double kLatentNormEps = 1e-6;  // DeepSeek-V2's own, whatever rms_norm_eps says.
constexpr int64_t kGrain = 1 << 14;      // Entries that a thread is worth waking for.

using QkNorm = ModelConfig::QkNorm;

struct Strided {
  const float* data;
  int64_t stride;
};

// Copies `size` entries of each row.
void CopyRows(const Strided& from, int64_t rows, int64_t size, float* to, int64_t to_stride) {
  for (int64_t r = 0; r < rows; ++r) {
    std::memcpy(to + r * to_stride, from.data + r * from.stride, static_cast<size_t>(size) * sizeof(float));
  }
}

// `heads` heads of head_dim entries per row; the result is `x` itself or lies in `memory`.
Strided NormHeads(const ModelConfig& config, const Strided& x, const float* weight, int64_t rows, int64_t heads,
                  Memory& memory) {
  const int64_t dim = config.head_dim, width = heads * dim;
  if (config.qk_norm == QkNorm::kNone) return x;
  float* const y = memory.Floats(rows * width);
  if (config.qk_norm == QkNorm::kWhole) {
    RmsNormRows(x.data, x.stride, weight, config.rms_norm_eps, rows, width, y);
  } else {
    float* const packed = memory.Floats(rows * width);
    CopyRows(x, rows, width, packed, width);
    RmsNormRows(packed, dim, weight, config.rms_norm_eps, rows * heads, dim, y);
  }
  return {y, width};
}

// dJ/dx, packed, from dJ/dy, packed.
const float* NormHeadsBackward(const ModelConfig& config, const float* dy, const Strided& x, const float* weight,
                               int64_t rows, int64_t heads, Memory& memory) {
  const int64_t dim = config.head_dim, width = heads * dim;
  if (config.qk_norm == QkNorm::kNone) return dy;
  float* const dx = memory.Floats(rows * width);
  if (config.qk_norm == QkNorm::kWhole) {
    RmsNormBackwardRows(dy, x.data, x.stride, weight, nullptr, config.rms_norm_eps, rows, width, dx);
  } else {
    float* const packed = memory.Floats(rows * width);
    CopyRows(x, rows, width, packed, width);
    RmsNormBackwardRows(dy, packed, dim, weight, nullptr, config.rms_norm_eps, rows * heads, dim, dx);
  }
  return dx;
}

Strided Clipped(const ModelConfig& config, const Strided& x, int64_t rows, int64_t width, Memory& memory) {
  if (!config.clip_qkv) return x;
  const auto limit = static_cast<float>(*config.clip_qkv);
  float* const y = memory.Floats(rows * width);
  CopyRows(x, rows, width, y, width);
  for (int64_t i = 0; i < rows * width; ++i) {
    // Not std::clamp, which would make a number of what is none.
    y[i] = y[i] > limit ? limit : y[i] < -limit ? -limit : y[i];
  }
  return {y, width};
}

// No gradient goes through a clipped entry.
void ClipBackward(const ModelConfig& config, const Strided& x, int64_t rows, int64_t width, float* dx) {
  if (!config.clip_qkv) return;
  const auto limit = static_cast<float>(*config.clip_qkv);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < width; ++i) {
      if (!(std::abs(x.data[r * x.stride + i]) <= limit)) dx[r * width + i] = 0;
    }
  }
}

// The last rope_dim entries of each head are rotated; y packed.
void RotateHeads(const ModelConfig& config, const Strided& x, const Rotations& rope, bool inverse, int64_t rows,
                 int64_t heads, Arena& scratch, float* y) {
  const int64_t dim = config.head_dim, turned = config.rope_dim, plain = dim - turned;
  if (plain == 0) return RotateRows(x.data, x.stride, rope.cos, rope.sin, inverse, rows, heads, turned / 2, y);
  const Arena::Scope scope(scratch);
  float* const tails = scratch.Floats(rows * heads * turned);
  float* const rotated = scratch.Floats(rows * heads * turned);
  for (int64_t r = 0; r < rows; ++r) {
    CopyRows({x.data + r * x.stride + plain, dim}, heads, turned, tails + r * heads * turned, turned);
    CopyRows({x.data + r * x.stride, dim}, heads, plain, y + r * heads * dim, dim);
  }
  RotateRows(tails, heads * turned, rope.cos, rope.sin, inverse, rows, heads, turned / 2, rotated);
  CopyRows({rotated, turned}, rows * heads, turned, y + plain, dim);
}

// Where the columns of HeadRows::raw begin.
struct Cuts {
  Cuts(const ModelConfig& config, const LayerViews& layer) : width(layer.qkv.rows) {
    if (config.latent) {
      key = width - config.rope_dim;
      value = key - config.latent->kv_rank;
    } else {
      key = int64_t{config.heads} * config.head_dim;
      value = key + int64_t{config.kv_heads} * config.head_dim;
    }
  }
  int64_t width;
  int64_t key;    // of the keys; of latent attention, of the key that all heads share
  int64_t value;  // of the values; of latent attention, of the latent
};

void ProjectLatent(const ModelConfig& config, const LayerViews& layer, int64_t rows, const Rotations& rope,
                   Arena& scratch, const HeadRows& out) {
  const Cuts cuts(config, layer);
  const int64_t heads = config.heads, plain = config.latent->plain_dim, turned = config.rope_dim;
  const int64_t rank = config.latent->kv_rank, dim = config.head_dim, value_dim = config.value_dim;
  Strided queries{out.raw, cuts.width};
  if (config.latent->query_rank > 0) {
    const int64_t query_rank = config.latent->query_rank;
    float* const latent = scratch.Floats(rows * query_rank);
    RmsNormRows(out.raw, cuts.width, layer.query_latent_norm, kLatentNormEps, rows, query_rank, latent);
    float* const expanded = scratch.Floats(rows * heads * dim);
    Project({latent, query_rank, rows, nullptr}, layer.query_expand, nullptr, expanded);
    queries = {expanded, heads * dim};
  }
  RotateHeads(config, queries, rope, false, rows, heads, scratch, out.q);
  float* const latent = scratch.Floats(rows * rank);
  RmsNormRows(out.raw + cuts.value, cuts.width, layer.kv_latent_norm, kLatentNormEps, rows, rank, latent);
  const int64_t both = plain + value_dim;
  float* const expanded = scratch.Floats(rows * heads * both);
  Project({latent, rank, rows, nullptr}, layer.kv_expand, nullptr, expanded);
  float* const key = scratch.Floats(rows * turned);
  RotateRows(out.raw + cuts.key, cuts.width, rope.cos, rope.sin, false, rows, 1, turned / 2, key);
  CopyRows({expanded, both}, rows * heads, plain, out.k, dim);
  CopyRows({expanded + plain, both}, rows * heads, value_dim, out.v, value_dim);
  for (int64_t r = 0; r < rows; ++r)
    CopyRows({key + r * turned, 0}, heads, turned, out.k + r * heads * dim + plain, dim);
}

void ProjectLatentBackward(const ModelConfig& config, const LayerViews& layer, const HeadRows& forward, const float* dq,
                           const float* dk, const float* dv, int64_t rows, const Rotations& rope, Arena& scratch,
                           float* dnormed) {
  const Cuts cuts(config, layer);
  const int64_t heads = config.heads, plain = config.latent->plain_dim, turned = config.rope_dim;
  const int64_t rank = config.latent->kv_rank, dim = config.head_dim, value_dim = config.value_dim;
  float* const draw = scratch.Floats(rows * cuts.width);
  float* const gq = scratch.Floats(rows * heads * dim);
  RotateHeads(config, {dq, heads * dim}, rope, true, rows, heads, scratch, gq);
  if (config.latent->query_rank > 0) {
    const int64_t query_rank = config.latent->query_rank;
    float* const dlatent = scratch.Floats(rows * query_rank);
    ProjectBackward({gq, heads * dim, rows, nullptr}, layer.query_expand, scratch, dlatent);
    float* const packed = scratch.Floats(rows * query_rank);
    RmsNormBackwardRows(dlatent, forward.raw, cuts.width, layer.query_latent_norm, nullptr, kLatentNormEps, rows,
                        query_rank, packed);
    CopyRows({packed, query_rank}, rows, query_rank, draw, cuts.width);
  } else {
    CopyRows({gq, heads * dim}, rows, heads * dim, draw, cuts.width);
  }
  const int64_t both = plain + value_dim;
  float* const dexpanded = scratch.Floats(rows * heads * both);
  CopyRows({dk, dim}, rows * heads, plain, dexpanded, both);
  CopyRows({dv, value_dim}, rows * heads, value_dim, dexpanded + plain, both);
  float* const dnormed_latent = scratch.Floats(rows * rank);
  ProjectBackward({dexpanded, heads * both, rows, nullptr}, layer.kv_expand, scratch, dnormed_latent);
  float* const dlatent = scratch.Floats(rows * rank);
  RmsNormBackwardRows(dnormed_latent, forward.raw + cuts.value, cuts.width, layer.kv_latent_norm, nullptr,
                      kLatentNormEps, rows, rank, dlatent);
  CopyRows({dlatent, rank}, rows, rank, draw + cuts.value, cuts.width);
  float* const dkey = scratch.Floats(rows * turned);  // The sum over heads.
  for (int64_t r = 0; r < rows; ++r) {
    float* const sum = dkey + r * turned;
    std::fill_n(sum, turned, 0.0f);
    for (int64_t h = 0; h < heads; ++h) AddScaled(1, dk + (r * heads + h) * dim + plain, turned, sum);
  }
  float* const gkey = scratch.Floats(rows * turned);
  RotateRows(dkey, turned, rope.cos, rope.sin, true, rows, 1, turned / 2, gkey);
  CopyRows({gkey, turned}, rows, turned, draw + cuts.key, cuts.width);
  ProjectBackward({draw, cuts.width, rows, nullptr}, layer.qkv, scratch, dnormed);
}

}  // namespace

void Project(const RowsView& x, const WeightView& w, const float* bias, float* y) {
  const DotProduct product{x, w, {y, w.rows, nullptr}};
  MultiplyTransposed({&product, 1});
  if (bias == nullptr) return;
  for (int64_t r = 0; r < x.rows; ++r) AddScaledRows(y + r * w.rows, bias, 1, w.rows, y + r * w.rows);
}

void ProjectBackward(const RowsView& a, const WeightView& w, Arena& scratch, float* y) {
  constexpr int64_t kGroupsMax = 4, kGroupRows = 256;
  const int64_t rows = a.rows, n = w.rows, k = w.columns;
  const int64_t groups = std::clamp<int64_t>(n / kGroupRows, 1, kGroupsMax);
  const int64_t unit = w.row_step(), units = (n + unit - 1) / unit;
  const Arena::Scope scope(scratch);
  float* const parts = groups == 1 ? y : scratch.Floats(groups * rows * k);
  OuterProduct products[kGroupsMax];
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t begin = units * g / groups * unit, end = std::min(n, units * (g + 1) / groups * unit);
    products[g] = {{a.data + begin, a.stride, rows, nullptr}, w.Rows(begin, end), {parts + g * rows * k, k, nullptr}};
  }
  Multiply({products, static_cast<size_t>(groups)});
  if (groups == 1) return;
  int64_t* const index = scratch.Integers(rows * groups);
  for (int64_t i = 0; i < rows * groups; ++i) index[i] = i % groups * rows + i / groups;
  SumRows(parts, index, rows, groups, k, y);
}

void AddScaledRows(const float* x, const float* block, float factor, int64_t count, float* out) {
  ParallelFor(count, kGrain, [&](int64_t begin, int64_t end) {
    if (factor == 1) {
      for (int64_t i = begin; i < end; ++i) out[i] = x[i] + block[i];
    } else {
      for (int64_t i = begin; i < end; ++i) out[i] = x[i] + block[i] * factor;
    }
  });
}

HeadRows ProjectHeads(const ModelConfig& config, const LayerViews& layer, const float* normed, int64_t rows,
                      const Rotations& rope, Memory& memory, Arena& scratch) {
  const int64_t heads = config.heads, kv_heads = config.kv_heads, dim = config.head_dim;
  const int64_t width = layer.qkv.rows;
  const HeadRows out{memory.Floats(rows * heads * dim), memory.Floats(rows * kv_heads * dim),
                     memory.Floats(rows * kv_heads * config.value_dim), memory.Floats(rows * width)};
  Project({normed, config.hidden_size, rows, nullptr}, layer.qkv, layer.qkv_bias, out.raw);
  const Arena::Scope scope(scratch);
  if (config.latent) {
    ProjectLatent(config, layer, rows, rope, scratch, out);
    return out;
  }
  const Cuts cuts(config, layer);
  const Strided q = NormHeads(config, {out.raw, width}, layer.q_norm, rows, heads, scratch);
  const Strided k = NormHeads(config, {out.raw + cuts.key, width}, layer.k_norm, rows, kv_heads, scratch);
  const Strided v = Clipped(config, {out.raw + cuts.value, width}, rows, kv_heads * dim, scratch);
  RotateHeads(config, Clipped(config, q, rows, heads * dim, scratch), rope, false, rows, heads, scratch, out.q);
  RotateHeads(config, Clipped(config, k, rows, kv_heads * dim, scratch), rope, false, rows, kv_heads, scratch, out.k);
  CopyRows(v, rows, kv_heads * dim, out.v, kv_heads * dim);
  return out;
}

void ProjectHeadsBackward(const ModelConfig& config, const LayerViews& layer, const HeadRows& forward, const float* dq,
                          const float* dk, const float* dv, int64_t rows, const Rotations& rope, Arena& scratch,
                          float* dnormed) {
  const Arena::Scope scope(scratch);
  if (config.latent) {
    return ProjectLatentBackward(config, layer, forward, dq, dk, dv, rows, rope, scratch, dnormed);
  }
  const Cuts cuts(config, layer);
  const int64_t heads = config.heads, kv_heads = config.kv_heads, dim = config.head_dim, width = cuts.width;
  const Strided raw_q{forward.raw, width}, raw_k{forward.raw + cuts.key, width};
  float* const gq = scratch.Floats(rows * heads * dim);
  float* const gk = scratch.Floats(rows * kv_heads * dim);
  float* const gv = scratch.Floats(rows * kv_heads * dim);
  RotateHeads(config, {dq, heads * dim}, rope, true, rows, heads, scratch, gq);
  RotateHeads(config, {dk, kv_heads * dim}, rope, true, rows, kv_heads, scratch, gk);
  CopyRows({dv, kv_heads * dim}, rows, kv_heads * dim, gv, kv_heads * dim);
  if (config.clip_qkv) {
    ClipBackward(config, NormHeads(config, raw_q, layer.q_norm, rows, heads, scratch), rows, heads * dim, gq);
    ClipBackward(config, NormHeads(config, raw_k, layer.k_norm, rows, kv_heads, scratch), rows, kv_heads * dim, gk);
    ClipBackward(config, {forward.raw + cuts.value, width}, rows, kv_heads * dim, gv);
  }
  float* const draw = scratch.Floats(rows * width);
  CopyRows({NormHeadsBackward(config, gq, raw_q, layer.q_norm, rows, heads, scratch), heads * dim}, rows, heads * dim,
           draw, width);
  CopyRows({NormHeadsBackward(config, gk, raw_k, layer.k_norm, rows, kv_heads, scratch), kv_heads * dim}, rows,
           kv_heads * dim, draw + cuts.key, width);
  CopyRows({gv, kv_heads * dim}, rows, kv_heads * dim, draw + cuts.value, width);
  ProjectBackward({draw, width, rows, nullptr}, layer.qkv, scratch, dnormed);
}

}  // namespace c3po::cpu
