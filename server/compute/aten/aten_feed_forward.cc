// The feed-forward block: of a step, of an objective with its way back, and at rows that are remembered.

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "server/compute/aten/aten_backend.h"
#include "server/compute/aten/expert_selection.h"
#include "server/compute/aten/experts.h"
#include "server/compute/aten/matrix_tensors.h"
#include "server/compute/aten/products.h"
#include "server/compute/aten/row_operations.h"

namespace c3po::aten {
namespace {

struct BlockTape final : Tape {
  at::Tensor input;         // [R, d]
  at::Tensor normed;        // [R, d]
  at::Tensor weights_rows;  // as in LayerRouting
  Mixing mixing;            // undefined in a dense layer
  FeedForwardTape networks;
};

struct RememberedLayer final : RememberedExperts {
  int layer = 0;
  at::Tensor input;    // [R, d]
  at::Tensor normed;   // [R, d]: h
  at::Tensor shared;   // [R, d]: the shared expert's output; undefined without
  at::Tensor outputs;  // [R, E, d]: Expert_e(h), filled when an expert is first selected; undefined where too large
  std::vector<bool> outputs_known;
};

struct RememberedTape final : Tape {
  Mixing mixing;
  ExpertTape experts;  // where outputs are not kept
};

// An expert not selected before is run now, at all rows.
void RunMissing(RememberedLayer& known, const Mixing& mixing, const ExpertWeights& experts) {
  const auto known_end = known.outputs_known.end();
  if (std::find(known.outputs_known.begin(), known_end, false) == known_end) return;  // Without asking the device.
  std::vector<bool> needed(known.outputs_known.size(), !mixing.selected.defined());
  if (mixing.selected.defined()) {
    const at::Tensor ids = mixing.selected.to(at::kCPU).contiguous();
    const int64_t* const id = ids.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < ids.numel(); ++i) needed[static_cast<size_t>(id[i])] = true;
  }
  std::vector<int64_t> missing;
  for (size_t e = 0; e < needed.size(); ++e) {
    if (needed[e] && !known.outputs_known[e]) missing.push_back(static_cast<int64_t>(e));
  }
  if (missing.empty()) return;
  RunExpertsApart(known.normed, experts, missing, known.outputs);
  for (int64_t e : missing) known.outputs_known[static_cast<size_t>(e)] = true;
}

// sum_e w_e Expert_e(h), from outputs that are known.
at::Tensor MixOutputs(const RememberedLayer& known, const Mixing& mixing) {
  const at::Tensor mix = mixing.weights.to(known.outputs.scalar_type());
  return at::bmm(mix.unsqueeze(1), known.outputs).squeeze(1);
}

}  // namespace

void AtenBackend::FeedForward(int l, Matrix hidden, Matrix probabilities) {
  std::vector<PlacedRoutingRows> routing;
  RoutingOfLayer(step_.overrides, l, routing);
  FeedForwardInPlace(l, routing, step_.counts, hidden, probabilities);
}

void AtenBackend::PreparationFeedForward(int l, Matrix hidden) { FeedForwardInPlace(l, {}, {}, hidden, Matrix()); }

void AtenBackend::FeedForwardInPlace(int l, absl::Span<const PlacedRoutingRows> routing,
                                     absl::Span<const CountedRows> counts, Matrix hidden, Matrix probabilities) {
  const c10::InferenceMode inference;
  const LayerWeights& weights = layer(l);
  const at::Tensor x = TensorOf(hidden, device());
  const at::Tensor normed = RmsNorm(x, weights.moe_norm, config_.rms_norm_eps);
  Mixing mixing;
  if (weights.router.defined()) {
    const LayerRouting own = LayerRouting::OfPlaced(routing, x.size(0), config_.experts, device());
    mixing = MixExperts(normed, weights, config_, own, counts);
    if (!probabilities.empty()) TensorOf(probabilities, device()).copy_(mixing.probabilities);
  }
  AddBlockInPlace(x, RunFeedForward(normed, mixing, weights, nullptr), config_);
}

OwnedMatrix AtenBackend::FeedForward(int l, absl::Span<const RoutingRows> routing, const OwnedMatrix& hidden,
                                     std::unique_ptr<Tape>* tape_out) {
  const c10::InferenceMode inference;
  const LayerWeights& weights = layer(l);
  auto tape = std::make_unique<BlockTape>();
  tape->input = TensorOf(hidden, device());
  tape->normed = RmsNorm(tape->input, weights.moe_norm, config_.rms_norm_eps);
  if (weights.router.defined()) {
    const LayerRouting own = LayerRouting::Make(routing, tape->input.size(0), config_.experts, device());
    tape->weights_rows = own.weights_rows;
    tape->mixing = MixExperts(tape->normed, weights, config_, own);
  }
  const at::Tensor block = RunFeedForward(tape->normed, tape->mixing, weights, tape_out ? &tape->networks : nullptr);
  const at::Tensor out = AddBlock(tape->input, block, config_);
  if (tape_out) *tape_out = std::move(tape);
  return MatrixOf(out);
}

