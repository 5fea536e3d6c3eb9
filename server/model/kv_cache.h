#ifndef C3PO_SERVER_MODEL_KV_CACHE_H_
#define C3PO_SERVER_MODEL_KV_CACHE_H_

#include <ATen/core/Tensor.h>

#include "server/types/model_runner.h"

namespace c3po {

// Keys (after rotation) and values of one sequence, in the model's dtype.
struct KvCache final : public SequenceCache {
  at::Tensor keys;    // [layers, kv_heads, capacity, head_dim]
  at::Tensor values;  // likewise of value_dim
  int capacity = 0;

  // Running sum of the prompt's states entering the first critical layer, for PromptCapture::mean_hidden.
  at::Tensor hidden_sum;  // float32 [d], undefined before the first chunk
  int64_t hidden_count = 0;

  int64_t bytes() const override { return static_cast<int64_t>(keys.nbytes() + values.nbytes()); }
};

}  // namespace c3po

#endif  // C3PO_SERVER_MODEL_KV_CACHE_H_
