#ifndef C3PO_SERVER_MODEL_CAUSAL_ATTENTION_H_
#define C3PO_SERVER_MODEL_CAUSAL_ATTENTION_H_

#include <ATen/core/Tensor.h>

#include "server/model/model_config.h"

namespace c3po {

// softmax(attention_scale q k^T) v of consecutive rows of one sequence: row i attends to positions [0, start + i].
// q [rows, heads, head_dim]; keys [kv_heads, at least start + rows, head_dim], values likewise of value_dim, the rows'
// own among them. Returns [rows, heads * value_dim]. On the CPU a row's result is bitwise the same however the sequence
// is cut into chunks.
at::Tensor CausalAttention(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& values, int64_t start,
                           const ModelConfig& config);

}  // namespace c3po

#endif  // C3PO_SERVER_MODEL_CAUSAL_ATTENTION_H_
