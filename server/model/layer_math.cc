#include "server/model/layer_math.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "server/model/cpu/row_operations.h"
#include "server/model/cpu/thread_pool.h"
#include "server/model/matrix_product.h"

namespace c3po {
namespace {

// The operand as the kernels read it: float32, packed.
at::Tensor Packed(const at::Tensor& x) { return x.to(at::kFloat).contiguous(); }

// Whether `x` [R, ...] is rows that lie packed, one row a stride apart.
bool RowsArePacked(const at::Tensor& x) { return x.dim() >= 2 && x.numel() > 0 && x[0].is_contiguous(); }

// The probabilities, -1 outside the groups of experts whose largest one leads.
at::Tensor LeadingGroups(const at::Tensor& probabilities, const ModelConfig& config) {
  if (config.groups_per_token == config.expert_groups) return probabilities;
  const at::Tensor groups = probabilities.unflatten(-1, {config.expert_groups, config.experts / config.expert_groups});
  const at::Tensor leading = std::get<1>(at::topk(std::get<0>(groups.max(-1)), config.groups_per_token, -1));
  const at::Tensor open = at::zeros({groups.size(0), groups.size(1)}, groups.options().dtype(at::kBool))
                              .scatter_(1, leading, true)
                              .unsqueeze(-1);
  return at::where(open, groups, at::full({}, -1.0, groups.options())).flatten(1);
}

// One row's probabilities to their k_e selected entries, as MixExperts has them.
struct RowMixing {
  const float* probabilities;
  int64_t* selected;
  float* mask;
  float* weights;
};

// The probabilities that may be selected, -1 elsewhere; groups with the same maximum lead in their order.
void KeepLeadingGroups(const ModelConfig& config, std::vector<float>& candidates) {
  const int64_t size = config.experts / config.expert_groups;
  std::vector<std::pair<float, int64_t>> groups;
  for (int64_t g = 0; g < config.expert_groups; ++g) {
    groups.emplace_back(-*std::max_element(candidates.begin() + g * size, candidates.begin() + (g + 1) * size), g);
  }
  std::sort(groups.begin(), groups.end());
  for (size_t i = config.groups_per_token; i < groups.size(); ++i) {
    std::fill_n(candidates.begin() + groups[i].second * size, size, -1.0f);
  }
}

void SelectRow(const ModelConfig& config, const RowMixing& row) {
  const int64_t experts = config.experts, k = config.experts_per_token;
  thread_local std::vector<float> candidates;
  thread_local std::vector<int64_t> order;
  candidates.assign(row.probabilities, row.probabilities + experts);
  // What is not a number is selected, and so seen in the result; it also has no place in an order.
  for (float& c : candidates) c = std::isnan(c) ? std::numeric_limits<float>::infinity() : c;
  if (config.groups_per_token < config.expert_groups) KeepLeadingGroups(config, candidates);
  order.resize(experts);
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + k, order.end(), [](int64_t a, int64_t b) {
    return candidates[a] > candidates[b] || (candidates[a] == candidates[b] && a < b);
  });
  std::copy_n(order.begin(), k, row.selected);
  std::fill_n(row.mask, experts, 0.0f);
  std::fill_n(row.weights, experts, 0.0f);
  for (int64_t j = 0; j < k; ++j) {
    row.mask[order[j]] = 1;
    row.weights[order[j]] = row.probabilities[order[j]];
  }
}

// The whole of it in one pass over each row: between two products of a layer there is no time for a dozen operators.
Mixing MixOnCpu(const at::Tensor& logits, const ModelConfig& config, const LayerRouting& routing) {
  const int64_t rows = logits.size(0), experts = logits.size(1), k = config.experts_per_token;
  const bool all = k == experts;
  Mixing mixing;
  mixing.logits = logits;
  mixing.probabilities = at::empty({rows, experts}, logits.options());
  mixing.weights = at::empty({rows, experts}, logits.options());
  if (!all) {
    mixing.selected = at::empty({rows, k}, logits.options().dtype(at::kLong));
    mixing.selected_mask = at::empty({rows, experts}, logits.options());
  }
  if (config.norm_topk_prob) mixing.total = at::empty({rows, 1}, logits.options());
  const at::Tensor shift = routing.shift.defined() ? Packed(routing.shift) : at::Tensor();
  const at::Tensor fixed = routing.weights.defined() ? Packed(routing.weights) : at::Tensor();
  const bool* is_fixed = fixed.defined() ? routing.weights_rows.const_data_ptr<bool>() : nullptr;
  const float* from = logits.const_data_ptr<float>();
  const float* add = shift.defined() ? shift.const_data_ptr<float>() : nullptr;
  const float* given = fixed.defined() ? fixed.const_data_ptr<float>() : nullptr;
  float* probabilities = mixing.probabilities.mutable_data_ptr<float>();
  float* weights = mixing.weights.mutable_data_ptr<float>();
  float* totals = config.norm_topk_prob ? mixing.total.mutable_data_ptr<float>() : nullptr;
  int64_t* selected = all ? nullptr : mixing.selected.mutable_data_ptr<int64_t>();
  float* mask = all ? nullptr : mixing.selected_mask.mutable_data_ptr<float>();
  cpu::ParallelFor(rows, std::max<int64_t>(1, 1024 / experts), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      float* p = probabilities + r * experts;
      float* w = weights + r * experts;
      if (is_fixed && is_fixed[r]) {
        std::copy_n(given + r * experts, experts, p);
      } else {
        std::copy_n(from + r * experts, experts, p);
        for (int64_t e = 0; add && e < experts; ++e) p[e] += add[r * experts + e];
        cpu::SoftmaxInPlace(p, experts, experts, 1);
      }
      if (all) {
        std::copy_n(p, experts, w);
      } else {
        SelectRow(config, {p, selected + r * k, mask + r * experts, w});
      }
      if (totals) {
        totals[r] = std::accumulate(w, w + experts, 0.0f);
        for (int64_t e = 0; e < experts; ++e) w[e] /= totals[r];
      }
      if (config.routed_scaling_factor == 1) continue;
      for (int64_t e = 0; e < experts; ++e) w[e] *= static_cast<float>(config.routed_scaling_factor);
    }
  });
  return mixing;
}

}  // namespace

