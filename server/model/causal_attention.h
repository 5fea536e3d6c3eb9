#ifndef C3PO_SERVER_MODEL_CAUSAL_ATTENTION_H_
#define C3PO_SERVER_MODEL_CAUSAL_ATTENTION_H_

#include <ATen/core/Tensor.h>

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

// Of packed rows of several sequences, whose own k and v are put into the cache first.
// q [R, heads, head_dim]; k [R, kv_heads, head_dim]; keys [kv_heads, slots, head_dim] of one layer; v, values likewise
// of value_dim.
at::Tensor CachedAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           absl::Span<const cpu::SequenceRows> sequences, const at::Tensor& keys,
                           const at::Tensor& values, const ModelConfig& config);

}  // namespace c3po

#endif  // C3PO_SERVER_MODEL_CAUSAL_ATTENTION_H_
