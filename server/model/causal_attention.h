#ifndef C3PO_SERVER_MODEL_CAUSAL_ATTENTION_H_
#define C3PO_SERVER_MODEL_CAUSAL_ATTENTION_H_

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "server/model/cpu/attention.h"
#include "server/model/model_config.h"

namespace c3po {

// softmax(attention_scale q k^T) v of rows that attend to their own and all earlier positions of their sequence. On the
// CPU a row's result is bitwise the same however its sequence is cut into chunks, whatever other sequences are in the
// batch, and wherever the keys lie.

// Of consecutive rows of one sequence: row i attends to positions [0, start + i].
// q [rows, heads, head_dim]; keys [kv_heads, at least start + rows, head_dim], values likewise of value_dim, the rows'
// own among them. Returns [rows, heads * value_dim].
at::Tensor CausalAttention(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& values, int64_t start,
                           const ModelConfig& config);

// Packed rows of several sequences, and what ATen needs to find their keys and values in a cache, on its device; made
// once for all layers. The CPU's kernels read the sequences alone.
struct CachedRows {
  // Sequences of one row each, a decode step's, that attend in one product; together at most slots_max slots, padding
  // included, or one sequence.
  struct Singles {
    at::Tensor rows;   // int64 [S] of the packed matrix
    at::Tensor slots;  // int64 [S * length], padded with the sequence's first
    at::Tensor mask;   // float32 [S, 1, length]: 0, and -infinity where padded
    int64_t length = 0;
  };
  // `device`: the cache's, where ATen computes; nullopt: the CPU's kernels do.
  static CachedRows Make(std::vector<cpu::SequenceRows> sequences, std::optional<at::Device> device,
                         int64_t slots_max = 1 << 16);

  std::vector<cpu::SequenceRows> sequences;
  at::Tensor slots;                // int64 [R] of the rows' own keys
  std::vector<Singles> singles;    // Ascending by length.
  std::vector<size_t> of_several;  // Sequences of several rows.
};

// Of packed rows, whose own k and v are put into the cache first.
// q [R, heads, head_dim]; k [R, kv_heads, head_dim]; keys [kv_heads, slots, head_dim] of one layer; v, values likewise
// of value_dim.
at::Tensor CachedAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const CachedRows& rows,
                           const at::Tensor& keys, const at::Tensor& values, const ModelConfig& config);

}  // namespace c3po

#endif  // C3PO_SERVER_MODEL_CAUSAL_ATTENTION_H_
