#ifndef C3PO_SERVER_MODEL_TREE_ATTENTION_H_
#define C3PO_SERVER_MODEL_TREE_ATTENTION_H_

#include <ATen/core/Tensor.h>

#include "absl/types/span.h"
#include "server/model/answer_tree.h"
#include "server/model/cpu/attention.h"
#include "server/model/layer_math.h"
#include "server/model/model_config.h"

namespace c3po {

// Attention of the moving rows of several neighbors at once: row r of case s attends to the case's cached prompt prefix
// and to its own ancestors in the answer tree. Rows are packed [R]; attention works on [S cases, M rows at most, P
// prefix at most] with what is short masked out.
class TreeAttention {
 public:
  // `prefix_lengths[s]` cached positions of case s.
  TreeAttention(absl::Span<const AnswerTree* const> trees, absl::Span<const int> prefix_lengths,
                const ModelConfig& config, at::TensorOptions options);

  int64_t cases() const { return cases_; }
  int64_t prefix_max() const { return prefix_max_; }

  // What the backward pass needs, in the padded layout; G = heads / kv_heads.
  struct Tape {
    at::Tensor q;              // [S, kv_heads, G*M, head_dim]
    at::Tensor k, v;           // [S, kv_heads, M, head_dim and value_dim]
    at::Tensor probabilities;  // [S, kv_heads, G*M, P+M]
    // On the CPU's kernels q, k and v are as in Projections and probabilities [R, heads, P+A], A ancestors at most.
  };
  // prefix_k: [S, kv_heads, P, head_dim], prefix_v likewise of value_dim. Returns the context [R, heads * value_dim];
  // fills `tape` unless null.
  at::Tensor Forward(const Projections& rows, const at::Tensor& prefix_k, const at::Tensor& prefix_v, Tape* tape) const;

  struct Gradients {
    at::Tensor q, k, v;  // as in Projections
  };
  Gradients Backward(const at::Tensor& dcontext, const Tape& tape, const at::Tensor& prefix_k,
                     const at::Tensor& prefix_v) const;

 private:
  // Of any dim, which is that of queries and keys or that of values.
  at::Tensor PadQueries(const at::Tensor& rows) const;  // [R, heads, dim] -> [S, kv_heads, G*M, dim]
  at::Tensor PadKeys(const at::Tensor& rows) const;     // [R, kv_heads, dim] -> [S, kv_heads, M, dim]
  at::Tensor UnpadQueries(const at::Tensor& x) const;   // and back
  at::Tensor UnpadKeys(const at::Tensor& x) const;

  at::Tensor Mask(at::TensorOptions options) const;  // [S, 1, 1, M, P+M]: 0 or -infinity

  at::Tensor slots_;         // int64 [R]: s * M + m of each packed row
  mutable at::Tensor mask_;  // made when it is first wanted; the CPU's kernels never want it
  int64_t cases_, rows_max_ = 0, prefix_max_ = 0;
  int64_t kv_heads_, group_;
  cpu::HeadShape shape_;
  cpu::TreeRows packed_;  // the same without padding
};

}  // namespace c3po

#endif  // C3PO_SERVER_MODEL_TREE_ATTENTION_H_
