#include "server/compute/aten/expert_selection.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <map>
#include <tuple>
#include <vector>

#include "server/compute/aten/matrix_tensors.h"
#include "server/compute/aten/products.h"

namespace c3po::aten {
namespace {

bool IsShift(const RoutingRows& rows) { return rows.kind == RoutingOverride::Kind::kLogitShift; }

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

// [R, k], 1 where a row takes the expert of that rank, else 0.
at::Tensor TakenRanks(absl::Span<const CountedRows> counts, int64_t own, const at::Tensor& selected) {
  at::Tensor taken = at::full({selected.size(0), 1}, own, at::kLong);
  for (const CountedRows& rows : counts) taken.narrow(0, rows.begin, rows.end - rows.begin).fill_(rows.experts);
  const at::Tensor ranks = at::arange(selected.size(1), at::kLong).unsqueeze(0);
  return Upload(ranks.lt(taken).to(at::kFloat), selected.device());
}

}  // namespace

LayerRouting LayerRouting::Make(absl::Span<const RoutingRows> routing, int64_t rows, int64_t experts,
                                at::Device device) {
  at::Tensor weights, weights_rows, shift;
  for (const RoutingRows& own : routing) {
    const int64_t count = own.end - own.begin;
    TORCH_CHECK(own.begin >= 0 && count >= 0 && own.end <= rows, "an override's rows are none of the matrix");
    TORCH_CHECK(static_cast<int64_t>(own.values.size()) == experts, "an override has another number of experts");
    if (count == 0) continue;
    at::Tensor& target = IsShift(own) ? shift : weights;
    if (!target.defined()) target = at::zeros({rows, experts}, at::kFloat);
    const at::Tensor row = at::from_blob(const_cast<float*>(own.values.data()), {1, experts}, at::kFloat);
    target.narrow(0, own.begin, count).copy_(row.expand({count, experts}));
    if (IsShift(own)) continue;
    if (!weights_rows.defined()) weights_rows = at::zeros({rows, 1}, at::kBool);
    weights_rows.narrow(0, own.begin, count).fill_(true);
  }
  LayerRouting result;
  if (weights.defined()) {
    result.weights = Upload(weights, device);
    result.weights_rows = Upload(weights_rows, device);
  }
  if (shift.defined()) result.shift = Upload(shift, device);
  return result;
}

LayerRouting LayerRouting::OfPlaced(absl::Span<const PlacedRoutingRows> routing, int64_t rows, int64_t experts,
                                    at::Device device) {
  LayerRouting result;
  const at::TensorOptions floats = at::TensorOptions(device).dtype(at::kFloat);
  for (const PlacedRoutingRows& own : routing) {
    const int64_t count = own.end - own.begin;
    TORCH_CHECK(own.begin >= 0 && count >= 0 && own.end <= rows, "an override's rows are none of the matrix");
    TORCH_CHECK(own.values.columns == experts, "an override has another number of experts");
    if (count == 0) continue;
    const bool shift = own.kind == RoutingOverride::Kind::kLogitShift;
    at::Tensor& target = shift ? result.shift : result.weights;
    if (!target.defined()) target = at::zeros({rows, experts}, floats);
    target.narrow(0, own.begin, count).copy_(TensorOf(own.values, device).expand({count, experts}));
    if (shift) continue;
    if (!result.weights_rows.defined()) result.weights_rows = at::zeros({rows, 1}, floats.dtype(at::kBool));
    result.weights_rows.narrow(0, own.begin, count).fill_(true);
  }
  return result;
}

Mixing MixExperts(const at::Tensor& normed, const LayerWeights& layer, const ModelConfig& config,
                  const LayerRouting& routing, absl::Span<const CountedRows> counts) {
  int64_t k = config.experts_per_token;
  for (const CountedRows& counted : counts) k = std::max<int64_t>(k, counted.experts);
  Mixing mixing;
  mixing.logits = MatMulTransposed(normed, layer.router).to(at::kFloat);
  mixing.probabilities = at::softmax(routing.shift.defined() ? mixing.logits + routing.shift : mixing.logits, -1);
  if (routing.weights.defined()) {
    mixing.probabilities = at::where(routing.weights_rows, routing.weights, mixing.probabilities);
  }
  mixing.weights = mixing.probabilities;
  if (config.experts_per_token < config.experts || !counts.empty()) {
    const at::Tensor candidates = LeadingGroups(mixing.probabilities, config);
    mixing.selected = std::get<1>(at::topk(candidates, k, -1));
    mixing.selected_mask = at::zeros_like(mixing.probabilities).scatter_(1, mixing.selected, 1.0);
    at::Tensor taken = mixing.selected_mask;
    if (!counts.empty()) {
      const at::Tensor ranks = TakenRanks(counts, config.experts_per_token, mixing.selected);
      taken = at::zeros_like(mixing.probabilities).scatter_(1, mixing.selected, ranks);
    }
    mixing.weights = mixing.probabilities * taken;
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

void SumOverRouting(absl::Span<const RoutingRows> routing, const at::Tensor& dprobabilities, const at::Tensor& dlogits,
                    const at::Tensor& sums) {
  std::map<int64_t, std::vector<at::Tensor>> parts;  // of each sum
  for (const RoutingRows& own : routing) {
    if (own.sum < 0) continue;
    parts[own.sum].push_back((IsShift(own) ? dlogits : dprobabilities).narrow(0, own.begin, own.end - own.begin));
  }
  for (const auto& [sum, rows] : parts) sums.select(0, sum).copy_(Join(rows).sum(0));
}

}  // namespace c3po::aten