std::vector<float> ToFloats(const at::Tensor& x) {
  const at::Tensor cpu = x.to(at::kCPU, at::kFloat).contiguous();
  return {cpu.const_data_ptr<float>(), cpu.const_data_ptr<float>() + cpu.numel()};
}

at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  if (OnCpuKernels(x) && x.dim() == 2 && RowsArePacked(x)) {
    const at::Tensor y = at::empty(x.sizes(), x.options());
    cpu::RmsNormRows(x.const_data_ptr<float>(), x.stride(0), Packed(weight).const_data_ptr<float>(), eps, x.size(0),
                     x.size(1), y.mutable_data_ptr<float>());
    return y;
  }
  if (x.is_cuda()) return at::rms_norm(x, weight.sizes(), weight, eps);  // One kernel.
  const at::Tensor x32 = x.to(at::kFloat);
  const at::Tensor rstd = at::rsqrt(x32.square().mean(-1, /*keepdim=*/true) + eps);
  return (x32 * rstd).to(x.scalar_type()) * weight;
}

at::Tensor RmsNormBackward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight, double eps) {
  if (OnCpuKernels(x) && OnCpuKernels(dy) && x.dim() == 2 && RowsArePacked(x)) {
    const at::Tensor dx = at::empty(x.sizes(), x.options());
    cpu::RmsNormBackwardRows(Packed(dy).const_data_ptr<float>(), x.const_data_ptr<float>(), x.stride(0),
                             Packed(weight).const_data_ptr<float>(), nullptr, eps, x.size(0), x.size(1),
                             dx.mutable_data_ptr<float>());
    return dx;
  }
  const at::Tensor x32 = x.to(at::kFloat);
  const at::Tensor rstd = at::rsqrt(x32.square().mean(-1, true) + eps);
  const at::Tensor n = x32 * rstd;
  const at::Tensor g = (dy * weight).to(at::kFloat);
  return (rstd * (g - n * (g * n).mean(-1, true))).to(x.scalar_type());
}

RopeTable RopeTable::Select(const at::Tensor& positions, at::ScalarType dtype) const {
  return {cos.index_select(0, positions).unsqueeze(1).to(dtype), sin.index_select(0, positions).unsqueeze(1).to(dtype)};
}

