#ifndef C3PO_SERVER_MODEL_TARGET_HEAD_H_
#define C3PO_SERVER_MODEL_TARGET_HEAD_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "server/model/moe_model.h"

namespace c3po {

// Where an objective reads the LM head: T target tokens, each after one of its R rows.
struct TargetHead {
  // `tokens` are of the vocabulary. With `targets_only` no other token counts: the softmax is taken over the targets.
  static TargetHead Make(const MoeModel& model, int64_t row_count, const std::vector<int64_t>& rows,
                         const std::vector<int64_t>& tokens, bool targets_only);

  int64_t row_count = 0;  // R
  at::Tensor weights;     // [W, d]: the LM head, or the rows of it that are read
  at::Tensor rows;        // int64 [T]
  at::Tensor tokens;      // int64 [T], as rows of `weights`
};

// The LM head over the last hidden states of several objectives, forward and backward. Those that read all of it share
// one product. Engine thread only; callers hold a c10::InferenceMode.
class TargetHeadPass {
 public:
  // What `heads` point to outlives the pass. The rows of one follow those of the other.
  TargetHeadPass(const MoeModel& model, std::vector<const TargetHead*> heads);

  // Log-probabilities of each one's targets, from hidden [R, d]. Once.
  std::vector<std::vector<float>> Forward(const at::Tensor& hidden, bool with_gradient);
  // dJ/dhidden [R, d] from dJ/dlogp of the targets. Once, after a Forward with gradient; reads of the LM head no more
  // than the targets' rows.
  at::Tensor Backward(const std::vector<std::vector<float>>& dlogprobs);

 private:
  // Heads with the same weights, their rows one after the other: S in all.
  struct Product {
    std::vector<size_t> heads;
    at::Tensor tops;   // float32 [S], the largest logit of each row
    at::Tensor sums;   // float64 [S]: sum of exp(logit - top)
    at::Tensor means;  // float32 [S, d], with a gradient: of the weights' rows under the softmax
  };

  at::Tensor Slice(const at::Tensor& x, size_t head) const {
    return x.narrow(0, first_row_[head], heads_[head]->row_count);
  }
  at::Tensor RowsOfProduct(const Product& product, const at::Tensor& normed) const;
  // Fills the product's softmax. Returns its logits, unless they were not kept.
  at::Tensor RunProduct(Product& product, const at::Tensor& x, bool with_gradient) const;
  at::Tensor TargetLogits(const TargetHead& head, const at::Tensor& x) const;

  const MoeModel& model_;
  const std::vector<const TargetHead*> heads_;
  std::vector<int64_t> first_row_;
  at::Tensor hidden_;
  std::vector<Product> products_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_MODEL_TARGET_HEAD_H_
