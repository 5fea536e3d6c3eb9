#ifndef C3PO_SERVER_COMPUTE_CUDA_TREE_ATTENTION_H_
#define C3PO_SERVER_COMPUTE_CUDA_TREE_ATTENTION_H_

#include <cstdint>

#include "index/base/cuda/runtime.h"
#include "server/compute/cuda/head_rows.h"
#include "server/compute/cuda/layout.h"

// Attention of an objective's rows, there and back, in float32 on vectors. Row r of case s attends to the case's
// prefix, whose keys and values lie in blocks and do not move, and to its ancestors, rows of the same matrix and r
// among them:
//   p[r, h, j] = softmax_j(scale <q[r, h], k_j>),   context[r, h] = sum_j p[r, h, j] v_j
// over the row's columns j: prefix positions ascending, then ancestors in their order. All sums have a fixed order, so
// a row's results are bitwise the same whatever other cases there are. Blocks' slots behind a prefix are not read. All
// pointers are of the device. Thread-safe; nothing is checked.
namespace c3po::cuda {

// Row `row` has this row as its ancestor number `place`.
struct TreeDescendant {
  int32_t row = 0;
  int32_t place = 0;
};

struct TreeTables {
  int32_t rows = 0;                         // R
  const int32_t* row_case = nullptr;        // [R]
  const int32_t* prefix_lengths = nullptr;  // [cases]
  const int32_t* block_begin = nullptr;     // [cases] the first of the case's blocks in the two lists below
  const int32_t* ancestor_begin = nullptr;  // [R + 1]
  const int32_t* ancestors = nullptr;       // rows; in each row's part itself is first
  const int64_t* column_begin = nullptr;    // [R + 1] columns of the rows before

  const int32_t* descendant_begin = nullptr;    // [R + 1], for the way back
  const TreeDescendant* descendants = nullptr;  // by row, ascending; each row's own part begins with itself
};

// Where prefixes lie in one layer. Block i: keys [kv_heads, block_positions, key width], values likewise, widths and
// types as in KvLayer.
struct TreePrefixBlocks {
  const void* const* keys = nullptr;
  const void* const* values = nullptr;
  int32_t block_positions = 1;
  int32_t bfloat16 = 0;
};

struct TreeAttentionArgs {
  int32_t heads = 0, kv_heads = 0;      // kv_heads divides heads
  int32_t head_dim = 0, value_dim = 0;  // at most 256 each
  float scale = 1;
  TreeTables tree;
  TreePrefixBlocks prefix;
  const float* q = nullptr;  // [R, heads, head_dim], after norm and rotation, as LaunchRotate writes them
  const float* k = nullptr;  // [R, kv_heads, head_dim]
  const float* v = nullptr;  // [R, kv_heads, value_dim]
  // [column_begin[R] * heads]: row by row and head by head the row's columns.
  float* probabilities = nullptr;
  int32_t planes = 1;        // of `context`
  ActivationPlanes context;  // [R, heads * value_dim], padded by zeros to a multiple of 32
};
Error LaunchTreeAttention(const TreeAttentionArgs& args, Stream stream);

// dJ/dq, dJ/dk and dJ/dv from dJ/dcontext.
struct TreeBackwardArgs {
  TreeAttentionArgs forward;        // its context is not used
  const float* dcontext = nullptr;  // [R, heads, value_dim]
  float* dscores = nullptr;         // room, as `probabilities`
  float* dq = nullptr;              // [R, heads, head_dim]
  float* dk = nullptr;              // [R, kv_heads, head_dim]
  float* dv = nullptr;              // [R, kv_heads, value_dim]
};
Error LaunchTreeBackward(const TreeBackwardArgs& args, Stream stream);

// Back through HeadTransform: from gradients of what it gave to those of its source, laid out as the source is. Where
// the source has a shared key, its gradient is the sum over all heads.
struct HeadGradient {
  float* q = nullptr;
  float* k = nullptr;
  float* v = nullptr;
  float* shared_key = nullptr;
};
struct HeadsBackwardArgs {
  HeadTransform transform;
  HeadSource source;
  const AttentionRow* rows = nullptr;  // of which the positions are read
  int32_t row_count = 0;
  const float* dq = nullptr;  // [R, heads, head_dim]
  const float* dk = nullptr;  // [R, kv_heads, head_dim]
  const float* dv = nullptr;  // [R, kv_heads, value_dim]
  HeadGradient gradient;      // the source's strides
};
Error LaunchHeadsBackward(const HeadsBackwardArgs& args, Stream stream);

// Copies of whole blocks, side by side: from a prompt's pass to the states that are kept of it.
struct BlockCopy {
  const void* from = nullptr;  // 16-byte aligned, as `to`
  void* to = nullptr;
};
struct BlockCopiesArgs {
  const BlockCopy* copies = nullptr;  // [count]
  int32_t count = 0;
  int64_t bytes = 0;  // of each, a multiple of 16
};
Error LaunchBlockCopies(const BlockCopiesArgs& args, Stream stream);

}  // namespace c3po::cuda

#endif  // C3PO_SERVER_COMPUTE_CUDA_TREE_ATTENTION_H_
