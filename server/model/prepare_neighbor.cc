// Makes a neighbor's fixed states: one forward pass over its prompt but the last token fills a cache, whose upper
// layers are kept; then the rows of the answer tree climb to the first critical layer, where they stop.

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/model/matrix_product.h"
#include "server/model/moe_model.h"
#include "server/model/tree_attention.h"

namespace c3po {
namespace {

absl::Status CheckCase(const NeighborCase& neighbor, int first_layer, const ModelShape& shape) {
  if (first_layer < 0 || first_layer >= shape.layers) {
    return absl::InvalidArgumentError(
        absl::StrCat("first critical layer ", first_layer, " is not a layer of the model"));
  }
  if (neighbor.prompt.empty() || neighbor.continuations.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("reference ", neighbor.reference_id, ": empty prompt or no answer"));
  }
  size_t longest = 0;
  for (const auto& continuation : neighbor.continuations) {
    if (continuation.empty())
      return absl::InvalidArgumentError(absl::StrCat("reference ", neighbor.reference_id, ": empty answer"));
    longest = std::max(longest, continuation.size());
  }
  if (neighbor.prompt.size() + longest > static_cast<size_t>(shape.context_window)) {
    return absl::InvalidArgumentError(
        absl::StrCat("reference ", neighbor.reference_id, " is longer than the context window"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::shared_ptr<const NeighborState>> MoeModel::PrepareNeighbor(const NeighborCase& neighbor,
                                                                               int first_layer) {
  C3PO_RETURN_IF_ERROR(CheckCase(neighbor, first_layer, shape_));
  const std::string key = NeighborCache::KeyOf(neighbor, first_layer);
  if (auto known = neighbor_cache_.Find(key)) return std::shared_ptr<const NeighborState>(std::move(known));

  const int prefix = static_cast<int>(neighbor.prompt.size()) - 1;
  C3PO_ASSIGN_OR_RETURN(const std::unique_ptr<SequenceCache> sequence, NewSequence(std::max(prefix, 1)));
  if (prefix > 0) {
    Segment segment;
    segment.cache = sequence.get();
    segment.tokens.assign(neighbor.prompt.begin(), neighbor.prompt.end() - 1);
    C3PO_RETURN_IF_ERROR(Forward({segment}).status());
  }
  const auto& cache = static_cast<const KvCache&>(*sequence);
  try {
    const c10::InferenceMode inference;
    auto state = std::make_shared<MoeNeighborState>();
    state->first_layer = first_layer;
    state->prompt_length = prefix + 1;
    state->tree = AnswerTree::Build(neighbor.prompt.back(), neighbor.continuations);
    const at::TensorOptions options = tensor_options();
    std::vector<int64_t> positions, tokens(state->tree.tokens.begin(), state->tree.tokens.end());
    for (int depth : state->tree.depths) positions.push_back(prefix + depth);
    const RopeTable rope =
        rope_.Select(at::tensor(positions, at::kLong).to(options.device()), options.dtype().toScalarType());
    const AnswerTree* tree = &state->tree;
    const TreeAttention attention({tree}, {prefix}, config_, options);
    at::Tensor hidden = weights_.embedding.index_select(0, at::tensor(tokens, at::kLong).to(options.device()));
    for (int l = 0; l < first_layer; ++l) {
      const LayerWeights& layer = weights_.layers[l];
      const at::Tensor normed = RmsNorm(hidden, layer.attention_norm, config_.rms_norm_eps);
      const at::Tensor context = attention.Forward(
          ProjectAttention(normed, layer, config_, rope), cache.keys.select(0, l).narrow(1, 0, prefix).unsqueeze(0),
          cache.values.select(0, l).narrow(1, 0, prefix).unsqueeze(0), nullptr);
      hidden = hidden + MatMulTransposed(context, layer.output);
      const at::Tensor moe_input = RmsNorm(hidden, layer.moe_norm, config_.rms_norm_eps);
      hidden = hidden + RunExperts(moe_input, MixExperts(moe_input, layer, config_, {}), layer, nullptr);
    }
    state->entry_hidden = hidden;
    const int64_t upper = config_.layers - first_layer;
    state->keys = cache.keys.narrow(0, first_layer, upper).narrow(2, 0, prefix).clone(at::MemoryFormat::Contiguous);
    state->values = cache.values.narrow(0, first_layer, upper).narrow(2, 0, prefix).clone(at::MemoryFormat::Contiguous);
    neighbor_cache_.Insert(key, state);
    return std::shared_ptr<const NeighborState>(std::move(state));
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("preparing reference ", neighbor.reference_id, ": ", error.what()));
  }
}

}  // namespace c3po
