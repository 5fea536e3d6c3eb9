#ifndef C3PO_SERVER_COMPUTE_ATEN_PADDED_TREES_H_
#define C3PO_SERVER_COMPUTE_ATEN_PADDED_TREES_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "absl/types/span.h"
#include "server/compute/aten/projections.h"
#include "server/compute/backend.h"
#include "server/model/config/model_config.h"

namespace c3po::aten {

// Attention of several trees' rows at once: row r of case s attends to the keys and values of the prompt before its
// tree, to its own ancestors and to itself. Rows are packed [R]; attention works on [S cases, M rows at most, P prefix
// at most] with what is short masked out.
class PaddedTrees {
 public:
  // `options`: of the activations.
  PaddedTrees(absl::Span<const TreeShape> trees, const ModelConfig& config, at::TensorOptions options);

  int64_t cases() const { return cases_; }
  int64_t rows() const { return slots_.size(0); }
  int64_t prefix_max() const { return prefix_max_; }

  // What the backward pass needs, in the padded layout; G = heads / kv_heads.
  struct Tape {
    at::Tensor q;              // [S, kv_heads, G*M, head_dim]
    at::Tensor k, v;           // [S, kv_heads, M, head_dim and value_dim]
    at::Tensor probabilities;  // [S, kv_heads, G*M, P+M]
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
  at::Tensor MakeMask(absl::Span<const TreeShape> trees) const;  // on the host
  // Of any dim, which is that of queries and keys or that of values.
  at::Tensor PadQueries(const at::Tensor& rows) const;  // [R, heads, dim] -> [S, kv_heads, G*M, dim]
  at::Tensor PadKeys(const at::Tensor& rows) const;     // [R, kv_heads, dim] -> [S, kv_heads, M, dim]
  at::Tensor UnpadQueries(const at::Tensor& x) const;   // and back
  at::Tensor UnpadKeys(const at::Tensor& x) const;

  int64_t cases_, rows_max_ = 0, prefix_max_ = 0;
  int64_t kv_heads_, group_, context_width_;
  double scale_;
  at::Tensor slots_;  // int64 [R]: s * M + m of each packed row
  at::Tensor mask_;   // [S, 1, 1, M, P+M]: 0 or -infinity
};

}  // namespace c3po::aten

#endif  // C3PO_SERVER_COMPUTE_ATEN_PADDED_TREES_H_
