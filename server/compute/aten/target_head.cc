#include "server/compute/aten/target_head.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <tuple>
#include <utility>

#include "server/compute/aten/matrix_tensors.h"
#include "server/compute/aten/products.h"
#include "server/compute/aten/row_operations.h"

namespace c3po::aten {
namespace {

using Product = TargetHeadTape::Product;

std::vector<Product> ProductsOf(absl::Span<const TargetHead* const> heads) {
  std::vector<Product> products;
  for (size_t i = 0; i < heads.size(); ++i) {
    const auto same = [&](const Product& p) { return heads[p.heads.front()]->weights.is_same(heads[i]->weights); };
    const auto found = std::find_if(products.begin(), products.end(), same);
    if (found != products.end()) {
      found->heads.push_back(i);
    } else {
      products.push_back({{i}, {}});
    }
  }
  return products;
}

// Each head's rows of x [R, ...], and its targets of [T]: views.
std::vector<at::Tensor> SplitRows(absl::Span<const TargetHead* const> heads, const at::Tensor& x) {
  std::vector<at::Tensor> parts;
  int64_t row = 0;
  for (const TargetHead* head : heads) {
    parts.push_back(x.narrow(0, row, head->row_count));
    row += head->row_count;
  }
  TORCH_CHECK(row == x.size(0), "the targets are of another number of rows");
  return parts;
}
std::vector<at::Tensor> SplitTargets(absl::Span<const TargetHead* const> heads, const at::Tensor& x) {
  std::vector<at::Tensor> parts;
  int64_t target = 0;
  for (const TargetHead* head : heads) {
    parts.push_back(x.narrow(0, target, head->targets()));
    target += head->targets();
  }
  TORCH_CHECK(target == x.size(0), "one derivative per target is needed");
  return parts;
}

struct Softmax {
  at::Tensor logits;  // float32 [S, W]
  at::Tensor tops;    // float32 [S], the largest logit of each row
  at::Tensor sums;    // float64 [S]: sum of exp(logit - top)
};

// Of x [S, d]. Fills `means` unless null.
Softmax RunProduct(const at::Tensor& x, const at::Tensor& weights, double divisor, at::Tensor* means) {
  Softmax result;
  result.logits = MatMulTransposed(x, weights).to(at::kFloat).div(divisor);
  result.tops = std::get<0>(result.logits.max(-1));
  const at::Tensor exponentials = at::exp(result.logits - result.tops.unsqueeze(1));
  result.sums = exponentials.sum(-1, false, at::kDouble);
  if (means) {
    const at::Tensor probabilities = exponentials.div(result.sums.to(at::kFloat).unsqueeze(1));
    *means = MatMul(probabilities.to(x.scalar_type()), weights).to(at::kFloat);
  }
  return result;
}

}  // namespace

TargetHead TargetHead::Make(const at::Tensor& lm_head, int64_t row_count, absl::Span<const int64_t> rows,
                            absl::Span<const int64_t> tokens, bool targets_only) {
  TORCH_CHECK(rows.size() == tokens.size(), "each target has one row and one token");
  const at::Device device = lm_head.device();
  const at::Tensor row_ids = Upload(rows, device);
  if (!targets_only) return {row_count, lm_head, row_ids, Upload(tokens, device)};
  std::vector<int64_t> read(tokens.begin(), tokens.end()), slots;
  std::sort(read.begin(), read.end());
  read.erase(std::unique(read.begin(), read.end()), read.end());
  for (int64_t token : tokens) slots.push_back(std::lower_bound(read.begin(), read.end(), token) - read.begin());
  return {row_count, lm_head.index_select(0, Upload(read, device)), row_ids, Upload(slots, device)};
}

at::Tensor RunTargetHeads(absl::Span<const TargetHead* const> heads, const at::Tensor& hidden,
                          const MoeWeights& weights, const ModelConfig& config, TargetHeadTape* tape) {
  const std::vector<at::Tensor> normed = SplitRows(heads, RmsNorm(hidden, weights.final_norm, config.rms_norm_eps));
  std::vector<Product> products = ProductsOf(heads);
  std::vector<at::Tensor> logprobs(heads.size());
  for (Product& product : products) {
    std::vector<at::Tensor> rows;
    for (size_t i : product.heads) rows.push_back(normed[i]);
    const Softmax softmax = RunProduct(Join(rows), heads[product.heads.front()]->weights, config.logits_divisor,
                                       tape ? &product.means : nullptr);
    int64_t row = 0;
    for (size_t i : product.heads) {
      const TargetHead& head = *heads[i];
      const auto own = [&](const at::Tensor& all) { return all.narrow(0, row, head.row_count); };
      const at::Tensor targets = own(softmax.logits).index({head.rows, head.tokens});
      const at::Tensor above = targets - own(softmax.tops).index_select(0, head.rows);
      logprobs[i] = (above.to(at::kDouble) - own(softmax.sums).log().index_select(0, head.rows)).to(at::kFloat);
      row += head.row_count;
    }
  }
  if (tape) *tape = {hidden, std::move(products)};
  return Join(logprobs);
}

// d log p[y] / dx = (W[y] - means) / divisor, summed over a row's targets.
at::Tensor TargetHeadsBackward(absl::Span<const TargetHead* const> heads, const TargetHeadTape& tape,
                               const at::Tensor& dlogprobs, const MoeWeights& weights, const ModelConfig& config) {
  const at::Tensor dnormed = at::empty_like(tape.hidden);
  const std::vector<at::Tensor> own_dnormed = SplitRows(heads, dnormed), coefficients = SplitTargets(heads, dlogprobs);
  for (const Product& product : tape.products) {
    int64_t row = 0;
    for (size_t i : product.heads) {
      const TargetHead& head = *heads[i];
      const at::Tensor totals =
          at::zeros({head.row_count}, coefficients[i].options()).index_add_(0, head.rows, coefficients[i]);
      at::Tensor dx = product.means.narrow(0, row, head.row_count) * totals.neg().unsqueeze(1);
      const at::Tensor targets = head.weights.index_select(0, head.tokens).to(at::kFloat);
      dx.index_add_(0, head.rows, targets * coefficients[i].unsqueeze(1)).div_(config.logits_divisor);
      own_dnormed[i].copy_(dx);
      row += head.row_count;
    }
  }
  return RmsNormBackward(dnormed, tape.hidden, weights.final_norm, config.rms_norm_eps);
}

}  // namespace c3po::aten
