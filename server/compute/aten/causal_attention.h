#ifndef C3PO_SERVER_COMPUTE_ATEN_CAUSAL_ATTENTION_H_
#define C3PO_SERVER_COMPUTE_ATEN_CAUSAL_ATTENTION_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "server/compute/kv_runs.h"
#include "server/model/config/model_config.h"

namespace c3po::aten {

// softmax(attention_scale q k^T) v of rows that attend to their own and all earlier positions of their sequence.

// Of consecutive rows of one sequence: row i attends to positions [0, start + i].
// q [rows, heads, head_dim]; keys [kv_heads, at least start + rows, head_dim], values likewise of value_dim, the rows'
// own among them. Returns [rows, heads * value_dim].
at::Tensor CausalAttention(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& values, int64_t start,
                           const ModelConfig& config);

// The rows of a matrix, of several sequences, and how their keys and values are found in a cache, on its device; made
// once for all layers.
struct CachedRows {
  // Sequences of one row each, a decode step's, that attend in one product; together at most slots_max slots, padding
  // included, or one sequence.
  struct Singles {
    at::Tensor rows;   // int64 [S] of the matrix
    at::Tensor slots;  // int64 [S * length], padded with the sequence's first
    at::Tensor mask;   // float32 [S, 1, length]: 0, and -infinity where padded
    int64_t length = 0;
  };
  // `sequences` have each of the matrix's rows once; what they point to outlives the result.
  static CachedRows Make(absl::Span<const SequenceRuns> sequences, at::Device device, int64_t slots_max = 1 << 16);

  std::vector<SequenceRuns> sequences;
  at::Tensor slots;                // int64 [R] of the rows' own keys
  std::vector<Singles> singles;    // Ascending by length.
  std::vector<size_t> of_several;  // Sequences of several rows.
};

// Of a matrix's rows, whose own k and v are put into the cache first, rounded to its type, which may be another than
// theirs.
// q [R, heads, head_dim]; k [R, kv_heads, head_dim]; keys [kv_heads, slots, head_dim] of one layer; v, values likewise
// of value_dim. Returns [R, heads * value_dim].
at::Tensor CachedAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const CachedRows& rows,
                           const at::Tensor& keys, const at::Tensor& values, const ModelConfig& config);

}  // namespace c3po::aten

#endif  // C3PO_SERVER_COMPUTE_ATEN_CAUSAL_ATTENTION_H_
