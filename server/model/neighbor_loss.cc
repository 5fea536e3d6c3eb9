#include "server/model/neighbor_loss.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/model/cpu/row_operations.h"
#include "server/model/cpu/thread_pool.h"
#include "server/model/matrix_product.h"

namespace c3po {
namespace {

absl::Status CheckSpec(const ObjectiveSpec& spec, const ModelShape& shape) {
  if (spec.cases.empty() || spec.cases.size() != spec.states.size()) {
    return absl::InvalidArgumentError("an objective needs at least one neighbor, and one state for each");
  }
  if (spec.critical_layers.empty() || !std::is_sorted(spec.critical_layers.begin(), spec.critical_layers.end()) ||
      spec.critical_layers.front() < 0 || spec.critical_layers.back() >= shape.moe_layers) {
    return absl::InvalidArgumentError("critical layers must be ascending MoE layers of the model");
  }
  for (size_t i = 0; i < spec.cases.size(); ++i) {
    const NeighborCase& neighbor = spec.cases[i];
    const auto* state = dynamic_cast<const MoeNeighborState*>(spec.states[i].get());
    if (state == nullptr || state->first_layer != spec.critical_layers.front() ||
        state->tree.lengths.size() != neighbor.continuations.size()) {
      return absl::InvalidArgumentError(absl::StrCat("neighbor ", i, ": its state was made for another objective"));
    }
    if (neighbor.gold < 0 || neighbor.gold >= static_cast<int>(neighbor.continuations.size()) ||
        !(neighbor.kernel_weight > 0)) {
      return absl::InvalidArgumentError(absl::StrCat("neighbor ", i, ": gold or kernel weight is out of range"));
    }
  }
  return absl::OkStatus();
}

at::Tensor LongTensor(const std::vector<int64_t>& values, at::Device device) {
  return at::tensor(values, at::kLong).to(device);
}

}  // namespace

absl::StatusOr<std::unique_ptr<NeighborLoss>> NeighborLoss::Create(const MoeModel& model, const ObjectiveSpec& spec) {
  C3PO_RETURN_IF_ERROR(CheckSpec(spec, model.shape()));
  try {
    const c10::InferenceMode inference;
    return std::unique_ptr<NeighborLoss>(new NeighborLoss(model, spec));
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("neighbor loss: ", error.what()));
  }
}

NeighborLoss::NeighborLoss(const MoeModel& model, const ObjectiveSpec& spec)
    : model_(model),
      first_layer_(spec.critical_layers.front()),
      entry_(model.config().moe_layers[first_layer_]),
      loss_(spec.loss) {
  const ModelConfig& config = model.config();
  PackRows(spec);
  PackPrefixes(spec);
  first_.input = entry_hidden_;
  RunAttention(entry_, first_);
  const LayerWeights& layer = model.weights().layers[entry_];
  first_.normed = RmsNorm(first_.middle, layer.moe_norm, config.rms_norm_eps);
  if (layer.shared.down.defined()) first_shared_ = RunShared(first_.normed, layer, nullptr);
  first_outputs_ = at::zeros({entry_hidden_.size(0), config.experts, config.hidden_size}, model.tensor_options());
  first_outputs_known_.resize(config.experts);
}

// The moving rows of all neighbors, one after the other.
void NeighborLoss::PackRows(const ObjectiveSpec& spec) {
  const at::TensorOptions options = model_.tensor_options();
  std::vector<const AnswerTree*> trees;
  std::vector<int> prefix_lengths;
  std::vector<at::Tensor> hidden;
  std::vector<int64_t> positions, target_rows, target_tokens;
  std::vector<uint8_t> overridden;
  double total = 0;
  for (const NeighborCase& neighbor : spec.cases) total += neighbor.kernel_weight;
  for (size_t i = 0; i < spec.cases.size(); ++i) {
    const auto& state = static_cast<const MoeNeighborState&>(*spec.states[i]);
    const auto first_row = static_cast<int64_t>(positions.size());
    for (int m = 0; m < state.tree.rows(); ++m) {
      positions.push_back(state.prompt_length - 1 + state.tree.depths[m]);
      overridden.push_back(m == 0 || spec.rule != ApplicationRule::kLastPromptToken);
    }
    for (const AnswerTree::Target& target : state.tree.targets) {
      targets_.push_back({static_cast<int>(i), target.continuation});
      target_rows.push_back(first_row + target.row);
      target_tokens.push_back(target.token);
    }
    trees.push_back(&state.tree);
    prefix_lengths.push_back(state.prompt_length - 1);
    hidden.push_back(state.entry_hidden);
    case_weights_.push_back(spec.cases[i].kernel_weight / total);
    case_gold_.push_back(spec.cases[i].gold);
    case_lengths_.push_back(state.tree.lengths);
  }
  target_rows_ = LongTensor(target_rows, options.device());
  ChooseHead(target_tokens);
  attention_ = std::make_unique<TreeAttention>(trees, prefix_lengths, model_.config(), options);
  rope_ = model_.rope().Select(LongTensor(positions, options.device()), options.dtype().toScalarType());
  entry_hidden_ = at::cat(hidden);
  overridden_ =
      at::tensor(at::ArrayRef<uint8_t>(overridden), at::kByte).to(at::kBool).unsqueeze(1).to(options.device());
}

