#ifndef C3PO_SERVER_COMPUTE_CUDA_HEAD_ROWS_H_
#define C3PO_SERVER_COMPUTE_CUDA_HEAD_ROWS_H_

#include <cstdint>

#include "server/compute/cuda/layout.h"

// What the kernels of attention are told about heads. All pointers are of the device. Plain structs: they travel in
// kernel arguments.
namespace c3po::cuda {

enum class HeadNorm : int32_t {
  kNone,
  kWhole,    // RmsNorm over all heads of a row, before it is cut
  kPerHead,  // over each head's entries
};

// From a row's projected heads to those that attend:
//   queries and keys: RmsNorm (x rsqrt(mean(x^2) + eps) * weight) -> clamp to [-clip, clip] -> rotate
//   values: clamp
// Rotation turns the last rope_dim entries of a head: halves (a, b) become (a cos - b sin, b cos + a sin).
// What is not a number stays so.
struct HeadTransform {
  int32_t heads = 0, kv_heads = 0;      // kv_heads divides heads
  int32_t head_dim = 0, value_dim = 0;  // at most 256 each
  int32_t rope_dim = 0;                 // even, at most head_dim
  HeadNorm norm = HeadNorm::kNone;
  float eps = 0;
  float clip = __builtin_inff();
  const float* q_norm = nullptr;  // [heads * head_dim] if kWhole, [head_dim] if kPerHead
  const float* k_norm = nullptr;  // [kv_heads * head_dim] or [head_dim]
  const float* cos = nullptr;     // [positions, rope_dim / 2] each
  const float* sin = nullptr;
};

// Where the rows' projected heads lie, float32. Head h of row r is at base + r * stride + h * head_stride. A query's
// heads are packed. Where `shared_key` is given, it holds the last rope_dim entries of all heads' keys (latent
// attention), and `k` only those before.
struct HeadSource {
  const float* q = nullptr;
  const float* k = nullptr;
  const float* v = nullptr;
  const float* shared_key = nullptr;  // row r at shared_key + r * shared_stride
  int64_t q_stride = 0, k_stride = 0, v_stride = 0, shared_stride = 0;
  int32_t k_head_stride = 0, v_head_stride = 0;
};

// One layer of the paged cache: keys [blocks, kv_heads, block_positions, key width], values likewise. bfloat16 or
// float32, as the kernel's planes say. A width is head_dim or value_dim rounded up to 8; the entries between are 0.
struct KvLayer {
  void* keys = nullptr;
  void* values = nullptr;
  int32_t block_positions = 0;
};

// The entries that a head takes in the cache.
constexpr int32_t CacheWidth(int32_t dim) { return (dim + 7) / 8 * 8; }

// One row of a step.
struct AttentionRow {
  int32_t sequence = -1;  // -1: padding, of which nothing is computed
  int32_t position = 0;   // It attends to [0, position].
};

// Where a sequence's positions lie, as KvBlocks has it: [0, beginning_positions) in the blocks that tables[beginning],
// tables[beginning + 1] ... name, the others in those of tables[own] ..., from the first position of the first.
struct AttentionSequence {
  int32_t beginning_positions = 0;
  int32_t beginning = 0;
  int32_t own = 0;
};

}  // namespace c3po::cuda

#endif  // C3PO_SERVER_COMPUTE_CUDA_HEAD_ROWS_H_
