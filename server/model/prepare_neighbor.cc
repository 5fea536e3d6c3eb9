// Makes a neighbor's fixed states: the prompt before what moves of it, and the rows of the answer tree below, climb
// together to the first critical layer, each weight read once for both. There the tree stops; the prompt goes on to the
// keys and values of the last layer.

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <numeric>

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

}  // namespace

absl::StatusOr<std::shared_ptr<const NeighborState>> MoeModel::PrepareNeighbor(const NeighborCase& neighbor,
                                                                               const MovingPart& moving) {
  C3PO_RETURN_IF_ERROR(CheckCase(neighbor, moving, shape_));
  const std::string key = NeighborCache::KeyOf(neighbor, moving);
  if (auto known = neighbor_cache_.Find(key)) return std::shared_ptr<const NeighborState>(std::move(known));

  const absl::Span<const int32_t> prompt(neighbor.prompt);
  const size_t moved = std::min(prompt.size(), static_cast<size_t>(moving.prompt_positions));
  const auto prefix = static_cast<int64_t>(prompt.size() - moved);
  const int entry = config_.moe_layers[moving.first_layer];
  try {
    const c10::InferenceMode inference;
    auto state = std::make_shared<MoeNeighborState>();
    state->first_layer = moving.first_layer;
    state->prefix_length = static_cast<int>(prefix);
    state->tree = AnswerTree::Build(prompt.subspan(prompt.size() - moved), neighbor.continuations);
    const at::TensorOptions options = tensor_options();
    const int64_t tree_rows = state->tree.rows(), upper = config_.layers - entry;
    std::vector<int64_t> positions(prefix), tokens(prompt.begin(), prompt.begin() + prefix);
    std::iota(positions.begin(), positions.end(), int64_t{0});
    tokens.insert(tokens.end(), state->tree.tokens.begin(), state->tree.tokens.end());
    for (int depth : state->tree.depths) positions.push_back(prefix + depth);
    RopeTable rope =
        rope_.Select(at::tensor(positions, at::kLong).to(options.device()), options.dtype().toScalarType());
    const AnswerTree* tree = &state->tree;
    const TreeAttention attention({tree}, {static_cast<int>(prefix)}, config_, options);
    state->keys = at::empty({upper, config_.kv_heads, prefix, config_.head_dim}, options);
    state->values = at::empty({upper, config_.kv_heads, prefix, config_.value_dim}, options);
    at::Tensor hidden = Embed(tokens);
    for (int l = 0; l < config_.layers; ++l) {
      if (l == entry) {
        state->entry_hidden = hidden.narrow(0, prefix, tree_rows).clone();
        if (prefix == 0) break;
        hidden = hidden.narrow(0, 0, prefix).contiguous();
        rope = {rope.cos.narrow(0, 0, prefix), rope.sin.narrow(0, 0, prefix)};
      }
      const LayerWeights& layer = weights_.layers[l];
      const Projections rows =
          ProjectAttention(RmsNorm(hidden, layer.attention_norm, config_.rms_norm_eps), layer, config_, rope);
      at::Tensor keys = rows.k.narrow(0, 0, prefix).transpose(0, 1).contiguous();
      at::Tensor values = rows.v.narrow(0, 0, prefix).transpose(0, 1).contiguous();
      if (l >= entry) {
        state->keys.select(0, l - entry).copy_(keys);
        state->values.select(0, l - entry).copy_(values);
        if (l + 1 == config_.layers) break;  // Nobody reads further.
      }
      std::vector<at::Tensor> contexts;
      if (prefix > 0) contexts.push_back(CausalAttention(rows.q.narrow(0, 0, prefix), keys, values, 0, config_));
      if (l < entry) {
        const Projections own{rows.q.narrow(0, prefix, tree_rows),
                              rows.k.narrow(0, prefix, tree_rows),
                              rows.v.narrow(0, prefix, tree_rows),
                              {}};
        contexts.push_back(attention.Forward(own, keys.unsqueeze(0), values.unsqueeze(0), nullptr));
      }
      const at::Tensor context = contexts.size() == 1 ? contexts[0] : at::cat(contexts);
      hidden = AddBlock(hidden, Project(context, layer.output, layer.output_bias), config_);
      const at::Tensor normed = RmsNorm(hidden, layer.moe_norm, config_.rms_norm_eps);
      const Mixing mixing = layer.router.defined() ? MixExperts(normed, layer, config_, {}) : Mixing();
      hidden = AddBlock(hidden, RunFeedForward(normed, mixing, layer, nullptr), config_);
    }
    neighbor_cache_.Insert(key, state);
    return std::shared_ptr<const NeighborState>(std::move(state));
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("preparing reference ", neighbor.reference_id, ": ", error.what()));
  }
}

}  // namespace c3po
