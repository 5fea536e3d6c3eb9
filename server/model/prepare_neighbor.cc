// Makes a neighbor's fixed states: the prompt before what moves of it, and the rows of the answer tree below, climb
// together to the first critical layer, each weight read once for both. There the tree stops; the prompt goes on to the
// keys and values of the last layer.

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/model/causal_attention.h"
#include "server/model/matrix_product.h"
#include "server/model/moe_model.h"
#include "server/model/tree_attention.h"

namespace c3po {
namespace {

absl::Status CheckCase(const NeighborCase& neighbor, const MovingPart& moving, const ModelShape& shape) {
  if (moving.first_layer < 0 || moving.first_layer >= shape.moe_layers) {
    return absl::InvalidArgumentError(
        absl::StrCat("first critical layer ", moving.first_layer, " is not an MoE layer of the model"));
  }
  if (moving.prompt_positions < 1) return absl::InvalidArgumentError("prompt positions that move must be at least 1");
  if (neighbor.prompt.empty() || neighbor.continuations.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("reference ", neighbor.reference_id, ": empty prompt or no answer"));
  }
  const auto known = [&](int32_t token) { return token >= 0 && token < shape.vocabulary_size; };
  bool all_known = std::all_of(neighbor.prompt.begin(), neighbor.prompt.end(), known);
  size_t longest = 0;
  for (const auto& continuation : neighbor.continuations) {
    if (continuation.empty())
      return absl::InvalidArgumentError(absl::StrCat("reference ", neighbor.reference_id, ": empty answer"));
    longest = std::max(longest, continuation.size());
    all_known = all_known && std::all_of(continuation.begin(), continuation.end(), known);
  }
  if (!all_known) {
    return absl::InvalidArgumentError(absl::StrCat(
        "reference ", neighbor.reference_id, ": a token id is outside the vocabulary of ", shape.vocabulary_size));
  }
  if (neighbor.prompt.size() + longest > static_cast<size_t>(shape.context_window)) {
    return absl::InvalidArgumentError(
        absl::StrCat("reference ", neighbor.reference_id, " is longer than the context window"));
  }
  return absl::OkStatus();
}

class Preparation final : public NeighborPreparation {
 public:
  Preparation(const MoeModel& model, NeighborCache& cache, std::string key, const NeighborCase& neighbor,
              const MovingPart& moving)
      : model_(model), cache_(cache), key_(std::move(key)), reference_id_(neighbor.reference_id) {
    const c10::InferenceMode inference;
    const ModelConfig& config = model.config();
    const absl::Span<const int32_t> prompt(neighbor.prompt);
    const size_t moved = std::min(prompt.size(), static_cast<size_t>(moving.prompt_positions));
    prefix_ = static_cast<int64_t>(prompt.size() - moved);
    entry_ = config.moe_layers[moving.first_layer];
    state_->first_layer = moving.first_layer;
    state_->prefix_length = static_cast<int>(prefix_);
    state_->tree = AnswerTree::Build(prompt.subspan(prompt.size() - moved), neighbor.continuations);
    const at::TensorOptions options = model.tensor_options();
    std::vector<int64_t> positions(prefix_), tokens(prompt.begin(), prompt.begin() + prefix_);
    std::iota(positions.begin(), positions.end(), int64_t{0});
    tokens.insert(tokens.end(), state_->tree.tokens.begin(), state_->tree.tokens.end());
    for (int depth : state_->tree.depths) positions.push_back(prefix_ + depth);
    rope_ = model.rope().Select(at::tensor(positions, at::kLong).to(options.device()), options.dtype().toScalarType());
    const AnswerTree* tree = &state_->tree;
    attention_ = std::make_unique<TreeAttention>(absl::MakeConstSpan(&tree, 1),
                                                 std::vector<int>{static_cast<int>(prefix_)}, config, options);
    const int64_t upper = config.layers - entry_;
    state_->keys = at::empty({upper, config.kv_heads, prefix_, config.head_dim}, options);
    state_->values = at::empty({upper, config.kv_heads, prefix_, config.value_dim}, options);
    hidden_ = model.Embed(tokens);
  }

