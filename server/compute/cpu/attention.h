#ifndef C3PO_SERVER_COMPUTE_CPU_ATTENTION_H_
#define C3PO_SERVER_COMPUTE_CPU_ATTENTION_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "server/compute/kv_runs.h"

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

// q [R, heads, head_dim]; keys [kv_heads, slots, head_dim]; values likewise of value_dim; context [R, heads,
// value_dim]. Where a sequence's slots lie changes no result.
void CausalAttention(const HeadShape& shape, absl::Span<const SequenceRuns> sequences, const float* q,
                     const float* keys, const float* values, int64_t slots, float* context);
// Puts the rows' own k [R, kv_heads, head_dim] and v, likewise of value_dim, into their slots.
void StoreKeysAndValues(const HeadShape& shape, absl::Span<const SequenceRuns> sequences, const float* k,
                        const float* v, float* keys, float* values, int64_t slots);

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

// Where the prefixes lie: of case s, keys [kv_heads, prefix_lengths[s], head_dim], and values likewise of value_dim.
struct TreePrefixes {
  std::vector<const float*> keys, values;  // [S]
};

// q [R, heads, head_dim]; k [R, kv_heads, head_dim]; context, v likewise of value_dim; probabilities [R, heads, P + A]:
// prefix, then ancestors in their order.
void TreeAttentionForward(const HeadShape& shape, const TreeRows& tree, const float* q, const float* k, const float* v,
                          const TreePrefixes& prefixes, float* probabilities, float* context);
// dJ/dq, dJ/dk, dJ/dv (overwritten) from dJ/dcontext; the prefix is fixed.
void TreeAttentionBackward(const HeadShape& shape, const TreeRows& tree, const float* dcontext, const float* q,
                           const float* k, const float* v, const TreePrefixes& prefixes, const float* probabilities,
                           float* dq, float* dk, float* dv);

}  // namespace c3po::cpu

#endif  // C3PO_SERVER_COMPUTE_CPU_ATTENTION_H_