at::Tensor Rotate(const at::Tensor& x, const RopeTable& rope, bool inverse) {
  const int64_t half = x.size(-1) / 2;
  if (OnCpuKernels(x) && OnCpuKernels(rope.cos) && RowsArePacked(x)) {
    const at::Tensor y = at::empty(x.sizes(), x.options());
    cpu::RotateRows(x.const_data_ptr<float>(), x.stride(0), rope.cos.const_data_ptr<float>(),
                    rope.sin.const_data_ptr<float>(), inverse, x.size(0), x.size(1), half, y.mutable_data_ptr<float>());
    return y;
  }
  const at::Tensor a = x.narrow(-1, 0, half), b = x.narrow(-1, half, half);
  if (!c10::GradMode::is_enabled()) {  // Half as many kernels as below.
    const at::Tensor y = at::empty(x.sizes(), x.options());
    const double sign = inverse ? -1 : 1;
    at::Tensor first = y.narrow(-1, 0, half), second = y.narrow(-1, half, half);
    at::mul_out(first, a, rope.cos).addcmul_(b, rope.sin, -sign);
    at::mul_out(second, b, rope.cos).addcmul_(a, rope.sin, sign);
    return y;
  }
  if (inverse) return at::cat({a * rope.cos + b * rope.sin, b * rope.cos - a * rope.sin}, -1);
  return at::cat({a * rope.cos - b * rope.sin, b * rope.cos + a * rope.sin}, -1);
}

at::Tensor AddBlock(const at::Tensor& x, const at::Tensor& block, const ModelConfig& config) {
  return config.residual_multiplier == 1 ? x + block : x + block * config.residual_multiplier;
}

at::Tensor AddBlockBackward(const at::Tensor& dsum, const ModelConfig& config) {
  return config.residual_multiplier == 1 ? dsum : dsum * config.residual_multiplier;
}

Mixing MixExperts(const at::Tensor& normed, const LayerWeights& layer, const ModelConfig& config,
                  const LayerRouting& routing) {
  const at::Tensor logits = MatMulTransposed(normed, layer.router).to(at::kFloat);
  if (OnCpuKernels(logits)) return MixOnCpu(logits, config, routing);
  Mixing mixing;
  mixing.logits = logits;
  mixing.probabilities = at::softmax(routing.shift.defined() ? mixing.logits + routing.shift : mixing.logits, -1);
  if (routing.weights.defined()) {
    mixing.probabilities = at::where(routing.weights_rows, routing.weights, mixing.probabilities);
  }
  mixing.weights = mixing.probabilities;
  if (config.experts_per_token < config.experts) {
    const at::Tensor candidates = LeadingGroups(mixing.probabilities, config);
    mixing.selected = std::get<1>(at::topk(candidates, config.experts_per_token, -1));
    mixing.selected_mask = at::zeros_like(mixing.probabilities).scatter_(1, mixing.selected, 1.0);
    mixing.weights = mixing.probabilities * mixing.selected_mask;
  }
  if (config.norm_topk_prob) {
    mixing.total = mixing.weights.sum(-1, true);
    mixing.weights = mixing.weights / mixing.total;
  }
  if (config.routed_scaling_factor != 1) mixing.weights = mixing.weights * config.routed_scaling_factor;
  return mixing;
}

at::Tensor MixingBackward(const at::Tensor& dweights, const Mixing& mixing, const ModelConfig& config) {
  at::Tensor dp = dweights;
  if (config.routed_scaling_factor != 1) {
    TORCH_CHECK(!config.norm_topk_prob, "weights are normalized or scaled, not both");
    dp = dp * config.routed_scaling_factor;
  }
  if (config.norm_topk_prob) dp = (dp - (dp * mixing.weights).sum(-1, true)) / mixing.total;
  return mixing.selected_mask.defined() ? dp * mixing.selected_mask : dp;
}

at::Tensor SoftmaxBackward(const at::Tensor& dprobabilities, const Mixing& mixing, const ModelConfig& config) {
  const at::Tensor& probabilities = mixing.probabilities;
  if (config.norm_topk_prob) return probabilities * dprobabilities;
  return probabilities * (dprobabilities - (dprobabilities * probabilities).sum(-1, true));
}

}  // namespace c3po
