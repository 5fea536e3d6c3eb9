#include "server/model/neighbor_pass.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>

#include "server/model/matrix_product.h"

namespace c3po {
namespace {

at::Tensor Join(const std::vector<at::Tensor>& parts) { return parts.size() == 1 ? parts[0] : at::cat(parts); }

}  // namespace

NeighborPass::NeighborPass(const MoeModel& model, std::vector<Member> members)
    : model_(model),
      members_(std::move(members)),
      entry_(members_.front().rows->entry()),
      first_row_{0},
      tapes_(model.config().layers - entry_),
      layer_(entry_),
      moe_layer_(members_.front().rows->first_layer()),
      first_mixings_(members_.size()) {
  std::vector<at::Tensor> cos, sin;
  for (const Member& member : members_) {
    first_row_.push_back(first_row_.back() + member.rows->rows());
    cos.push_back(member.rows->rope().cos);
    sin.push_back(member.rows->rope().sin);
  }
  rope_ = {Join(cos), Join(sin)};
}

bool NeighborPass::ForwardLayer() {
  std::vector<at::Tensor> parts;
  if (joined_ > 0) parts.push_back(RunLayer(layer_, moe_layer_, joined_, hidden_, tapes_[layer_ - entry_]));
  for (; joined_ < members_.size() && members_[joined_].rows->entry() == layer_; ++joined_) {
    parts.push_back(members_[joined_].rows->RunFirstLayer(*members_[joined_].routing, first_mixings_[joined_]));
  }
  hidden_ = Join(parts);
  spent_ += RowsOf(joined_);
  if (model_.weights().layers[layer_].router.defined()) ++moe_layer_;
  return ++layer_ == model_.config().layers;
}

RopeTable NeighborPass::RopeOf(size_t count) const {
  return {rope_.cos.narrow(0, 0, RowsOf(count)), rope_.sin.narrow(0, 0, RowsOf(count))};
}

// Rows of members that say nothing about the layer keep the router's own probabilities: a shift of zero, and no
// replacement.
LayerRouting NeighborPass::JoinRoutings(size_t count, int moe_layer) const {
  std::vector<LayerRouting> own;
  bool shifts = false, replaces = false;
  for (size_t i = 0; i < count; ++i) {
    own.push_back(members_[i].rows->RoutingOf(*members_[i].routing, moe_layer));
    shifts = shifts || own[i].shift.defined();
    replaces = replaces || own[i].weights.defined();
  }
  const int64_t experts = model_.config().experts;
  std::vector<at::Tensor> shift, weights, weights_rows;
  for (size_t i = 0; i < count; ++i) {
    const at::Tensor& overridden = members_[i].rows->overridden();
    const at::Tensor none = at::zeros({overridden.size(0), experts}, overridden.options().dtype(at::kFloat));
    shift.push_back(own[i].shift.defined() ? own[i].shift : none);
    weights.push_back(own[i].weights.defined() ? own[i].weights : none);
    weights_rows.push_back(own[i].weights.defined() ? own[i].weights_rows : at::zeros_like(overridden));
  }
  LayerRouting all;
  if (shifts) all.shift = Join(shift);
  if (replaces) {
    all.weights = Join(weights);
    all.weights_rows = Join(weights_rows);
  }
  return all;
}

at::Tensor NeighborPass::RunLayer(int layer, int moe_layer, size_t count, const at::Tensor& hidden,
                                  LayerTape& tape) const {
  const ModelConfig& config = model_.config();
  const LayerWeights& weights = model_.weights().layers[layer];
  tape.input = hidden;
  tape.projections =
      ProjectAttention(RmsNorm(hidden, weights.attention_norm, config.rms_norm_eps), weights, config, RopeOf(count));
  tape.attention.resize(count);
  std::vector<at::Tensor> contexts;
  for (size_t i = 0; i < count; ++i) {
    const Projections own{Slice(tape.projections.q, i), Slice(tape.projections.k, i), Slice(tape.projections.v, i), {}};
    contexts.push_back(members_[i].rows->Attend(layer, own, &tape.attention[i]));
  }
  tape.middle = AddBlock(hidden, Project(Join(contexts), weights.output, weights.output_bias), config);
  tape.normed = RmsNorm(tape.middle, weights.moe_norm, config.rms_norm_eps);
  if (weights.router.defined()) {
    tape.routing = JoinRoutings(count, moe_layer);
    tape.mixing = MixExperts(tape.normed, weights, config, tape.routing);
  }
  return AddBlock(tape.middle, RunFeedForward(tape.normed, tape.mixing, weights, &tape.feed_forward), config);
}

void NeighborPass::BeginBackward(at::Tensor dhidden) {
  dhidden_ = std::move(dhidden);
  for (const Member& member : members_)
    gradients_.emplace_back(member.routing->values.layers, member.routing->values.experts);
  layer_ = model_.config().layers - 1;
  moe_layer_ = model_.shape().moe_layers - 1;
}

bool NeighborPass::BackwardLayer() {
  const ModelConfig& config = model_.config();
  spent_ += 2 * RowsOf(joined_);
  for (; joined_ > 0 && members_[joined_ - 1].rows->entry() == layer_; --joined_) {
    const size_t i = joined_ - 1;
    const at::Tensor dweights = members_[i].rows->FirstLayerGradient(Slice(dhidden_, i), first_mixings_[i]);
    const at::Tensor dprobabilities = MixingBackward(dweights, first_mixings_[i], config);
    const at::Tensor dlogits = SoftmaxBackward(dprobabilities, first_mixings_[i], config);
    TakeGradient(i, moe_layer_, dprobabilities, dlogits, gradients_[i]);
  }
  if (joined_ == 0) return true;
  LayerTape& tape = tapes_[layer_ - entry_];
  dhidden_ = LayerBackward(layer_, moe_layer_, joined_, dhidden_.narrow(0, 0, RowsOf(joined_)), tape);
  tape = LayerTape();  // Nobody reads it again.
  if (model_.weights().layers[layer_].router.defined()) --moe_layer_;
  --layer_;
  return false;
}

at::Tensor NeighborPass::LayerBackward(int layer, int moe_layer, size_t count, const at::Tensor& dhidden,
                                       const LayerTape& tape) {
  const ModelConfig& config = model_.config();
  const LayerWeights& weights = model_.weights().layers[layer];
  at::Tensor dweights;
  at::Tensor dnormed = FeedForwardBackward(AddBlockBackward(dhidden, config), tape.normed, tape.mixing, weights,
                                           tape.feed_forward, dweights);
  if (weights.router.defined()) {
    const at::Tensor dprobabilities = MixingBackward(dweights, tape.mixing, config);
    at::Tensor dlogits = SoftmaxBackward(dprobabilities, tape.mixing, config);
    for (size_t i = 0; i < count; ++i) {
      TakeGradient(i, moe_layer, Slice(dprobabilities, i), Slice(dlogits, i), gradients_[i]);
    }
    // Replaced weights do not look at the router.
    if (tape.routing.weights.defined()) dlogits = dlogits * tape.routing.weights_rows.logical_not();
    dnormed = dnormed + MatMul(dlogits.to(dnormed.scalar_type()), weights.router);
  }
  const at::Tensor dmiddle = dhidden + RmsNormBackward(dnormed, tape.middle, weights.moe_norm, config.rms_norm_eps);
  const at::Tensor dcontext = MatMul(AddBlockBackward(dmiddle, config), weights.output);
  std::vector<at::Tensor> dq, dk, dv;
  for (size_t i = 0; i < count; ++i) {
    TreeAttention::Gradients own = members_[i].rows->AttendBackward(layer, Slice(dcontext, i), tape.attention[i]);
    dq.push_back(std::move(own.q));
    dk.push_back(std::move(own.k));
    dv.push_back(std::move(own.v));
  }
  const at::Tensor dattention =
      ProjectAttentionBackward(Join(dq), Join(dk), Join(dv), tape.projections, weights, config, RopeOf(count));
  return dmiddle + RmsNormBackward(dattention, tape.input, weights.attention_norm, config.rms_norm_eps);
}

// The layer's row of a member's gradient, where its routing has one: the sum over its own rows that the routing
// governs.
void NeighborPass::TakeGradient(size_t member, int moe_layer, const at::Tensor& dprobabilities,
                                const at::Tensor& dlogits, Pathway& gradient) const {
  const RoutingOverride& routing = *members_[member].routing;
  const auto found = std::lower_bound(routing.layers.begin(), routing.layers.end(), moe_layer);
  if (found == routing.layers.end() || *found != moe_layer) return;
  const bool shift = routing.kind == RoutingOverride::Kind::kLogitShift;
  const at::Tensor per_row = (shift ? dlogits : dprobabilities) * members_[member].rows->overridden();
  const std::vector<float> sums = ToFloats(per_row.sum(0));
  std::copy(sums.begin(), sums.end(), gradient.Row(static_cast<int>(found - routing.layers.begin())).begin());
}

}  // namespace c3po
