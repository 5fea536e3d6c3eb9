#ifndef C3PO_SERVER_COMPUTE_ATEN_PADDED_TREES_H_
#define C3PO_SERVER_COMPUTE_ATEN_PADDED_TREES_H_

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "server/compute/aten/projections.h"
#include "server/compute/backend.h"
#include "server/model/config/model_config.h"

namespace c3po::aten {

// Which trees attend in one product: a group's padded rows, columns and pairs of both are each at most 3/2 of what its
// trees have themselves, so that a short one never takes the room of a long one. Every tree is in one group; a group's
// are in their order.
std::vector<std::vector<size_t>> GroupTrees(absl::Span<const TreeShape> trees);

// Attention of several trees' rows at once: row r of case s attends to the keys and values of the prompt before its
// tree, to its own ancestors and to itself. Rows are packed [R]; attention works on [S cases, M rows at most, P prefix
// at most] with what is short masked out. Only the mask stays; what else is padded goes when a call returns.
class PaddedTrees {
 public:
  // `options`: of the activations.
  PaddedTrees(absl::Span<const TreeShape> trees, const ModelConfig& config, at::TensorOptions options);

  int64_t cases() const { return cases_; }
  int64_t rows() const { return slots_.size(0); }
  int64_t prefix_max() const { return prefix_max_; }

  // prefix_k: [S, kv_heads, P, head_dim], prefix_v likewise of value_dim. Returns the context [R, heads * value_dim].
  at::Tensor Forward(const Projections& rows, const at::Tensor& prefix_k, const at::Tensor& prefix_v) const;

  struct Gradients {
    at::Tensor q, k, v;  // as in Projections
  };
  // Of what Forward was given. The probabilities are computed anew: the rows and the cells of a product cost less to
  // compute twice than to keep, padded, in every layer.
  Gradients Backward(const at::Tensor& dcontext, const Projections& rows, const at::Tensor& prefix_k,
                     const at::Tensor& prefix_v) const;

 private:
  // In the padded layout; G = heads / kv_heads.
  struct Padded {
    at::Tensor q;              // [S, kv_heads, G*M, head_dim]
    at::Tensor keys, values;   // [S, kv_heads, P+M, head_dim and value_dim]
    at::Tensor probabilities;  // [S, kv_heads, G*M, P+M]
  };
  Padded Attend(const Projections& rows, const at::Tensor& prefix_k, const at::Tensor& prefix_v) const;
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