void NeighborLoss::ChooseHead(const std::vector<int64_t>& target_tokens) {
  const at::Tensor& whole = model_.weights().lm_head;
  const auto chooses_one_token = [](const std::vector<int>& lengths) {
    return lengths.size() > 1 && std::all_of(lengths.begin(), lengths.end(), [](int length) { return length == 1; });
  };
  if (loss_ != SurrogateLoss::kChoices || !std::all_of(case_lengths_.begin(), case_lengths_.end(), chooses_one_token)) {
    head_ = whole;
    target_tokens_ = LongTensor(target_tokens, whole.device());
    return;
  }
  std::vector<int64_t> tokens = target_tokens, slots;
  std::sort(tokens.begin(), tokens.end());
  tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
  for (int64_t token : target_tokens)
    slots.push_back(std::lower_bound(tokens.begin(), tokens.end(), token) - tokens.begin());
  head_ = whole.index_select(0, LongTensor(tokens, whole.device()));
  target_tokens_ = LongTensor(slots, whole.device());
}

// Keys and values of the fixed positions, per layer, padded to the longest prompt.
void NeighborLoss::PackPrefixes(const ObjectiveSpec& spec) {
  const ModelConfig& config = model_.config();
  const int64_t cases = attention_->cases(), prefix = attention_->prefix_max();
  for (int l = entry_; l < config.layers; ++l) {
    at::Tensor keys = at::zeros({cases, config.kv_heads, prefix, config.head_dim}, model_.tensor_options());
    at::Tensor values = at::zeros({cases, config.kv_heads, prefix, config.value_dim}, model_.tensor_options());
    for (int64_t s = 0; s < cases; ++s) {
      const auto& state = static_cast<const MoeNeighborState&>(*spec.states[s]);
      const int64_t length = state.prompt_length - 1;
      keys.select(0, s).narrow(1, 0, length).copy_(state.keys.select(0, l - entry_));
      values.select(0, s).narrow(1, 0, length).copy_(state.values.select(0, l - entry_));
    }
    prefix_keys_.push_back(std::move(keys));
    prefix_values_.push_back(std::move(values));
  }
}

void NeighborLoss::RunAttention(int layer, LayerTape& tape) const {
  const LayerWeights& weights = model_.weights().layers[layer];
  const ModelConfig& config = model_.config();
  const at::Tensor normed = RmsNorm(tape.input, weights.attention_norm, config.rms_norm_eps);
  tape.projections = ProjectAttention(normed, weights, config, rope_);
  const at::Tensor context = attention_->Forward(tape.projections, prefix_keys_[layer - entry_],
                                                 prefix_values_[layer - entry_], &tape.attention);
  tape.middle = AddBlock(tape.input, Project(context, weights.output, weights.output_bias), config);
}

