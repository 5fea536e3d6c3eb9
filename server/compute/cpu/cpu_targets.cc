// The LM head as an objective reads it: log-probabilities of target tokens, and their gradient. Heads that read all of
// it share one product.

#include <algorithm>
#include <cmath>
#include <utility>

#include "server/compute/cpu/cpu_backend.h"
#include "server/compute/cpu/panels.h"
#include "server/compute/cpu/row_operations.h"
#include "server/compute/cpu/softmax_mean.h"
#include "server/compute/target_rows.h"

namespace c3po::cpu {
namespace {

struct CpuTargets final : public TargetRows {
  WeightView weights;         // [W, d]: the LM head, or the rows of it that are read
  std::shared_ptr<void> own;  // where the latter lie
};

const CpuTargets& Of(const TargetTokens* targets) { return static_cast<const CpuTargets&>(*targets); }

struct Product : TargetGroup {
  const float* x = nullptr;      // [S, d] normed
  float* tops = nullptr;         // [S], the largest logit of each row
  double* sums = nullptr;        // [S]: sum of exp(logit - top)
  const float* means = nullptr;  // [S, d], with a gradient: of the weights' rows under the softmax
};

struct TargetsTape final : public Tape {
  OwnedMatrix hidden;
  std::vector<Product> products;
  KeptMemory memory;
};

// The logit of each target, from x [rows of the head, d]: the same sums as in the softmax.
void TargetLogits(const CpuTargets& head, const float* x, double divisor, float* logits) {
  const WeightView& w = head.weights;
  const int64_t unit = w.row_step(), d = w.columns;  // Rows of weights that are read together.
  float together[kPanelRows];
  for (size_t t = 0; t < head.rows.size(); ++t) {
    const int64_t first = head.tokens[t] / unit * unit, end = std::min(w.rows, first + unit);
    MultiplyTransposedHere(
        {{x + head.rows[t] * d, d, 1, nullptr}, w.Rows(first, end), {together, kPanelRows, nullptr}});
    logits[t] = together[head.tokens[t] - first] / static_cast<float>(divisor);
  }
}

}  // namespace

std::shared_ptr<const TargetTokens> CpuBackend::NewTargets(int64_t row_count, absl::Span<const int64_t> rows,
                                                           absl::Span<const int64_t> tokens, bool targets_only) {
  auto head = std::make_shared<CpuTargets>();
  head->row_count = row_count;
  head->rows.assign(rows.begin(), rows.end());
  head->tokens.assign(tokens.begin(), tokens.end());
  head->weights = weights_.lm_head;
  head->weights_data = head->weights.data;
  if (!targets_only) return head;
  const std::vector<int64_t> read = head->TakeDistinctTokens();
  const auto count = static_cast<int64_t>(read.size());
  const int64_t d = config_.hidden_size;
  head->own = AllocateBytes(count * d * static_cast<int64_t>(sizeof(float)));
  float* const own = static_cast<float*>(head->own.get());
  for (int64_t i = 0; i < count; ++i) CopyRow(weights_.lm_head, read[i], own + i * d);
  head->weights = {own, false, count, d};
  head->weights_data = own;
  return head;
}

OwnedMatrix CpuBackend::TargetLogprobs(absl::Span<const TargetTokens* const> targets, const OwnedMatrix& hidden,
                                       std::unique_ptr<Tape>* tape_out) {
  const int64_t d = config_.hidden_size, rows = hidden.rows();
  auto tape = std::make_unique<TargetsTape>();
  const Arena::Scope scope(arena_);
  Memory& memory = tape_out ? static_cast<Memory&>(tape->memory) : arena_;
  float* const normed = arena_.Floats(rows * d);
  Norm(FloatsOf(hidden.view()), weights_.final_norm, rows, normed);
  const TargetOffsets first(targets);
  OwnedMatrix out = Allocate(ElementType::kFloat32, 1, first.targets.back());
  float* const logprobs = FloatsOf(out.view());
  tape->products = GroupByWeights<Product>(targets);
  for (Product& product : tape->products) {
    const Arena::Scope of_product(arena_);
    float* const x = arena_.Floats(product.rows * d);
    int64_t next = 0;
    for (const size_t i : product.heads) {
      std::copy_n(normed + first.rows[i] * d, Of(targets[i]).row_count * d, x + next * d);
      next += Of(targets[i]).row_count;
    }
    product.tops = memory.Floats(product.rows);
    product.sums = static_cast<double*>(memory.Take(product.rows * static_cast<int64_t>(sizeof(double))));
    float* const means = tape_out ? memory.Floats(product.rows * d) : nullptr;
    product.means = means;
    const WeightView& weights = Of(targets[product.heads.front()]).weights;
    SoftmaxMean({x, d, product.rows, nullptr}, weights, static_cast<float>(config_.logits_divisor), product.tops,
                product.sums, means);
    next = 0;
    for (const size_t i : product.heads) {
      const CpuTargets& head = Of(targets[i]);
      float* const logits = logprobs + first.targets[i];
      TargetLogits(head, x + next * d, config_.logits_divisor, logits);
      for (size_t t = 0; t < head.rows.size(); ++t) {
        const int64_t r = next + head.rows[t];
        logits[t] = static_cast<float>(double{logits[t] - product.tops[r]} - std::log(product.sums[r]));
      }
      next += head.row_count;
    }
  }
  tape->hidden = hidden;
  if (tape_out) *tape_out = std::move(tape);
  return out;
}

// d log p[y] / dx = (W[y] - means) / divisor, summed over a row's targets.
OwnedMatrix CpuBackend::TargetLogprobsBackward(absl::Span<const TargetTokens* const> targets, const Tape& taped,
                                               absl::Span<const float> dlogprobs) {
  const auto& tape = static_cast<const TargetsTape&>(taped);
  const int64_t d = config_.hidden_size, rows = tape.hidden.rows();
  const Arena::Scope scope(arena_);
  float* const dnormed = arena_.Floats(rows * d);
  float* const weight = arena_.Floats(d);
  const TargetOffsets first(targets);
  const auto divisor = static_cast<float>(config_.logits_divisor);
  for (const Product& product : tape.products) {
    int64_t next = 0;
    for (const size_t i : product.heads) {
      const CpuTargets& head = Of(targets[i]);
      const float* const d_target = dlogprobs.data() + first.targets[i];
      float* const dx = dnormed + first.rows[i] * d;
      std::vector<float> totals(static_cast<size_t>(head.row_count), 0.0f);
      for (size_t t = 0; t < head.rows.size(); ++t) totals[head.rows[t]] += d_target[t];
      for (int64_t r = 0; r < head.row_count; ++r) {
        const float* const mean = product.means + (next + r) * d;
        for (int64_t c = 0; c < d; ++c) dx[r * d + c] = mean[c] * -totals[r];
      }
      for (size_t t = 0; t < head.rows.size(); ++t) {
        CopyRow(head.weights, head.tokens[t], weight);
        float* const to = dx + head.rows[t] * d;
        for (int64_t c = 0; c < d; ++c) to[c] += weight[c] * d_target[t];
      }
      for (int64_t c = 0; divisor != 1 && c < head.row_count * d; ++c) dx[c] /= divisor;
      next += head.row_count;
    }
  }
  OwnedMatrix dhidden = AllocateHidden(rows);
  RmsNormBackwardRows(dnormed, FloatsOf(tape.hidden.view()), d, weights_.final_norm, nullptr, config_.rms_norm_eps,
                      rows, d, FloatsOf(dhidden.view()));
  return dhidden;
}

}  // namespace c3po::cpu
