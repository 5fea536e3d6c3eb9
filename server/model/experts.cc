// The experts of a layer. On the CPU the rows of all experts are one job of the product kernels, read by index from
// the packed rows and added to them; elsewhere ATen runs them over copies of the rows, sorted by expert, or all at once
// where every row takes all.

#include <ATen/ATen.h>

#include <cmath>

#include "server/model/cpu/row_operations.h"
#include "server/model/layer_math.h"
#include "server/model/matrix_product.h"

namespace c3po {
namespace {

at::Tensor Silu(const at::Tensor& x) { return at::silu(x); }

// d silu(x) / dx = s (1 + x (1 - s)), s = sigmoid(x).
at::Tensor SiluGradient(const at::Tensor& x) {
  const at::Tensor s = at::sigmoid(x);
  return s * (1 + x * (1 - s));
}

// On the CPU entry by entry: ATen rounds the entries of a whole vector and those of its rest differently, so that a
// row's result would depend on the rows beside it.
at::Tensor Sigmoid(at::Tensor x) {
  if (!OnCpuKernels(x)) return at::sigmoid(x);
  float* values = x.mutable_data_ptr<float>();
  for (int64_t i = 0; i < x.numel(); ++i) values[i] = 1 / (1 + std::exp(-values[i]));
  return x;
}

bool AllExpertsAtOnce(const Mixing& mixing) { return !mixing.selected.defined(); }

// Rows of each expert that any row selects, ascending by expert; an expert's rows ascending.
ExpertTape AssignRows(const Mixing& mixing, int64_t experts) {
  ExpertTape tape;
  const at::Tensor ids = mixing.selected.contiguous();
  const int64_t rows = ids.size(0), k = ids.size(1);
  const int64_t* id = ids.const_data_ptr<int64_t>();
  tape.offsets.assign(static_cast<size_t>(experts) + 1, 0);
  for (int64_t i = 0; i < rows * k; ++i) ++tape.offsets[id[i] + 1];
  for (int64_t e = 0; e < experts; ++e) tape.offsets[e + 1] += tape.offsets[e];
  std::vector<int64_t> next(tape.offsets.begin(), tape.offsets.end() - 1), of_row(static_cast<size_t>(rows), 0);
  tape.assigned.resize(static_cast<size_t>(rows * k));
  tape.pairs.resize(tape.assigned.size());
  for (int64_t i = 0; i < rows * k; ++i) tape.assigned[next[id[i]]++] = i / k;
  for (int64_t pair = 0; pair < rows * k; ++pair) {
    const int64_t row = tape.assigned[pair];
    tape.pairs[row * k + of_row[row]++] = pair;
  }
  return tape;
}

// The products of all experts with their rows, as one job: rows of `x` by index where they are shared, else packed.
struct ExpertRows {
  const ExpertTape& tape;
  const int64_t rows;  // R

  cpu::RowsView Shared(const at::Tensor& x, int64_t e) const {
    return {x.const_data_ptr<float>(), x.stride(0), count(e), tape.assigned.data() + tape.offsets[e]};
  }
  cpu::RowsView Packed(const at::Tensor& x, int64_t e) const {
    return {x.const_data_ptr<float>() + tape.offsets[e] * x.size(1), x.size(1), count(e), nullptr};
  }
  cpu::MutableRowsView PackedOut(const at::Tensor& y, int64_t e) const {
    return {y.mutable_data_ptr<float>() + tape.offsets[e] * y.size(1), y.size(1), nullptr};
  }
  int64_t count(int64_t e) const { return tape.offsets[e + 1] - tape.offsets[e]; }

  // One product per expert that has rows.
  template <typename Product, typename Make>
  std::vector<Product> ForEachExpert(const Make& make) const {
    std::vector<Product> products;
    for (int64_t e = 0; e + 1 < static_cast<int64_t>(tape.offsets.size()); ++e) {
      if (count(e) > 0) products.push_back(make(e));
    }
    return products;
  }

