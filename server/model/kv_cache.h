#ifndef C3PO_SERVER_MODEL_KV_CACHE_H_
#define C3PO_SERVER_MODEL_KV_CACHE_H_

#include <ATen/core/Tensor.h>

namespace c3po {

// Keys (after rotation) and values of all sequences, in the activations' dtype. Which slot belongs to whom is the
// scheduler's to know (KvRun); untouched slots of a CPU's cache cost no memory.
struct KvCache {
  at::Tensor keys;    // [layers, kv_heads, slots, head_dim]
  at::Tensor values;  // likewise of value_dim
  int64_t slots = 0;
};

}  // namespace c3po

#endif  // C3PO_SERVER_MODEL_KV_CACHE_H_