  absl::StatusOr<bool> Advance(int64_t row_layers) override {
    try {
      const c10::InferenceMode inference;
      for (const int64_t before = spent_; spent_ - before < row_layers;) {
        spent_ += hidden_.size(0);
        if (!RunLayer()) continue;
        hidden_ = at::Tensor();
        attention_.reset();
        cache_.Insert(key_, state_);
        return true;
      }
      return false;
    } catch (const std::exception& error) {
      return absl::InternalError(absl::StrCat("preparing reference ", reference_id_, ": ", error.what()));
    }
  }

  int64_t spent() const override { return spent_; }
  std::shared_ptr<const NeighborState> state() const override { return state_; }

 private:
  // The tree's rows stop where they enter the first critical layer; the prompt's go on alone.
  void LeaveTree() {
    state_->entry_hidden = hidden_.narrow(0, prefix_, state_->tree.rows()).clone();
    if (prefix_ == 0) return;
    hidden_ = hidden_.narrow(0, 0, prefix_).contiguous();
    rope_ = {rope_.cos.narrow(0, 0, prefix_), rope_.sin.narrow(0, 0, prefix_)};
  }

  // True when nobody reads further.
  bool RunLayer() {
    const ModelConfig& config = model_.config();
    if (layer_ == entry_) LeaveTree();
    if (layer_ == entry_ && prefix_ == 0) return true;
    const LayerWeights& layer = model_.weights().layers[layer_];
    const Projections rows =
        ProjectAttention(RmsNorm(hidden_, layer.attention_norm, config.rms_norm_eps), layer, config, rope_);
    at::Tensor keys = rows.k.narrow(0, 0, prefix_).transpose(0, 1).contiguous();
    at::Tensor values = rows.v.narrow(0, 0, prefix_).transpose(0, 1).contiguous();
    if (layer_ >= entry_) {
      state_->keys.select(0, layer_ - entry_).copy_(keys);
      state_->values.select(0, layer_ - entry_).copy_(values);
      if (layer_ + 1 == config.layers) return true;
    }
    std::vector<at::Tensor> contexts;
    if (prefix_ > 0) contexts.push_back(CausalAttention(rows.q.narrow(0, 0, prefix_), keys, values, 0, config));
    if (layer_ < entry_) {
      const int64_t tree_rows = state_->tree.rows();
      const Projections own{rows.q.narrow(0, prefix_, tree_rows),
                            rows.k.narrow(0, prefix_, tree_rows),
                            rows.v.narrow(0, prefix_, tree_rows),
                            {}};
      contexts.push_back(attention_->Forward(own, keys.unsqueeze(0), values.unsqueeze(0), nullptr));
    }
    const at::Tensor context = contexts.size() == 1 ? contexts[0] : at::cat(contexts);
    hidden_ = AddBlock(hidden_, Project(context, layer.output, layer.output_bias), config);
    const at::Tensor normed = RmsNorm(hidden_, layer.moe_norm, config.rms_norm_eps);
    const Mixing mixing = layer.router.defined() ? MixExperts(normed, layer, config, {}) : Mixing();
    hidden_ = AddBlock(hidden_, RunFeedForward(normed, mixing, layer, nullptr), config);
    ++layer_;
    return false;
  }

  const MoeModel& model_;
  NeighborCache& cache_;
  const std::string key_, reference_id_;
  int64_t prefix_ = 0;
  int entry_ = 0;  // decoder layer of the first critical one
  int layer_ = 0;  // the next
  int64_t spent_ = 0;
  RopeTable rope_;
  std::unique_ptr<TreeAttention> attention_;
  at::Tensor hidden_;
  const std::shared_ptr<MoeNeighborState> state_ = std::make_shared<MoeNeighborState>();
};

}  // namespace

absl::StatusOr<std::unique_ptr<NeighborPreparation>> MoeModel::NewPreparation(const NeighborCase& neighbor,
                                                                              const MovingPart& moving) {
  C3PO_RETURN_IF_ERROR(CheckCase(neighbor, moving, shape_));
  std::string key = NeighborCache::KeyOf(neighbor, moving);
  if (auto known = neighbor_cache_.Find(key)) {
    return std::unique_ptr<NeighborPreparation>(std::make_unique<KnownNeighbor>(std::move(known)));
  }
  try {
    return std::unique_ptr<NeighborPreparation>(
        std::make_unique<Preparation>(*this, neighbor_cache_, std::move(key), neighbor, moving));
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("preparing reference ", neighbor.reference_id, ": ", error.what()));
  }
}

}  // namespace c3po
