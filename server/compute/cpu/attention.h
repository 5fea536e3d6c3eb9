#ifndef C3PO_SERVER_COMPUTE_CPU_ATTENTION_H_
#define C3PO_SERVER_COMPUTE_CPU_ATTENTION_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "server/compute/kv_runs.h"
#include "server/compute/matrix.h"

namespace c3po::cpu {

// softmax(scale q k^T) v in float32. Query head h shares key-value head h / (heads / kv_heads). A row's
// result depends on its own query and on what it attends to, not on the rows beside it: bitwise the same in a chunk of
// a prompt and alone. Run on ThreadPool::Shared(), thread-safe, nothing is checked.
//
// Keys and values that are kept, in a cache or of a prefix, are float32 or bfloat16. They are rounded when they are
// stored, and a row reads all of them from there, its own chunk's and its own too: rounded once, whatever the chunk.
// Bfloat16 is widened in registers; products and sums are float32 either way.

struct HeadShape {
  int64_t heads = 0, kv_heads = 0;
  int64_t head_dim = 0;   // of queries and keys
  int64_t value_dim = 0;  // of values and context
  double scale = 1;
};

// Keys [kv_heads, slots, head_dim] and values, likewise of value_dim, of one layer, both of `type`.
struct KvSlots {
  void* keys = nullptr;
  void* values = nullptr;
  ElementType type = ElementType::kFloat32;
  int64_t slots = 0;
};

// q [R, heads, head_dim]; context [R, heads, value_dim]. Where a sequence's slots lie changes no result.
void CausalAttention(const HeadShape& shape, absl::Span<const SequenceRuns> sequences, const float* q,
                     const KvSlots& kv, float* context);
// Puts the rows' own k [R, kv_heads, head_dim] and v, likewise of value_dim, into their slots.
void StoreKeysAndValues(const HeadShape& shape, absl::Span<const SequenceRuns> sequences, const float* k,
                        const float* v, const KvSlots& kv);
// `count` of x, in the type that they are kept in.
void StoreElements(const float* x, int64_t count, ElementType type, void* to);

// Packed rows of several cases: row r of case s attends to the case's prefix and to `ancestors` of r, among them r.
// These are its columns; each row has as many as it needs.
struct TreeRows {
  std::vector<int64_t> case_begin;      // [S + 1] first row of each case
  std::vector<int64_t> prefix_lengths;  // [S]
  std::vector<int64_t> ancestor_begin;  // [R + 1]
  std::vector<int64_t> ancestors;       // packed rows
  std::vector<int64_t> column_begin;    // [R + 1] columns of the rows before

  int64_t rows() const { return case_begin.back(); }
  int64_t columns() const { return column_begin.back(); }  // of all rows
  int64_t ColumnsOf(int64_t row) const { return column_begin[row + 1] - column_begin[row]; }
};

// Where a case's prefix lies: block b of it holds positions from b * block_positions on, keys [kv_heads,
// block_positions, head_dim] and then values likewise of value_dim, of `type`. Where blocks lie changes no result.
struct TreePrefixes {
  int64_t block_positions = 1;
  ElementType type = ElementType::kFloat32;
  std::vector<const void* const*> blocks;  // [S], each as many as its positions fill
};

// q [R, heads, head_dim]; k [R, kv_heads, head_dim]; context, v likewise of value_dim; probabilities [columns() *
// heads]: row by row and head by head the row's columns, prefix first, then ancestors in their order. The rows' own k
// and v are not rounded: their gradients are exact.
void TreeAttentionForward(const HeadShape& shape, const TreeRows& tree, const float* q, const float* k, const float* v,
                          const TreePrefixes& prefixes, float* probabilities, float* context);
// dJ/dq, dJ/dk, dJ/dv (overwritten) from dJ/dcontext; the prefix is fixed.
void TreeAttentionBackward(const HeadShape& shape, const TreeRows& tree, const float* dcontext, const float* q,
                           const float* k, const float* v, const TreePrefixes& prefixes, const float* probabilities,
                           float* dq, float* dk, float* dv);

}  // namespace c3po::cpu

#endif  // C3PO_SERVER_COMPUTE_CPU_ATTENTION_H_
