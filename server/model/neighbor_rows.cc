#include "server/model/neighbor_rows.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "server/model/matrix_product.h"

namespace c3po {

NeighborRows::NeighborRows(const MoeModel& model, const ObjectiveSpec& spec)
    : model_(model), first_layer_(spec.critical_layers.front()), entry_(model.config().moe_layers[first_layer_]) {
  PackRows(spec);
  PackPrefixes(spec);
  RememberFirstLayer(spec);
}

void NeighborRows::PackRows(const ObjectiveSpec& spec) {
  const at::TensorOptions options = model_.tensor_options();
  std::vector<const AnswerTree*> trees;
  std::vector<int> prefix_lengths;
  std::vector<at::Tensor> hidden;
  std::vector<int64_t> positions;
  std::vector<uint8_t> overridden;
  for (const auto& fixed : spec.states) {
    const auto& state = static_cast<const MoeNeighborState&>(*fixed);
    for (int m = 0; m < state.tree.rows(); ++m) {
      positions.push_back(state.prefix_length + state.tree.depths[m]);
      overridden.push_back(m < state.tree.prompt_rows || spec.rule != ApplicationRule::kLastPromptToken);
    }
    trees.push_back(&state.tree);
    prefix_lengths.push_back(state.prefix_length);
    hidden.push_back(state.entry_hidden);
  }
  attention_ = std::make_unique<TreeAttention>(trees, prefix_lengths, model_.config(), options);
  rope_ = model_.rope().Select(at::tensor(positions, at::kLong).to(options.device()), options.dtype().toScalarType());
  entry_hidden_ = at::cat(hidden);
  overridden_ =
      at::tensor(at::ArrayRef<uint8_t>(overridden), at::kByte).to(at::kBool).unsqueeze(1).to(options.device());
}

// Keys and values of the fixed positions, per layer, padded to the longest prompt.
void NeighborRows::PackPrefixes(const ObjectiveSpec& spec) {
  const ModelConfig& config = model_.config();
  const int64_t cases = attention_->cases(), prefix = attention_->prefix_max();
  for (int l = entry_; l < config.layers; ++l) {
    at::Tensor keys = at::zeros({cases, config.kv_heads, prefix, config.head_dim}, model_.tensor_options());
    at::Tensor values = at::zeros({cases, config.kv_heads, prefix, config.value_dim}, model_.tensor_options());
    for (int64_t s = 0; s < cases; ++s) {
      const auto& state = static_cast<const MoeNeighborState&>(*spec.states[s]);
      const int64_t length = state.prefix_length;
      keys.select(0, s).narrow(1, 0, length).copy_(state.keys.select(0, l - entry_));
      values.select(0, s).narrow(1, 0, length).copy_(state.values.select(0, l - entry_));
    }
    prefix_keys_.push_back(std::move(keys));
    prefix_values_.push_back(std::move(values));
  }
}

void NeighborRows::RememberFirstLayer(const ObjectiveSpec& spec) {
  const ModelConfig& config = model_.config();
  const LayerWeights& layer = model_.weights().layers[entry_];
  const at::Tensor normed = RmsNorm(entry_hidden_, layer.attention_norm, config.rms_norm_eps);
  const at::Tensor context = Attend(entry_, ProjectAttention(normed, layer, config, rope_), nullptr);
  middle_ = AddBlock(entry_hidden_, Project(context, layer.output, layer.output_bias), config);
  normed_ = RmsNorm(middle_, layer.moe_norm, config.rms_norm_eps);
  if (layer.shared.down.defined()) shared_ = RunShared(normed_, layer, nullptr);
  const int64_t outputs = rows() * config.experts * config.hidden_size;
  if (outputs * static_cast<int64_t>(entry_hidden_.element_size()) > spec.remembered_bytes_max) return;
  outputs_ = at::zeros({rows(), config.experts, config.hidden_size}, model_.tensor_options());
  outputs_known_.resize(config.experts);
}

at::Tensor NeighborRows::Attend(int layer, const Projections& own, TreeAttention::Tape* tape) const {
  return attention_->Forward(own, prefix_keys_[layer - entry_], prefix_values_[layer - entry_], tape);
}

TreeAttention::Gradients NeighborRows::AttendBackward(int layer, const at::Tensor& dcontext,
                                                      const TreeAttention::Tape& tape) const {
  return attention_->Backward(dcontext, tape, prefix_keys_[layer - entry_], prefix_values_[layer - entry_]);
}

LayerRouting NeighborRows::RoutingOf(const RoutingOverride& routing, int moe_layer) const {
  LayerRouting result;
  const auto found = std::lower_bound(routing.layers.begin(), routing.layers.end(), moe_layer);
  if (found == routing.layers.end() || *found != moe_layer) return result;
  const auto values = routing.values.Row(static_cast<int>(found - routing.layers.begin()));
  const at::Tensor row = at::from_blob(const_cast<float*>(values.data()), {1, routing.values.experts}, at::kFloat)
                             .to(entry_hidden_.device(), at::kFloat, false, /*copy=*/true)
                             .expand({rows(), routing.values.experts});
  if (routing.kind == RoutingOverride::Kind::kLogitShift) {
    result.shift = row * overridden_;
  } else {
    result.weights = row;
    result.weights_rows = overridden_;
  }
  return result;
}

// An expert not selected before is run now, at all rows.
void NeighborRows::RememberExperts(const Mixing& mixing) {
  std::vector<bool> needed(outputs_known_.size(), !mixing.selected.defined());
  if (mixing.selected.defined()) {
    const at::Tensor ids = mixing.selected.to(at::kCPU).contiguous();
    for (int64_t i = 0; i < ids.numel(); ++i) needed[ids.const_data_ptr<int64_t>()[i]] = true;
  }
  std::vector<int64_t> missing;
  for (size_t e = 0; e < needed.size(); ++e) {
    if (needed[e] && !outputs_known_[e]) missing.push_back(static_cast<int64_t>(e));
  }
  if (missing.empty()) return;
  RunExpertsApart(normed_, model_.weights().layers[entry_].experts, missing, outputs_);
  for (int64_t e : missing) outputs_known_[e] = true;
}

at::Tensor NeighborRows::RunFirstLayer(const RoutingOverride& routing, Mixing& mixing) {
  const LayerWeights& layer = model_.weights().layers[entry_];
  mixing = MixExperts(normed_, layer, model_.config(), RoutingOf(routing, first_layer_));
  if (outputs_.defined()) return AddBlock(middle_, MixRemembered(mixing), model_.config());
  const at::Tensor routed = RunExperts(normed_, mixing, layer.experts, &experts_tape_);
  return AddBlock(middle_, shared_.defined() ? shared_ + routed : routed, model_.config());
}

at::Tensor NeighborRows::MixRemembered(const Mixing& mixing) {
  RememberExperts(mixing);
  const at::Tensor mix = mixing.weights.to(outputs_.scalar_type());
  const int64_t experts = outputs_.size(1), hidden = outputs_.size(2);
  const at::Tensor out = shared_.defined() ? shared_.clone() : at::zeros({rows(), hidden}, outputs_.options());
  if (!OnCpuKernels(outputs_)) return out + at::bmm(mix.unsqueeze(1), outputs_).squeeze(1);
  std::vector<cpu::OuterProduct> products;
  for (int64_t r = 0; r < rows(); ++r) {
    products.push_back({{mix.const_data_ptr<float>() + r * mix.stride(0), experts, 1, nullptr},
                        OutputsOf(r),
                        {out.mutable_data_ptr<float>() + r * hidden, hidden, nullptr}});
  }
  cpu::MultiplyAdd(products);
  return out;
}

cpu::WeightView NeighborRows::OutputsOf(int64_t row) const {
  const int64_t experts = outputs_.size(1), hidden = outputs_.size(2);
  return {outputs_.const_data_ptr<float>() + row * experts * hidden, false, experts, hidden};
}

at::Tensor NeighborRows::FirstLayerGradient(const at::Tensor& dhidden, const Mixing& mixing) const {
  const at::Tensor doutput = AddBlockBackward(dhidden, model_.config());
  at::Tensor dweights;
  if (!outputs_.defined()) {
    const ExpertWeights& experts = model_.weights().layers[entry_].experts;
    ExpertsBackward(doutput, normed_, mixing, experts, experts_tape_, dweights);
    return dweights;
  }
  if (OnCpuKernels(doutput)) {
    const int64_t experts = outputs_.size(1), hidden = outputs_.size(2);
    dweights = at::empty({rows(), experts}, doutput.options());
    std::vector<cpu::DotProduct> products;
    for (int64_t r = 0; r < rows(); ++r) {
      products.push_back({{doutput.const_data_ptr<float>() + r * doutput.stride(0), hidden, 1, nullptr},
                          OutputsOf(r),
                          {dweights.mutable_data_ptr<float>() + r * experts, experts, nullptr}});
    }
    cpu::MultiplyTransposed(products);
  } else {
    dweights = at::bmm(outputs_, doutput.unsqueeze(2)).squeeze(2).to(at::kFloat);
  }
  return mixing.selected_mask.defined() ? dweights * mixing.selected_mask : dweights;
}

}  // namespace c3po
