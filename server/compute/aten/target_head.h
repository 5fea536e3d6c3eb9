#ifndef C3PO_SERVER_COMPUTE_ATEN_TARGET_HEAD_H_
#define C3PO_SERVER_COMPUTE_ATEN_TARGET_HEAD_H_

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "server/compute/aten/aten_weights.h"
#include "server/model/config/model_config.h"

namespace c3po::aten {

// Where an objective reads the LM head: T target tokens, each after one of its R rows.
struct TargetHead {
  // `lm_head` [V, d]; `tokens` are of the vocabulary. With `targets_only` no other token counts: the softmax is taken
  // over the targets.
  static TargetHead Make(const at::Tensor& lm_head, int64_t row_count, absl::Span<const int64_t> rows,
                         absl::Span<const int64_t> tokens, bool targets_only);

  int64_t row_count = 0;  // R
  at::Tensor weights;     // [W, d]: the LM head, or the rows of it that are read
  at::Tensor rows;        // int64 [T]
  at::Tensor tokens;      // int64 [T], as rows of `weights`

  int64_t targets() const { return rows.size(0); }
};

// The LM head over the last hidden states of several objectives, the rows of one after those of the other: R rows and T
// targets in all. Those that read all of the LM head share one product.

struct TargetHeadTape {
  // Heads with the same weights, their rows one after the other: S in all.
  struct Product {
    std::vector<size_t> heads;
    at::Tensor means;  // float32 [S, d]: of the weights' rows under the softmax
  };
  at::Tensor hidden;
  std::vector<Product> products;
};
// float32 [T]: the targets' log-probabilities in the order of the heads, from hidden [R, d]. `tape`, unless null, is
// filled for TargetHeadsBackward.
at::Tensor RunTargetHeads(absl::Span<const TargetHead* const> heads, const at::Tensor& hidden,
                          const MoeWeights& weights, const ModelConfig& config, TargetHeadTape* tape);
// dJ/dhidden [R, d] from dJ/dlogp of the targets, float32 [T]; reads of the LM head no more than the targets' rows.
at::Tensor TargetHeadsBackward(absl::Span<const TargetHead* const> heads, const TargetHeadTape& tape,
                               const at::Tensor& dlogprobs, const MoeWeights& weights, const ModelConfig& config);

}  // namespace c3po::aten

#endif  // C3PO_SERVER_COMPUTE_ATEN_TARGET_HEAD_H_
