#ifndef C3PO_SERVER_COMPUTE_CPU_PROJECTIONS_H_
#define C3PO_SERVER_COMPUTE_CPU_PROJECTIONS_H_

#include <cstdint>

#include "server/compute/cpu/layer_views.h"
#include "server/compute/cpu/memory.h"

namespace c3po::cpu {

// Products and sums that all blocks are made of, on packed float32 rows unless a stride is told. R rows.

// y [R, w.rows] = x w^T, plus a bias [w.rows] unless it is null.
void Project(const RowsView& x, const WeightView& w, const float* bias, float* y);
// y [R, w.columns] = a w: W's rows in up to four groups that are multiplied side by side, then added, so that each is
// read by one thread from end to end. How many depends on W alone, and so does the order of a sum.
void ProjectBackward(const RowsView& a, const WeightView& w, Arena& scratch, float* y);
// out = x + factor * block, entry by entry; out may be x.
void AddScaledRows(const float* x, const float* block, float factor, int64_t count, float* out);

// Of each row's position: [R, rope_dim / 2] each.
struct Rotations {
  const float *cos, *sin;
};

// Queries, keys and values of R rows.
struct HeadRows {
  float* q;    // [R, heads, head_dim], after norm, clip and rotation, as are k and v
  float* k;    // [R, kv_heads, head_dim]
  float* v;    // [R, kv_heads, value_dim]
  float* raw;  // [R, rows of qkv]: before norm and rotation
};

// Projected from normed [R, d], directly or through DeepSeek's latents:
//   direct  qkv -> cut -> QK-norm -> clip -> heads -> rotate
//   latent  qkv -> cut: queries (-> norm -> expand) -> heads -> rotate their last rope_dim entries
//                  latent -> norm -> expand -> heads: plain keys, values
//                  one rotated key for all heads, appended to each head's plain key
// The result lies in `memory`; `scratch` may be the same.
HeadRows ProjectHeads(const ModelConfig& config, const LayerViews& layer, const float* normed, int64_t rows,
                      const Rotations& rope, Memory& memory, Arena& scratch);

// dJ/dnormed [R, d] from dJ/dq, dJ/dk and dJ/dv, shaped as in HeadRows.
void ProjectHeadsBackward(const ModelConfig& config, const LayerViews& layer, const HeadRows& forward, const float* dq,
                          const float* dk, const float* dv, int64_t rows, const Rotations& rope, Arena& scratch,
                          float* dnormed);

}  // namespace c3po::cpu

#endif  // C3PO_SERVER_COMPUTE_CPU_PROJECTIONS_H_
