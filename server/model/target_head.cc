#include "server/model/target_head.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>

#include "server/model/cpu/row_operations.h"
#include "server/model/cpu/thread_pool.h"
#include "server/model/layer_math.h"
#include "server/model/matrix_product.h"

namespace c3po {
namespace {

at::Tensor LongTensor(const std::vector<int64_t>& values, at::Device device) {
  return at::tensor(values, at::kLong).to(device);
}

}  // namespace

TargetHead TargetHead::Make(const MoeModel& model, int64_t row_count, const std::vector<int64_t>& rows,
                            const std::vector<int64_t>& tokens, bool targets_only) {
  const at::Tensor& whole = model.weights().lm_head;
  const at::Tensor row_ids = LongTensor(rows, whole.device());
  if (!targets_only) return {row_count, whole, row_ids, LongTensor(tokens, whole.device())};
  std::vector<int64_t> read = tokens, slots;
  std::sort(read.begin(), read.end());
  read.erase(std::unique(read.begin(), read.end()), read.end());
  for (int64_t token : tokens) slots.push_back(std::lower_bound(read.begin(), read.end(), token) - read.begin());
  return {row_count, whole.index_select(0, LongTensor(read, whole.device())), row_ids,
          LongTensor(slots, whole.device())};
}

TargetHeadPass::TargetHeadPass(const MoeModel& model, std::vector<const TargetHead*> heads)
    : model_(model), heads_(std::move(heads)), softmaxes_(heads_.size()) {
  int64_t row = 0;
  for (size_t i = 0; i < heads_.size(); ++i) {
    first_row_.push_back(row);
    row += heads_[i]->row_count;
    const auto same = [&](const Product& p) { return heads_[p.heads.front()]->weights.is_same(heads_[i]->weights); };
    const auto found = std::find_if(products_.begin(), products_.end(), same);
    if (found != products_.end()) {
      found->heads.push_back(i);
    } else {
      products_.push_back({{i}, {}});
    }
  }
}

std::vector<std::vector<float>> TargetHeadPass::Forward(const at::Tensor& hidden) {
  hidden_ = hidden;
  const at::Tensor normed = RmsNorm(hidden, model_.weights().final_norm, model_.config().rms_norm_eps);
  for (Product& product : products_) Multiply(product, normed);
  std::vector<std::vector<float>> logprobs;
  for (size_t i = 0; i < heads_.size(); ++i) logprobs.push_back(ReadTargets(*heads_[i], softmaxes_[i]));
  return logprobs;
}

void TargetHeadPass::Multiply(Product& product, const at::Tensor& normed) {
  std::vector<at::Tensor> rows;
  for (size_t i : product.heads) rows.push_back(Slice(normed, i));
  product.logits =
      MatMulTransposed(rows.size() == 1 ? rows[0] : at::cat(rows), heads_[product.heads[0]]->weights).to(at::kFloat);
  if (model_.config().logits_divisor != 1) product.logits.div_(model_.config().logits_divisor);
  int64_t row = 0;
  for (size_t i : product.heads) {
    softmaxes_[i].logits = product.logits.narrow(0, row, heads_[i]->row_count);
    row += heads_[i]->row_count;
  }
}

std::vector<float> TargetHeadPass::ReadTargets(const TargetHead& head, Softmax& softmax) {
  const at::Tensor& all = softmax.logits;
  if (OnCpuKernels(all)) {
    softmax.tops = at::empty({head.row_count}, at::kFloat);
    softmax.sums = at::empty({head.row_count}, at::kDouble);
    const int64_t width = all.size(1);
    const float* logits = all.const_data_ptr<float>();
    float* tops = softmax.tops.mutable_data_ptr<float>();
    double* sums = softmax.sums.mutable_data_ptr<double>();
    cpu::ParallelFor(head.row_count, width < 4096 ? head.row_count : 1, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) sums[r] = cpu::SumOfExp(logits + r * width, width, &tops[r]);
    });
  } else {
    softmax.tops = std::get<0>(all.max(-1));
    softmax.sums = at::exp(all - softmax.tops.unsqueeze(1)).sum(-1, false, at::kDouble);
  }
  const at::Tensor above = all.index({head.rows, head.tokens}) - softmax.tops.index_select(0, head.rows);
  return ToFloats(above.to(at::kDouble) - softmax.sums.log().index_select(0, head.rows));
}

// dlogits of a row = sum over its targets of dJ/dlogp * (onehot - p), written over the logits.
void TargetHeadPass::WriteGradient(const TargetHead& head, const std::vector<float>& dlogprobs,
                                   Softmax& softmax) const {
  const at::Tensor& all = softmax.logits;
  const at::Tensor coefficients = at::tensor(at::ArrayRef<float>(dlogprobs), at::kFloat).to(all.device());
  const at::Tensor row_sums =
      at::zeros({head.row_count}, coefficients.options()).index_add_(0, head.rows, coefficients);
  if (OnCpuKernels(all)) {
    const int64_t width = all.size(1);
    float* logits = all.mutable_data_ptr<float>();
    const float *tops = softmax.tops.const_data_ptr<float>(), *totals = row_sums.const_data_ptr<float>();
    const double* sums = softmax.sums.const_data_ptr<double>();
    cpu::ParallelFor(head.row_count, width < 4096 ? head.row_count : 1, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        cpu::ScaledExpInPlace(logits + r * width, width, tops[r], static_cast<float>(-totals[r] / sums[r]));
      }
    });
  } else {
    all.sub_(softmax.tops.unsqueeze(1)).exp_().mul_((-row_sums / softmax.sums).to(at::kFloat).unsqueeze(1));
  }
  all.index_put_({head.rows, head.tokens}, coefficients, /*accumulate=*/true);
  if (model_.config().logits_divisor != 1) all.div_(model_.config().logits_divisor);
}

at::Tensor TargetHeadPass::Backward(const std::vector<std::vector<float>>& dlogprobs) {
  for (size_t i = 0; i < heads_.size(); ++i) WriteGradient(*heads_[i], dlogprobs[i], softmaxes_[i]);
  const at::Tensor dnormed = at::empty_like(hidden_);
  for (const Product& product : products_) {
    const at::Tensor rows = MatMul(product.logits.to(hidden_.scalar_type()), heads_[product.heads.front()]->weights);
    int64_t row = 0;
    for (size_t i : product.heads) {
      Slice(dnormed, i).copy_(rows.narrow(0, row, heads_[i]->row_count));
      row += heads_[i]->row_count;
    }
  }
  return RmsNormBackward(dnormed, hidden_, model_.weights().final_norm, model_.config().rms_norm_eps);
}

}  // namespace c3po
