#include "server/model/target_head.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>

#include "server/model/cpu/panels.h"
#include "server/model/cpu/softmax_mean.h"
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
  return {row_count, SelectRows(whole, LongTensor(read, whole.device())), row_ids, LongTensor(slots, whole.device())};
}

TargetHeadPass::TargetHeadPass(const MoeModel& model, std::vector<const TargetHead*> heads)
    : model_(model), heads_(std::move(heads)) {
  int64_t row = 0;
  for (size_t i = 0; i < heads_.size(); ++i) {
    first_row_.push_back(row);
    row += heads_[i]->row_count;
    const auto same = [&](const Product& p) { return heads_[p.heads.front()]->weights.is_same(heads_[i]->weights); };
    const auto found = std::find_if(products_.begin(), products_.end(), same);
    if (found != products_.end()) {
      found->heads.push_back(i);
    } else {
      products_.push_back({{i}, {}, {}, {}});
    }
  }
}

std::vector<std::vector<float>> TargetHeadPass::Forward(const at::Tensor& hidden, bool with_gradient) {
  hidden_ = hidden;
  const at::Tensor normed = RmsNorm(hidden, model_.weights().final_norm, model_.config().rms_norm_eps);
  std::vector<std::vector<float>> logprobs(heads_.size());
  for (Product& product : products_) {
    const at::Tensor x = RowsOfProduct(product, normed), logits = RunProduct(product, x, with_gradient);
    int64_t row = 0;
    for (size_t i : product.heads) {
      const TargetHead& head = *heads_[i];
      const auto own = [&](const at::Tensor& all) { return all.narrow(0, row, head.row_count); };
      const at::Tensor targets =
          logits.defined() ? own(logits).index({head.rows, head.tokens}) : TargetLogits(head, own(x));
      const at::Tensor above = targets - own(product.tops).index_select(0, head.rows);
      logprobs[i] = ToFloats(above.to(at::kDouble) - own(product.sums).log().index_select(0, head.rows));
      row += head.row_count;
    }
  }
  return logprobs;
}

at::Tensor TargetHeadPass::RowsOfProduct(const Product& product, const at::Tensor& normed) const {
  std::vector<at::Tensor> rows;
  for (size_t i : product.heads) rows.push_back(Slice(normed, i));
  return rows.size() == 1 ? rows[0] : at::cat(rows);
}

at::Tensor TargetHeadPass::RunProduct(Product& product, const at::Tensor& x, bool with_gradient) const {
  const at::Tensor& weights = heads_[product.heads.front()]->weights;
  const double divisor = model_.config().logits_divisor;
  if (OnCpuKernels(x)) {
    product.tops = at::empty({x.size(0)}, at::kFloat);
    product.sums = at::empty({x.size(0)}, at::kDouble);
    if (with_gradient) product.means = at::empty({x.size(0), weights.size(1)}, at::kFloat);
    cpu::SoftmaxMean(RowsOf(x), WeightsOf(weights), static_cast<float>(divisor), product.tops.mutable_data_ptr<float>(),
                     product.sums.mutable_data_ptr<double>(),
                     with_gradient ? product.means.mutable_data_ptr<float>() : nullptr);
    return {};
  }
  const at::Tensor logits = MatMulTransposed(x, weights).to(at::kFloat).div(divisor);
  product.tops = std::get<0>(logits.max(-1));
  const at::Tensor exponentials = at::exp(logits - product.tops.unsqueeze(1));
  product.sums = exponentials.sum(-1, false, at::kDouble);
  if (with_gradient) {
    const at::Tensor probabilities = exponentials.div(product.sums.to(at::kFloat).unsqueeze(1));
    product.means = MatMul(probabilities.to(x.scalar_type()), weights).to(at::kFloat);
  }
  return logits;
}

// On the CPU, x [R, d]: the same sums as in the softmax.
at::Tensor TargetHeadPass::TargetLogits(const TargetHead& head, const at::Tensor& x) const {
  const int64_t targets = head.rows.size(0);
  const at::Tensor logits = at::empty({targets}, at::kFloat);
  const int64_t *rows = head.rows.const_data_ptr<int64_t>(), *tokens = head.tokens.const_data_ptr<int64_t>();
  const cpu::WeightView weights = WeightsOf(head.weights);
  const int64_t unit = weights.in_panels() ? cpu::kPanelRows : 1;  // Rows that are read together.
  std::vector<float> together(static_cast<size_t>(unit));
  for (int64_t t = 0; t < targets; ++t) {
    const int64_t first = tokens[t] / unit * unit;
    cpu::MultiplyTransposedHere(
        {RowsOf(x.narrow(0, rows[t], 1)), weights.Rows(first, first + unit), {together.data(), unit, nullptr}});
    logits.mutable_data_ptr<float>()[t] = together[tokens[t] - first];
  }
  return logits.div_(model_.config().logits_divisor);
}

// d log p[y] / dx = (W[y] - means) / divisor, summed over a row's targets.
at::Tensor TargetHeadPass::Backward(const std::vector<std::vector<float>>& dlogprobs) {
  const at::Tensor dnormed = at::empty_like(hidden_);
  for (const Product& product : products_) {
    int64_t row = 0;
    for (size_t i : product.heads) {
      const TargetHead& head = *heads_[i];
      const at::Tensor coefficients = at::tensor(at::ArrayRef<float>(dlogprobs[i]), at::kFloat).to(hidden_.device());
      const at::Tensor totals =
          at::zeros({head.row_count}, coefficients.options()).index_add_(0, head.rows, coefficients);
      at::Tensor dx = product.means.narrow(0, row, head.row_count) * totals.neg().unsqueeze(1);
      const at::Tensor targets = SelectRows(head.weights, head.tokens).to(at::kFloat);
      dx.index_add_(0, head.rows, targets * coefficients.unsqueeze(1)).div_(model_.config().logits_divisor);
      Slice(dnormed, i).copy_(dx);
      row += head.row_count;
    }
  }
  return RmsNormBackward(dnormed, hidden_, model_.weights().final_norm, model_.config().rms_norm_eps);
}

}  // namespace c3po