OwnedMatrix AtenBackend::FeedForwardBackward(int l, absl::Span<const RoutingRows> routing, const Tape& tape_,
                                             const OwnedMatrix& dout, Matrix sums) {
  const c10::InferenceMode inference;
  const auto& tape = static_cast<const BlockTape&>(tape_);
  const LayerWeights& weights = layer(l);
  const at::Tensor dhidden = TensorOf(dout, device());
  at::Tensor dweights;
  at::Tensor dnormed = aten::FeedForwardBackward(AddBlockBackward(dhidden, config_), tape.normed, tape.mixing, weights,
                                                 tape.networks, dweights);
  if (weights.router.defined()) {
    const at::Tensor dprobabilities = MixingBackward(dweights, tape.mixing, config_);
    at::Tensor dlogits = SoftmaxBackward(dprobabilities, tape.mixing, config_);
    if (!sums.empty()) SumOverRouting(routing, dprobabilities, dlogits, TensorOf(sums, device()));
    // Replaced weights do not look at the router.
    if (tape.weights_rows.defined()) dlogits = dlogits * tape.weights_rows.logical_not();
    dnormed = dnormed + MatMul(dlogits.to(dnormed.scalar_type()), weights.router);
  }
  return MatrixOf(dhidden + RmsNormBackward(dnormed, tape.input, weights.moe_norm, config_.rms_norm_eps));
}

std::unique_ptr<RememberedExperts> AtenBackend::Remember(int l, const OwnedMatrix& hidden, int64_t bytes_max) {
  const c10::InferenceMode inference;
  const LayerWeights& weights = layer(l);
  TORCH_CHECK(weights.router.defined(), "a dense layer has no experts to remember");
  auto known = std::make_unique<RememberedLayer>();
  known->layer = l;
  known->input = TensorOf(hidden, device());
  known->normed = RmsNorm(known->input, weights.moe_norm, config_.rms_norm_eps);
  if (weights.shared.down.defined()) known->shared = RunShared(known->normed, weights, nullptr);
  const int64_t rows = known->input.size(0), outputs = rows * config_.experts * config_.hidden_size;
  if (outputs * BytesOf(info_.activations) > bytes_max) return known;
  known->outputs = at::zeros({rows, config_.experts, config_.hidden_size}, options_);
  known->outputs_known.resize(static_cast<size_t>(config_.experts));
  return known;
}

OwnedMatrix AtenBackend::RunRemembered(RememberedExperts& experts, absl::Span<const RoutingRows> routing,
                                       std::unique_ptr<Tape>* tape_out) {
  const c10::InferenceMode inference;
  auto& known = static_cast<RememberedLayer&>(experts);
  const LayerWeights& weights = layer(known.layer);
  auto tape = std::make_unique<RememberedTape>();
  tape->mixing = MixExperts(known.normed, weights, config_,
                            LayerRouting::Make(routing, known.input.size(0), config_.experts, device()));
  at::Tensor routed;
  if (known.outputs.defined()) {
    RunMissing(known, tape->mixing, weights.experts);
    routed = MixOutputs(known, tape->mixing);
  } else {
    routed = RunExperts(known.normed, tape->mixing, weights.experts, tape_out ? &tape->experts : nullptr);
  }
  const at::Tensor out = AddBlock(known.input, known.shared.defined() ? known.shared + routed : routed, config_);
  if (tape_out) *tape_out = std::move(tape);
  return MatrixOf(out);
}

void AtenBackend::RememberedBackward(const RememberedExperts& experts, absl::Span<const RoutingRows> routing,
                                     const Tape& tape_, const OwnedMatrix& dout, Matrix sums) {
  const c10::InferenceMode inference;
  const auto& known = static_cast<const RememberedLayer&>(experts);
  const auto& tape = static_cast<const RememberedTape&>(tape_);
  if (sums.empty()) return;
  const at::Tensor doutput = AddBlockBackward(TensorOf(dout, device()), config_);
  at::Tensor dweights;
  if (known.outputs.defined()) {
    dweights = at::bmm(known.outputs, doutput.unsqueeze(2)).squeeze(2).to(at::kFloat);
    if (tape.mixing.selected_mask.defined()) dweights = dweights * tape.mixing.selected_mask;
  } else {
    ExpertsBackward(doutput, known.normed, tape.mixing, layer(known.layer).experts, tape.experts, dweights);
  }
  const at::Tensor dprobabilities = MixingBackward(dweights, tape.mixing, config_);
  SumOverRouting(routing, dprobabilities, SoftmaxBackward(dprobabilities, tape.mixing, config_),
                 TensorOf(sums, device()));
}

}  // namespace c3po::aten
