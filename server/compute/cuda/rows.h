#ifndef C3PO_SERVER_COMPUTE_CUDA_ROWS_H_
#define C3PO_SERVER_COMPUTE_CUDA_ROWS_H_

#include <cstdint>

#include "index/base/cuda/runtime.h"
#include "server/compute/cuda/layout.h"

// Rows before and after products: where the rows that enter a product come from, and the embedding. R rows. All
// pointers are to device memory, float32 rows are packed unless a stride is told.
namespace c3po::cuda {

// The rows [R, K] that enter a product, before they are rounded to bfloat16 planes.
struct RowSource {
  enum Kind : int {
    kPlanes,  // They are in planes already.
    kFloats,  // scale * x[r]
    kNormed,  // x[r] / sqrt(mean(x[r]^2) + eps) * norm
    // Attention of row r, its keys in n = ceil(lengths[r] / split_length) splits, each with the softmax relative to its
    // own largest logit m and its sum l. Of head h, with M = max of m over the n splits:
    //   sum_i exp(m_i - M) o_i / sum_i exp(m_i - M) l_i,
    // splits ascending, by MergedSplits (split_merge.h), so that it is bitwise what LaunchAttention makes of its own
    // splits. Splits from n on are not read. K = heads * value_dim. A row of length 0 is zero.
    kMerged,
  };
  Kind kind = kPlanes;

  const float* x = nullptr;  // [*, K], `stride` apart; may be part of longer rows
  int64_t stride = 0;
  const int* row_index = nullptr;  // [R]: row r is x[row_index[r]], or zero where that is negative; null: x[r]
  float scale = 1;
  const float* norm = nullptr;  // [K]
  float eps = 0;

  const float* partial = nullptr;            // o [R, heads, splits, value_dim]
  const float* tops = nullptr;               // m [R, heads, splits]
  const float* sums = nullptr;               // l [R, heads, splits]
  const int* lengths = nullptr;              // [R] keys that the row attends to
  int heads = 0, splits = 0, value_dim = 0;  // splits: room for so many
  int split_length = 1;
};

// Writes planes of R rows, padding included: columns from K on, up to K padded to 32, are zero. A row's planes are
// bitwise the same whatever other rows there are, and the same that a product makes on its own.
// One block a row: the floats are read once, or twice where they are normed.
struct RowPlanesArgs {
  RowSource source;  // not kPlanes
  int rows = 0, columns = 0;
  int planes = 1;
  bool for_transposed = false;  // in the order of rows that enter x W (layout.h)
  ActivationPlanes out;
};
Error LaunchRowPlanes(const RowPlanesArgs& args, Stream stream);

// out[r] = multiplier * W[tokens[r]], W [V, d] packed. A negative token's row is zero.
struct EmbeddingArgs {
  PackedWeights weights;
  const int* tokens = nullptr;  // [R]
  int rows = 0;
  float multiplier = 1;
  float* out = nullptr;  // [R, d]
  int64_t stride = 0;
};
Error LaunchEmbedding(const EmbeddingArgs& args, Stream stream);

}  // namespace c3po::cuda

#endif  // C3PO_SERVER_COMPUTE_CUDA_ROWS_H_
