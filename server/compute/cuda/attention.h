#ifndef C3PO_SERVER_COMPUTE_CUDA_ATTENTION_H_
#define C3PO_SERVER_COMPUTE_CUDA_ATTENTION_H_

#include <cstdint>

#include "index/base/cuda/runtime.h"
#include "server/compute/cuda/head_rows.h"
#include "server/compute/cuda/layout.h"

// Attention of running sequences on the paged cache:
//   context[r, h] = sum_p softmax_p(scale <q[r, h], k[p, g]>) v[p, g],   p in [0, position of r],  g = h / group
// with group = heads / kv_heads query heads that share a key-value head. A row's keys are cut into splits of
// kSplitPositions positions that begin at multiples of it, so a row's result depends on its own query, keys and values
// alone: it is bitwise the same beside any other rows, in a chunk of a prompt or alone, and however splits are dealt to
// blocks. Cache slots beyond a row's position are not read, whatever they hold.
//
// planes 1: the cache is bfloat16; queries and probabilities are split into two bfloat16 each, so their rounding is
// 2^-17. planes 3: the cache is float32, and all factors are split into three (products down to 2^-24).
// Thread-safe; nothing is checked.
namespace c3po::cuda {

inline constexpr int kSplitPositions = 128;
inline constexpr int kTileSlots = 16;  // Queries that a block holds: rows of a tile times heads of a group.

// The splits of a row at `position`.
constexpr int32_t SplitsOf(int32_t position) { return position / kSplitPositions + 1; }

// Consecutive rows of one step and one sequence, at consecutive positions.
struct AttentionTile {
  int32_t first_row = 0;
  int32_t rows = 0;  // at most RowsPerTile; 0: none
};

constexpr int32_t RowsPerTile(int32_t heads, int32_t kv_heads) {
  const int32_t group = heads / kv_heads;
  return group >= kTileSlots ? 1 : kTileSlots / group;
}

// What a split leaves. For row r, head h and split s in [0, SplitsOf(position)), i = (r * heads + h) * splits_max + s:
//   m[i] = max_p score,  l[i] = sum_p exp(score - m),  o[i * value_dim + c] = sum_p exp(score - m) v[p, c]
// Splits beyond are not written. RowSource::kMerged (server/compute/cuda/rows.h) puts them together in ascending order.
struct AttentionPartials {
  float* o = nullptr;
  float* m = nullptr;
  float* l = nullptr;
  int32_t splits_max = 0;
};

// Norm and rotation of all rows; their keys and values go into the cache. What is null is not written.
struct RotateArgs {
  HeadTransform transform;
  HeadSource source;
  const AttentionRow* rows = nullptr;  // [row_count]
  int32_t row_count = 0;
  int32_t planes = 1;

  float* q = nullptr;  // [rows, heads, head_dim]
  float* k = nullptr;  // [rows, kv_heads, head_dim]
  float* v = nullptr;  // [rows, kv_heads, value_dim]

  KvLayer cache;  // keys null: none
  const AttentionSequence* sequences = nullptr;
  const int32_t* tables = nullptr;
};
Error LaunchRotate(const RotateArgs& args, Stream stream);

struct AttentionArgs {
  HeadTransform transform;
  float scale = 1;
  const AttentionRow* rows = nullptr;
  const AttentionSequence* sequences = nullptr;
  const int32_t* tables = nullptr;
  KvLayer cache;
  int32_t planes = 1;

  // [tile_count]; null: tile t is row t alone.
  const AttentionTile* tiles = nullptr;
  int32_t tile_count = 0;

  // Rows that LaunchRotate has put into the cache come with its `q`. Null: the kernel does to each row what
  // LaunchRotate does, from `source`; each tile is one row then, no two rows are of one sequence, and group <=
  // kTileSlots.
  const float* q = nullptr;
  HeadSource source;

  // Blocks that share the splits of a tile and a key-value head, at least 1: block i takes splits i, i + workers, ...
  // If one, `partials` may be left out: the block merges its splits and writes `context`. Else `context` is left out.
  int32_t workers = 1;
  AttentionPartials partials;
  ActivationPlanes context;  // [rows, heads * value_dim], padded by zeros to a multiple of 32
};
Error LaunchAttention(const AttentionArgs& args, Stream stream);

}  // namespace c3po::cuda

#endif  // C3PO_SERVER_COMPUTE_CUDA_ATTENTION_H_