LayerRouting NeighborLoss::RoutingOf(const RoutingOverride& routing, int moe_layer) const {
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

// o = sum_e w_e Expert_e(h) + Shared(h) from remembered outputs; an expert not selected before is run now.
at::Tensor NeighborLoss::RunFirstLayerExperts(const LayerTape& tape) {
  std::vector<bool> needed(first_outputs_known_.size(), !tape.mixing.selected.defined());
  if (tape.mixing.selected.defined()) {
    const at::Tensor ids = tape.mixing.selected.to(at::kCPU).contiguous();
    for (int64_t i = 0; i < ids.numel(); ++i) needed[ids.const_data_ptr<int64_t>()[i]] = true;
  }
  std::vector<int64_t> missing;
  for (size_t e = 0; e < needed.size(); ++e) {
    if (!needed[e] || first_outputs_known_[e]) continue;
    missing.push_back(static_cast<int64_t>(e));
    first_outputs_known_[e] = true;
  }
  if (!missing.empty())
    RunExpertsApart(first_.normed, model_.weights().layers[entry_].experts, missing, first_outputs_);
  const at::Tensor mix = tape.mixing.weights.to(first_outputs_.scalar_type());
  const int64_t experts = first_outputs_.size(1), hidden = first_outputs_.size(2);
  const at::Tensor out =
      first_shared_.defined() ? first_shared_.clone() : at::zeros({rows(), hidden}, first_outputs_.options());
  if (!OnCpuKernels(first_outputs_)) return out + at::bmm(mix.unsqueeze(1), first_outputs_).squeeze(1);
  std::vector<cpu::OuterProduct> products;
  for (int64_t r = 0; r < rows(); ++r) {
    products.push_back({{mix.const_data_ptr<float>() + r * mix.stride(0), experts, 1, nullptr},
                        FirstOutputsOf(r),
                        {out.mutable_data_ptr<float>() + r * hidden, hidden, nullptr}});
  }
  cpu::MultiplyAdd(products);
  return out;
}

cpu::WeightView NeighborLoss::FirstOutputsOf(int64_t row) const {
  const int64_t experts = first_outputs_.size(1), hidden = first_outputs_.size(2);
  return {first_outputs_.const_data_ptr<float>() + row * experts * hidden, false, experts, hidden};
}

// <dJ/do, Expert_e(h)> of the first critical layer.
at::Tensor NeighborLoss::FirstLayerGradient(const at::Tensor& doutput) const {
  if (!OnCpuKernels(doutput)) return at::bmm(first_outputs_, doutput.unsqueeze(2)).squeeze(2).to(at::kFloat);
  const int64_t experts = first_outputs_.size(1), hidden = first_outputs_.size(2);
  const at::Tensor dweights = at::empty({rows(), experts}, doutput.options());
  std::vector<cpu::DotProduct> products;
  for (int64_t r = 0; r < rows(); ++r) {
    products.push_back({{doutput.const_data_ptr<float>() + r * doutput.stride(0), hidden, 1, nullptr},
                        FirstOutputsOf(r),
                        {dweights.mutable_data_ptr<float>() + r * experts, experts, nullptr}});
  }
  cpu::MultiplyTransposed(products);
  return dweights;
}

at::Tensor NeighborLoss::Forward(const RoutingOverride& routing, std::vector<LayerTape>& tapes) {
  const ModelConfig& config = model_.config();
  at::Tensor hidden;
  int moe = first_layer_;
  for (int l = entry_; l < config.layers; ++l) {
    const LayerWeights& weights = model_.weights().layers[l];
    LayerTape& tape = tapes[l - entry_];
    if (l == entry_) {
      tape.normed = first_.normed;
    } else {
      tape.input = hidden;
      RunAttention(l, tape);
      tape.normed = RmsNorm(tape.middle, weights.moe_norm, config.rms_norm_eps);
    }
    if (weights.router.defined()) tape.mixing = MixExperts(tape.normed, weights, config, RoutingOf(routing, moe++));
    hidden = l == entry_
                 ? AddBlock(first_.middle, RunFirstLayerExperts(tape), config)
                 : AddBlock(tape.middle, RunFeedForward(tape.normed, tape.mixing, weights, &tape.feed_forward), config);
  }
  return hidden;
}

double NeighborLoss::Loss(const std::vector<float>& logprobs, std::vector<float>& dlogprobs) {
  std::vector<std::vector<double>> scores(case_weights_.size());  // mean log-likelihood of each continuation
  for (size_t i = 0; i < scores.size(); ++i) scores[i].assign(case_lengths_[i].size(), 0.0);
  for (size_t t = 0; t < targets_.size(); ++t) {
    const Target& target = targets_[t];
    scores[target.case_index][target.continuation] +=
        double{logprobs[t]} / case_lengths_[target.case_index][target.continuation];
  }
  double total = 0;
  correct_choices_ = 0;
  bool all_have_choices = true;
  std::vector<std::vector<double>> dscores(scores.size());
  for (size_t i = 0; i < scores.size(); ++i) {
    const std::vector<double>& score = scores[i];
    dscores[i].assign(score.size(), 0.0);
    const int gold = case_gold_[i];
    double loss = -score[gold];
    dscores[i][gold] = -case_weights_[i];
    if (loss_ == SurrogateLoss::kChoices && score.size() > 1) {
      const double top = *std::max_element(score.begin(), score.end());
      double sum = 0;
      for (double s : score) sum += std::exp(s - top);
      loss += top + std::log(sum);
      for (size_t c = 0; c < score.size(); ++c) dscores[i][c] += case_weights_[i] * std::exp(score[c] - top) / sum;
    }
    total += case_weights_[i] * loss;
    all_have_choices = all_have_choices && score.size() > 1;
    correct_choices_ += std::max_element(score.begin(), score.end()) - score.begin() == gold;
  }
  if (!all_have_choices) correct_choices_ = -1;
  dlogprobs.resize(targets_.size());
  for (size_t t = 0; t < targets_.size(); ++t) {
    const Target& target = targets_[t];
    dlogprobs[t] = static_cast<float>(dscores[target.case_index][target.continuation] /
                                      case_lengths_[target.case_index][target.continuation]);
  }
  return total;
}

std::vector<float> NeighborLoss::ReadHead(const at::Tensor& hidden, Head& head) const {
  const at::Tensor normed = RmsNorm(hidden, model_.weights().final_norm, model_.config().rms_norm_eps);
  head.logits = MatMulTransposed(normed, head_).to(at::kFloat);
  if (model_.config().logits_divisor != 1) head.logits.div_(model_.config().logits_divisor);
  if (OnCpuKernels(head.logits)) {
    head.tops = at::empty({rows()}, at::kFloat);
    head.sums = at::empty({rows()}, at::kDouble);
    const int64_t width = head.logits.size(1);
    const float* logits = head.logits.const_data_ptr<float>();
    float* tops = head.tops.mutable_data_ptr<float>();
    double* sums = head.sums.mutable_data_ptr<double>();
    cpu::ParallelFor(rows(), width < 4096 ? rows() : 1, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) sums[r] = cpu::SumOfExp(logits + r * width, width, &tops[r]);
    });
  } else {
    head.tops = std::get<0>(head.logits.max(-1));
    head.sums = at::exp(head.logits - head.tops.unsqueeze(1)).sum(-1, false, at::kDouble);
  }
  const at::Tensor above =
      (head.logits.index({target_rows_, target_tokens_}) - head.tops.index_select(0, target_rows_));
  return ToFloats(above.to(at::kDouble) - head.sums.log().index_select(0, target_rows_));
}