  // Of the shared rows x: gate and up, packed.
  void In(const at::Tensor& x, const ExpertWeights& networks, const at::Tensor& gate_up) const {
    cpu::MultiplyTransposed(ForEachExpert<cpu::DotProduct>([&](int64_t e) {
      return cpu::DotProduct{Shared(x, e), WeightsOf(networks.gate_up, e), PackedOut(gate_up, e)};
    }));
  }
  at::Tensor InBackward(const at::Tensor& dgate_up, const ExpertWeights& networks) const {
    const at::Tensor parts = at::empty({dgate_up.size(0), networks.gate_up.size(2)}, dgate_up.options());
    cpu::Multiply(ForEachExpert<cpu::OuterProduct>([&](int64_t e) {
      return cpu::OuterProduct{Packed(dgate_up, e), WeightsOf(networks.gate_up, e), PackedOut(parts, e)};
    }));
    return SumOverExperts(parts);
  }
  at::Tensor Out(const at::Tensor& activation, const ExpertWeights& networks) const {
    const cpu::WeightView down = WeightsOf(networks.down);
    const int64_t f = networks.neurons();
    const at::Tensor parts = at::empty({activation.size(0), down.rows}, activation.options());
    cpu::MultiplyTransposed(ForEachExpert<cpu::DotProduct>([&](int64_t e) {
      return cpu::DotProduct{Packed(activation, e), down.Columns(e * f, (e + 1) * f), PackedOut(parts, e)};
    }));
    return SumOverExperts(parts);
  }
  void OutBackward(const at::Tensor& doutput, const ExpertWeights& networks, const at::Tensor& dactivation) const {
    const cpu::WeightView down = WeightsOf(networks.down);
    const int64_t f = networks.neurons();
    cpu::Multiply(ForEachExpert<cpu::OuterProduct>([&](int64_t e) {
      return cpu::OuterProduct{Shared(doutput, e), down.Columns(e * f, (e + 1) * f), PackedOut(dactivation, e)};
    }));
  }
  // Sums over a row's pairs, [R, columns of parts].
  at::Tensor SumOverExperts(const at::Tensor& parts) const {
    const int64_t width = parts.size(1), per_row = static_cast<int64_t>(tape.pairs.size()) / rows;
    const at::Tensor y = at::empty({rows, width}, parts.options());
    cpu::SumRows(parts.const_data_ptr<float>(), tape.pairs.data(), rows, per_row, width, y.mutable_data_ptr<float>());
    return y;
  }
};

at::Tensor RunExpertsOnCpu(const at::Tensor& normed, const Mixing& mixing, const ExpertWeights& networks,
                           ExpertTape* tape_out) {
  const int64_t rows = normed.size(0);
  const int64_t experts = networks.count(), neurons = networks.neurons();
  const bool all = AllExpertsAtOnce(mixing);
  ExpertTape tape = all ? ExpertTape() : AssignRows(mixing, experts);
  const at::Tensor weights = mixing.weights.contiguous();
  if (all) {
    tape.scale = weights;
    tape.gate_up = MatMulTransposed(normed, AsOne(networks.gate_up));
  } else {
    const auto count = static_cast<int64_t>(tape.assigned.size());
    tape.scale = at::empty({count}, normed.options());
    const float* w = weights.const_data_ptr<float>();
    float* scale = tape.scale.mutable_data_ptr<float>();
    for (int64_t e = 0; e < experts; ++e) {
      for (int64_t i = tape.offsets[e]; i < tape.offsets[e + 1]; ++i) scale[i] = w[tape.assigned[i] * experts + e];
    }
    tape.gate_up = at::empty({count, 2 * neurons}, normed.options());
    ExpertRows{tape, rows}.In(normed, networks, tape.gate_up);
  }
  const int64_t blocks = tape.scale.numel();
  const at::Tensor activation = at::empty({blocks, neurons}, normed.options());
  cpu::SwigluBlocks(tape.gate_up.const_data_ptr<float>(), tape.scale.const_data_ptr<float>(), blocks, neurons,
                    activation.mutable_data_ptr<float>());
  const at::Tensor out = all ? MatMulTransposed(activation.view({rows, experts * neurons}), networks.down)
                             : ExpertRows{tape, rows}.Out(activation, networks);
  if (tape_out) *tape_out = std::move(tape);
  return out;
}

at::Tensor ExpertsBackwardOnCpu(const at::Tensor& doutput, const at::Tensor& normed, const Mixing& mixing,
                                const ExpertWeights& networks, const ExpertTape& tape, at::Tensor& dweights) {
  const int64_t rows = normed.size(0);
  const int64_t experts = networks.count(), neurons = networks.neurons();
  const bool all = AllExpertsAtOnce(mixing);
  const int64_t blocks = tape.scale.numel();
  // t = dJ/d(weighted activation): <doutput, Expert_e(h)> = <t_e, activation_e>, so no expert output is formed.
  at::Tensor t;
  if (all) {
    t = MatMul(doutput, networks.down);
  } else {
    t = at::empty({blocks, neurons}, normed.options());
    ExpertRows{tape, rows}.OutBackward(doutput, networks, t);
  }
  const at::Tensor dscale = at::empty({blocks}, normed.options());
  const at::Tensor dgate_up = at::empty({blocks, 2 * neurons}, normed.options());
  cpu::SwigluBackwardBlocks(t.const_data_ptr<float>(), tape.gate_up.const_data_ptr<float>(),
                            tape.scale.const_data_ptr<float>(), blocks, neurons, dscale.mutable_data_ptr<float>(),
                            dgate_up.mutable_data_ptr<float>());
  if (all) {
    dweights = dscale.view({rows, experts});
    return MatMul(dgate_up.view({rows, experts * 2 * neurons}), AsOne(networks.gate_up));
  }
  dweights = at::zeros({rows, experts}, normed.options());
  float* dw = dweights.mutable_data_ptr<float>();
  const float* ds = dscale.const_data_ptr<float>();
  for (int64_t e = 0; e < experts; ++e) {
    for (int64_t i = tape.offsets[e]; i < tape.offsets[e + 1]; ++i) dw[tape.assigned[i] * experts + e] = ds[i];
  }
  return ExpertRows{tape, rows}.InBackward(dgate_up, networks);
}

// ATen's way: (row, expert) pairs, by expert.

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
  const at::Tensor by_row = at::empty_like(parts).index_copy_(0, tape.order, parts);
  return by_row.view({rows, parts.size(0) / rows, parts.size(1)}).sum(1);
}

// Row-major, for ATen.
at::Tensor GateUpOf(const ExpertWeights& networks) {  // [n, 2f, d]
  return RowMajor(AsOne(networks.gate_up)).view({networks.count(), 2 * networks.neurons(), -1});
}
at::Tensor DownOf(const ExpertWeights& networks) {  // [d, n, f]
  return RowMajor(networks.down).view({-1, networks.count(), networks.neurons()});
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
  if (OnCpuKernels(normed)) return RunExpertsOnCpu(normed, mixing, networks, tape);
  const at::Tensor weights = mixing.weights.to(normed.scalar_type());
  if (AllExpertsAtOnce(mixing)) {
    ExpertTape all;
    const at::Tensor gate_up = MatMulTransposed(normed, AsOne(networks.gate_up)).view({rows, experts, 2, neurons});
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
      MultiplyPairs(normed.index_select(0, pairs.rows), GateUpOf(networks).transpose(1, 2), pairs);
  pairs.gate = gate_up.narrow(1, 0, neurons);
  pairs.up = gate_up.narrow(1, neurons, neurons);
  pairs.activation = Silu(pairs.gate) * pairs.up;
  pairs.pair_weights = weights.gather(1, mixing.selected).reshape({-1}).index_select(0, pairs.order).unsqueeze(1);
  const at::Tensor parts =
      MultiplyPairs(pairs.activation * pairs.pair_weights, DownOf(networks).permute({1, 2, 0}), pairs);
  const at::Tensor out = SumPairs(parts, pairs, rows);
  if (tape) *tape = std::move(pairs);
  return out;
}

at::Tensor ExpertsBackward(const at::Tensor& doutput, const at::Tensor& normed, const Mixing& mixing,
                           const ExpertWeights& networks, const ExpertTape& tape, at::Tensor& dweights) {
  const int64_t rows = normed.size(0);
  const int64_t experts = networks.count(), neurons = networks.neurons();
  if (OnCpuKernels(normed)) return ExpertsBackwardOnCpu(doutput, normed, mixing, networks, tape, dweights);
  const at::Tensor weights = mixing.weights.to(normed.scalar_type());
  if (AllExpertsAtOnce(mixing)) {
    // t = dJ/d(weighted activation): <doutput, Expert_e(h)> = <t_e, activation_e>, so no expert output is formed.
    const at::Tensor t = MatMul(doutput, networks.down).view({rows, experts, neurons});
    dweights = (t * tape.activation).to(at::kFloat).sum(-1);
    const at::Tensor dactivation = t * weights.unsqueeze(-1);
    const at::Tensor dgate = dactivation * tape.up * SiluGradient(tape.gate);
    const at::Tensor dup = dactivation * Silu(tape.gate);
    const at::Tensor dgate_up = at::stack({dgate, dup}, 2).view({rows, experts * 2 * neurons});
    return MatMul(dgate_up, AsOne(networks.gate_up));
  }
  const at::Tensor t = MultiplyPairs(doutput.index_select(0, tape.rows), DownOf(networks).transpose(0, 1), tape);
  const at::Tensor dpair = (t * tape.activation).to(at::kFloat).sum(-1);
  dweights = at::zeros_like(mixing.weights)
                 .scatter_(1, mixing.selected,
                           at::empty_like(dpair).index_copy_(0, tape.order, dpair).view(mixing.selected.sizes()));
  const at::Tensor dactivation = t * tape.pair_weights;
  const at::Tensor dgate = dactivation * tape.up * SiluGradient(tape.gate);
  const at::Tensor dup = dactivation * Silu(tape.gate);
  return SumPairs(MultiplyPairs(at::cat({dgate, dup}, 1), GateUpOf(networks), tape), tape, rows);
}

void RunExpertsApart(const at::Tensor& normed, const ExpertWeights& networks, const std::vector<int64_t>& chosen,
                     at::Tensor& outputs) {
  const int64_t rows = normed.size(0), hidden = normed.size(1), neurons = networks.neurons();
  if (!OnCpuKernels(normed)) {
    for (int64_t expert : chosen) {
      const at::Tensor gate_up = MatMulTransposed(normed, networks.gate_up.select(0, expert));
      const at::Tensor activation = Silu(gate_up.narrow(1, 0, neurons)) * gate_up.narrow(1, neurons, neurons);
      outputs.select(1, expert).copy_(
          MatMulTransposed(activation, SelectColumns(networks.down, expert * neurons, neurons)));
    }
    return;
  }
  const auto count = static_cast<int64_t>(chosen.size());
  const at::Tensor gate_up = at::empty({count, rows, 2 * neurons}, normed.options());
  const at::Tensor activation = at::empty({count, rows, neurons}, normed.options());
  const cpu::WeightView down = WeightsOf(networks.down);
  std::vector<cpu::DotProduct> in, out;
  for (int64_t i = 0; i < count; ++i) {
    const at::Tensor output = outputs.select(1, chosen[i]);
    in.push_back({RowsOf(normed), WeightsOf(networks.gate_up, chosen[i]), MutableRowsOf(gate_up[i])});
    out.push_back(
        {RowsOf(activation[i]), down.Columns(chosen[i] * neurons, (chosen[i] + 1) * neurons), MutableRowsOf(output)});
  }
  TORCH_CHECK(hidden == outputs.size(2), "an expert's output has another size");
  cpu::MultiplyTransposed(in);
  cpu::SwigluBlocks(gate_up.const_data_ptr<float>(), at::ones({count * rows}, at::kFloat).const_data_ptr<float>(),
                    count * rows, neurons, activation.mutable_data_ptr<float>());
  cpu::MultiplyTransposed(out);
}

at::Tensor RunShared(const at::Tensor& normed, const LayerWeights& layer, SharedTape* tape) {
  SharedTape local;
  SharedTape& t = tape ? *tape : local;
  t.mixing.weights = layer.shared_gate.defined() ? Sigmoid(MatMulTransposed(normed, layer.shared_gate).to(at::kFloat))
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

}  // namespace c3po
