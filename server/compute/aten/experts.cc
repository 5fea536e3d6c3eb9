// The experts of a layer, over copies of the rows sorted by expert, or all at once where every row takes all.

#include "server/compute/aten/experts.h"

#include <ATen/ATen.h>

#include <utility>

#include "server/compute/aten/products.h"

namespace c3po::aten {
namespace {

at::Tensor Silu(const at::Tensor& x) { return at::silu(x); }

// d silu(x) / dx = s (1 + x (1 - s)), s = sigmoid(x).
at::Tensor SiluGradient(const at::Tensor& x) {
  const at::Tensor s = at::sigmoid(x);
  return s * (1 + x * (1 - s));
}

bool AllExpertsAtOnce(const Mixing& mixing) { return !mixing.selected.defined(); }

// Each row's k_e pairs after each other, to each expert's after each other; without asking the device for a number.
ExpertTape SortPairs(const Mixing& mixing) {
  ExpertTape tape;
  tape.order = at::argsort(mixing.selected.reshape({-1}), /*stable=*/true, /*dim=*/0, /*descending=*/false);
  tape.rows = tape.order.floor_divide(mixing.selected.size(1));
  tape.ends = mixing.selected_mask.sum(0).cumsum(0).to(at::kInt);
  return tape;
}

// Sums of each row's pairs: parts [B, d] -> [R, d].
at::Tensor SumPairs(const at::Tensor& parts, const ExpertTape& tape, int64_t rows) {
  if (rows == 0) return parts;
  const at::Tensor by_row = at::empty_like(parts).index_copy_(0, tape.order, parts);
  return by_row.view({rows, parts.size(0) / rows, parts.size(1)}).sum(1);
}

// Each pair's row of x times its expert's matrix; matrices [n, in, out].
at::Tensor MultiplyPairs(const at::Tensor& x, const at::Tensor& matrices, const ExpertTape& tape) {
  if (CanMultiplyGroups(x, matrices.size(2))) return MultiplyGroups(x, matrices, tape.ends);
  return MultiplyEachGroup(x, matrices, tape.ends);
}

}  // namespace

at::Tensor RunExperts(const at::Tensor& normed, const Mixing& mixing, const ExpertWeights& networks, ExpertTape* tape) {
  const int64_t rows = normed.size(0);
  const int64_t experts = networks.count(), neurons = networks.neurons();
  const at::Tensor weights = mixing.weights.to(normed.scalar_type());
  if (AllExpertsAtOnce(mixing)) {
    ExpertTape all;
    const at::Tensor gate_up =
        MatMulTransposed(normed, networks.gate_up.flatten(0, 1)).view({rows, experts, 2, neurons});
    all.gate = gate_up.select(2, 0);
    all.up = gate_up.select(2, 1);
    all.activation = Silu(all.gate) * all.up;
    const at::Tensor scaled = all.activation * weights.unsqueeze(-1);
    const at::Tensor out = MatMulTransposed(scaled.reshape({rows, experts * neurons}), networks.down);
    if (tape) *tape = std::move(all);
    return out;
  }
  ExpertTape pairs = SortPairs(mixing);
  const at::Tensor gate_up =
      MultiplyPairs(normed.index_select(0, pairs.rows), GateUpOf(networks, normed).transpose(1, 2), pairs);
  pairs.gate = gate_up.narrow(1, 0, neurons);
  pairs.up = gate_up.narrow(1, neurons, neurons);
  pairs.activation = Silu(pairs.gate) * pairs.up;
  pairs.pair_weights = weights.gather(1, mixing.selected).reshape({-1}).index_select(0, pairs.order).unsqueeze(1);
  const at::Tensor parts =
      MultiplyPairs(pairs.activation * pairs.pair_weights, DownOf(networks, normed).permute({1, 2, 0}), pairs);
  const at::Tensor out = SumPairs(parts, pairs, rows);
  if (tape) *tape = std::move(pairs);
  return out;
}

at::Tensor ExpertsBackward(const at::Tensor& doutput, const at::Tensor& normed, const Mixing& mixing,
                           const ExpertWeights& networks, const ExpertTape& tape, at::Tensor& dweights) {
  const int64_t rows = normed.size(0);
  const int64_t experts = networks.count(), neurons = networks.neurons();
  const at::Tensor weights = mixing.weights.to(normed.scalar_type());
  if (AllExpertsAtOnce(mixing)) {
    // t = dJ/d(weighted activation): <doutput, Expert_e(h)> = <t_e, activation_e>, so no expert output is formed.
    const at::Tensor t = MatMul(doutput, networks.down).view({rows, experts, neurons});
    dweights = (t * tape.activation).to(at::kFloat).sum(-1);
    const at::Tensor dactivation = t * weights.unsqueeze(-1);
    const at::Tensor dgate = dactivation * tape.up * SiluGradient(tape.gate);
    const at::Tensor dup = dactivation * Silu(tape.gate);
    const at::Tensor dgate_up = at::stack({dgate, dup}, 2).view({rows, experts * 2 * neurons});
    return MatMul(dgate_up, networks.gate_up.flatten(0, 1));
  }
  const at::Tensor t =
      MultiplyPairs(doutput.index_select(0, tape.rows), DownOf(networks, normed).transpose(0, 1), tape);
  const at::Tensor dpair = (t * tape.activation).to(at::kFloat).sum(-1);
  dweights = at::zeros_like(mixing.weights)
                 .scatter_(1, mixing.selected,
                           at::empty_like(dpair).index_copy_(0, tape.order, dpair).view(mixing.selected.sizes()));
  const at::Tensor dactivation = t * tape.pair_weights;
  const at::Tensor dgate = dactivation * tape.up * SiluGradient(tape.gate);
  const at::Tensor dup = dactivation * Silu(tape.gate);
  return SumPairs(MultiplyPairs(at::cat({dgate, dup}, 1), GateUpOf(networks, normed), tape), tape, rows);
}

void RunExpertsApart(const at::Tensor& normed, const ExpertWeights& networks, const std::vector<int64_t>& chosen,
                     const at::Tensor& outputs) {
  const int64_t neurons = networks.neurons();
  const at::Tensor all_down = DownOf(networks, normed);
  for (int64_t expert : chosen) {
    const at::Tensor gate_up = MatMulTransposed(normed, networks.gate_up.select(0, expert));
    const at::Tensor activation = Silu(gate_up.narrow(1, 0, neurons)) * gate_up.narrow(1, neurons, neurons);
    outputs.select(1, expert).copy_(MatMulTransposed(activation, all_down.select(1, expert)));
  }
}

at::Tensor RunShared(const at::Tensor& normed, const LayerWeights& layer, SharedTape* tape) {
  SharedTape local;
  SharedTape& t = tape ? *tape : local;
  t.mixing.weights = layer.shared_gate.defined()
                         ? at::sigmoid(MatMulTransposed(normed, layer.shared_gate).to(at::kFloat))
                         : at::ones({normed.size(0), 1}, normed.options().dtype(at::kFloat));
  return RunExperts(normed, t.mixing, layer.shared, tape ? &t.experts : nullptr);
}

at::Tensor SharedBackward(const at::Tensor& doutput, const at::Tensor& normed, const LayerWeights& layer,
                          const SharedTape& tape) {
  at::Tensor dgate;
  const at::Tensor dnormed = ExpertsBackward(doutput, normed, tape.mixing, layer.shared, tape.experts, dgate);
  if (!layer.shared_gate.defined()) return dnormed;
  const at::Tensor& s = tape.mixing.weights;
  return dnormed + MatMul((dgate * s * (1 - s)).to(normed.scalar_type()), layer.shared_gate);
}

at::Tensor RunFeedForward(const at::Tensor& normed, const Mixing& mixing, const LayerWeights& layer,
                          FeedForwardTape* tape) {
  SharedTape* const shared = tape ? &tape->shared : nullptr;
  if (!layer.router.defined()) return RunShared(normed, layer, shared);
  const at::Tensor routed = RunExperts(normed, mixing, layer.experts, tape ? &tape->experts : nullptr);
  return layer.shared.down.defined() ? routed + RunShared(normed, layer, shared) : routed;
}

at::Tensor FeedForwardBackward(const at::Tensor& doutput, const at::Tensor& normed, const Mixing& mixing,
                               const LayerWeights& layer, const FeedForwardTape& tape, at::Tensor& dweights) {
  if (!layer.router.defined()) return SharedBackward(doutput, normed, layer, tape.shared);
  const at::Tensor dnormed = ExpertsBackward(doutput, normed, mixing, layer.experts, tape.experts, dweights);
  return layer.shared.down.defined() ? dnormed + SharedBackward(doutput, normed, layer, tape.shared) : dnormed;
}

}  // namespace c3po::aten