// dlogits of a row = sum over its targets of dJ/dlogp * (onehot - p), written over the logits.
at::Tensor NeighborLoss::HeadBackward(const at::Tensor& hidden, Head& head, const std::vector<float>& dlogprobs) const {
  const at::Tensor coefficients = at::tensor(at::ArrayRef<float>(dlogprobs), at::kFloat).to(hidden.device());
  const at::Tensor row_sums = at::zeros({rows()}, coefficients.options()).index_add_(0, target_rows_, coefficients);
  if (OnCpuKernels(head.logits)) {
    const int64_t width = head.logits.size(1);
    float* logits = head.logits.mutable_data_ptr<float>();
    const float *tops = head.tops.const_data_ptr<float>(), *totals = row_sums.const_data_ptr<float>();
    const double* sums = head.sums.const_data_ptr<double>();
    cpu::ParallelFor(rows(), width < 4096 ? rows() : 1, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        cpu::ScaledExpInPlace(logits + r * width, width, tops[r], static_cast<float>(-totals[r] / sums[r]));
      }
    });
  } else {
    head.logits.sub_(head.tops.unsqueeze(1)).exp_().mul_((-row_sums / head.sums).to(at::kFloat).unsqueeze(1));
  }
  head.logits.index_put_({target_rows_, target_tokens_}, coefficients, /*accumulate=*/true);
  if (model_.config().logits_divisor != 1) head.logits.div_(model_.config().logits_divisor);
  const at::Tensor dnormed = MatMul(head.logits.to(hidden.scalar_type()), head_);
  return RmsNormBackward(dnormed, hidden, model_.weights().final_norm, model_.config().rms_norm_eps);
}

