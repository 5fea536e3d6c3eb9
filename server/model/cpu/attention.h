#ifndef C3PO_SERVER_MODEL_CPU_ATTENTION_H_
#define C3PO_SERVER_MODEL_CPU_ATTENTION_H_

#include <cstdint>
#include <vector>

namespace c3po::cpu {

// softmax(scale q k^T) v in float32. Query head h shares key-value head h / (heads / kv_heads). A row's
// result depends on its own query and on what it attends to, not on the rows beside it: bitwise the same in a chunk of
// a prompt and alone. Run on ThreadPool::Shared(), thread-safe, nothing is checked.

struct HeadShape {
  int64_t heads = 0, kv_heads = 0;
  int64_t head_dim = 0;   // of queries and keys
  int64_t value_dim = 0;  // of values and context
  double scale = 1;
};

// Rows of one sequence: row i attends to positions [0, start + i] of the cache.
// q [rows, heads, head_dim]; keys, values: head g at g * capacity positions, which are head_dim, value_dim apart;
// context [rows, heads, value_dim].
void CausalAttention(const HeadShape& shape, const float* q, int64_t rows, int64_t start, const float* keys,
                     const float* values, int64_t capacity, float* context);

// Packed rows of several cases: row r of case s attends to the case's prefix and to `ancestors` of r, among them r.
struct TreeRows {
  std::vector<int64_t> case_begin;      // [S + 1] first row of each case
  std::vector<int64_t> prefix_lengths;  // [S]
  int64_t prefix_max = 0;               // P
  std::vector<int64_t> ancestor_begin;  // [R + 1]
  std::vector<int64_t> ancestors;       // packed rows
  int64_t ancestors_max = 0;            // A

  int64_t rows() const { return case_begin.back(); }
  int64_t width() const { return prefix_max + ancestors_max; }
};

// q [R, heads, head_dim]; k [R, kv_heads, head_dim]; prefix_k [S, kv_heads, P, head_dim]; context, v, prefix_v likewise
// of value_dim; probabilities [R, heads, P + A]: prefix, then ancestors in their order.
void TreeAttentionForward(const HeadShape& shape, const TreeRows& tree, const float* q, const float* k, const float* v,
                          const float* prefix_k, const float* prefix_v, float* probabilities, float* context);
// dJ/dq, dJ/dk, dJ/dv (overwritten) from dJ/dcontext; the prefix is fixed.
void TreeAttentionBackward(const HeadShape& shape, const TreeRows& tree, const float* dcontext, const float* q,
                           const float* k, const float* v, const float* prefix_k, const float* prefix_v,
                           const float* probabilities, float* dq, float* dk, float* dv);

}  // namespace c3po::cpu

#endif  // C3PO_SERVER_MODEL_CPU_ATTENTION_H_