void NeighborLoss::Backward(const RoutingOverride& routing, const std::vector<LayerTape>& tapes, at::Tensor dhidden,
                            Pathway& gradient) {
  const ModelConfig& config = model_.config();
  int moe = model_.shape().moe_layers - 1;
  for (int l = config.layers - 1; l >= entry_; --l) {
    const LayerTape& tape = tapes[l - entry_];
    const LayerWeights& weights = model_.weights().layers[l];
    const at::Tensor doutput = AddBlockBackward(dhidden, config);
    at::Tensor dweights, dnormed;
    if (l == entry_) {
      dweights = FirstLayerGradient(doutput);
      if (tape.mixing.selected_mask.defined()) dweights = dweights * tape.mixing.selected_mask;
    } else {
      dnormed = FeedForwardBackward(doutput, tape.normed, tape.mixing, weights, tape.feed_forward, dweights);
    }
    if (weights.router.defined()) {
      const at::Tensor dlogits = RoutingBackward(routing, moe--, tape.mixing, dweights, gradient);
      if (l == entry_) return;
      dnormed = dnormed + MatMul(dlogits.to(dnormed.scalar_type()), weights.router);
    }
    const at::Tensor dmiddle = dhidden + RmsNormBackward(dnormed, tape.middle, weights.moe_norm, config.rms_norm_eps);
    const TreeAttention::Gradients qkv =
        attention_->Backward(MatMul(AddBlockBackward(dmiddle, config), weights.output), tape.attention,
                             prefix_keys_[l - entry_], prefix_values_[l - entry_]);
    const at::Tensor dattention =
        ProjectAttentionBackward(qkv.q, qkv.k, qkv.v, tape.projections, weights, config, rope_);
    dhidden = dmiddle + RmsNormBackward(dattention, tape.input, weights.attention_norm, config.rms_norm_eps);
  }
}

at::Tensor NeighborLoss::RoutingBackward(const RoutingOverride& routing, int moe_layer, const Mixing& mixing,
                                         const at::Tensor& dweights, Pathway& gradient) const {
  const bool shift = routing.kind == RoutingOverride::Kind::kLogitShift;
  const at::Tensor dprobabilities = MixingBackward(dweights, mixing, model_.config());
  const at::Tensor dlogits = SoftmaxBackward(dprobabilities, mixing.probabilities);
  const auto found = std::lower_bound(routing.layers.begin(), routing.layers.end(), moe_layer);
  if (found == routing.layers.end() || *found != moe_layer) return dlogits;
  const at::Tensor per_row = (shift ? dlogits : dprobabilities) * overridden_;
  const std::vector<float> sums = ToFloats(per_row.sum(0));
  std::copy(sums.begin(), sums.end(), gradient.Row(static_cast<int>(found - routing.layers.begin())).begin());
  return shift ? dlogits : dlogits * overridden_.logical_not();  // Replaced weights do not look at the router.
}

absl::StatusOr<double> NeighborLoss::Evaluate(const RoutingOverride& routing, Pathway* gradient) {
  const ModelConfig& config = model_.config();
  if (routing.layers.empty() || routing.layers.front() < first_layer_ || routing.values.experts != config.experts ||
      routing.values.layers != static_cast<int>(routing.layers.size())) {
    return absl::InvalidArgumentError("the override's layers or shape are not those of the objective");
  }
  try {
    const c10::InferenceMode inference;
    std::vector<LayerTape> tapes(config.layers - entry_);
    const at::Tensor hidden = Forward(routing, tapes);
    Head head;
    std::vector<float> dlogprobs;
    const double loss = Loss(ReadHead(hidden, head), dlogprobs);
    if (!std::isfinite(loss)) return absl::InternalError("the neighbors' loss is not finite");
    if (gradient != nullptr) {
      *gradient = Pathway(routing.values.layers, routing.values.experts);
      Backward(routing, tapes, HeadBackward(hidden, head, dlogprobs), *gradient);
    }
    return loss;
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("neighbor loss: ", error.what()));
  }
}

}  // namespace c3po
