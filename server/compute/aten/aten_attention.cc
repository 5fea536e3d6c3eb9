// Attention: of running sequences over the cache, of a prompt with the tree below it, of trees over states.

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "server/compute/aten/aten_backend.h"
#include "server/compute/aten/matrix_tensors.h"
#include "server/compute/aten/padded_trees.h"
#include "server/compute/aten/products.h"
#include "server/compute/aten/projections.h"
#include "server/compute/aten/row_operations.h"

namespace c3po::aten {
namespace {

struct StoredPrompt final : PromptStates {
  int64_t bytes() const override { return static_cast<int64_t>(keys.nbytes() + values.nbytes()); }

  int first_layer = 0;
  at::Tensor keys;    // [layers - first_layer, kv_heads, n, head_dim]
  at::Tensor values;  // likewise of value_dim
};

struct PromptAndTree final : PreparationRows {
  explicit PromptAndTree(PaddedTrees trees) : tree(std::move(trees)) {}

  PaddedTrees tree;
  int64_t prefix = 0;
  RopeTable rope;  // of all rows
};

struct TreesOverPrompts final : PackedTrees {
  explicit TreesOverPrompts(PaddedTrees padded) : trees(std::move(padded)) {}

  // Of the cases' prompts in a layer, [S, kv_heads, P, dim], padded to the longest one.
  const at::Tensor& Keys(int layer) const { return keys.at(IndexOf(layer)); }
  const at::Tensor& Values(int layer) const { return values.at(IndexOf(layer)); }

  PaddedTrees trees;
  RopeTable rope;       // of the rows
  int first_layer = 0;  // from which on all cases have states
  std::vector<at::Tensor> keys, values;

 private:
  size_t IndexOf(int layer) const {
    TORCH_CHECK(layer >= first_layer, "the prompts have no states in layer ", layer);
    return static_cast<size_t>(layer - first_layer);
  }
};

struct AttentionTape final : Tape {
  at::Tensor input;  // [R, d]
  RopeTable rope;
  Projections projections;
  std::vector<PaddedTrees::Tape> trees;
};

const TreesOverPrompts& CastTrees(const PackedTrees* rows) { return static_cast<const TreesOverPrompts&>(*rows); }

RopeTable JoinRopes(absl::Span<const PackedTrees* const> trees) {
  std::vector<at::Tensor> cos, sin;
  for (const PackedTrees* rows : trees) {
    cos.push_back(CastTrees(rows).rope.cos);
    sin.push_back(CastTrees(rows).rope.sin);
  }
  return {Join(cos), Join(sin)};
}

// Puts the prompts' keys and values, per layer, into rows of one length.
void PadPrompts(absl::Span<const TreeCase> cases, const ModelConfig& config, at::TensorOptions options,
                TreesOverPrompts& rows) {
  for (const TreeCase& one : cases) {
    const auto* states = static_cast<const StoredPrompt*>(one.prompt.get());
    TORCH_CHECK((states ? states->keys.size(2) : 0) == one.shape.prefix, "a prompt's states have another length");
    if (states) rows.first_layer = std::max(rows.first_layer, states->first_layer);
  }
  const int64_t count = rows.trees.cases(), prefix = rows.trees.prefix_max();
  for (int l = rows.first_layer; l < config.layers; ++l) {
    at::Tensor keys = at::zeros({count, config.kv_heads, prefix, config.head_dim}, options);
    at::Tensor values = at::zeros({count, config.kv_heads, prefix, config.value_dim}, options);
    for (int64_t s = 0; s < count; ++s) {
      const TreeCase& one = cases[static_cast<size_t>(s)];
      if (one.shape.prefix == 0) continue;
      const auto& states = static_cast<const StoredPrompt&>(*one.prompt);
      const int64_t own = l - states.first_layer;
      keys.select(0, s).narrow(1, 0, one.shape.prefix).copy_(states.keys.select(0, own));
      values.select(0, s).narrow(1, 0, one.shape.prefix).copy_(states.values.select(0, own));
    }
    rows.keys.push_back(std::move(keys));
    rows.values.push_back(std::move(values));
  }
}

}  // namespace

void AtenBackend::Attention(int l, Matrix hidden) {
  const c10::InferenceMode inference;
  TORCH_CHECK(keys_.defined(), "no cache was allocated");
  const LayerWeights& weights = layer(l);
  const at::Tensor x = TensorOf(hidden, device());
  TORCH_CHECK(x.size(0) == rows_.slots.size(0), "other rows were placed");
  const at::Tensor normed = RmsNorm(x, weights.attention_norm, config_.rms_norm_eps);
  const Projections own = ProjectAttention(normed, weights, config_, rows_rope_);
  const at::Tensor context =
      CachedAttention(own.q, own.k, own.v, rows_, keys_.select(0, l), values_.select(0, l), config_);
  AddBlockInPlace(x, Project(context, weights.output, weights.output_bias), config_);
}

std::shared_ptr<PromptStates> AtenBackend::NewPromptStates(int first_layer, int64_t positions) {
  const c10::InferenceMode inference;
  TORCH_CHECK(first_layer >= 0 && first_layer < config_.layers, "the model has no layer ", first_layer);
  const int64_t upper = config_.layers - first_layer;
  auto states = std::make_shared<StoredPrompt>();
  states->first_layer = first_layer;
  states->keys = at::empty({upper, config_.kv_heads, positions, config_.head_dim}, options_);
  states->values = at::empty({upper, config_.kv_heads, positions, config_.value_dim}, options_);
  return states;
}

std::unique_ptr<PreparationRows> AtenBackend::NewPreparationRows(const TreeShape& tree) {
  const c10::InferenceMode inference;
  auto rows = std::make_unique<PromptAndTree>(PaddedTrees({&tree, 1}, config_, options_));
  rows->prefix = tree.prefix;
  std::vector<int64_t> positions(static_cast<size_t>(tree.prefix));
  std::iota(positions.begin(), positions.end(), int64_t{0});
  for (int depth : tree.depths) positions.push_back(tree.prefix + depth);
  rows->rope = RopeAt(positions);
  return rows;
}

void AtenBackend::PreparationAttention(int l, const PreparationRows& rows, PromptStates* states, bool states_only,
                                       Matrix hidden) {
  const c10::InferenceMode inference;
  const auto& all = static_cast<const PromptAndTree&>(rows);
  const LayerWeights& weights = layer(l);
  const at::Tensor x = TensorOf(hidden, device());
  const int64_t count = x.size(0), prefix = all.prefix, of_tree = count - prefix;
  TORCH_CHECK(of_tree == 0 || of_tree == all.tree.rows(), "these are not the prompt's rows, nor the tree's with them");
  const RopeTable rope = {all.rope.cos.narrow(0, 0, count), all.rope.sin.narrow(0, 0, count)};
  const Projections own =
      ProjectAttention(RmsNorm(x, weights.attention_norm, config_.rms_norm_eps), weights, config_, rope);
  const at::Tensor keys = own.k.narrow(0, 0, prefix).transpose(0, 1).contiguous();
  const at::Tensor values = own.v.narrow(0, 0, prefix).transpose(0, 1).contiguous();
  if (states) {
    auto& stored = static_cast<StoredPrompt&>(*states);
    stored.keys.select(0, l - stored.first_layer).copy_(keys);
    stored.values.select(0, l - stored.first_layer).copy_(values);
  }
  if (states_only) return;
  std::vector<at::Tensor> contexts;
  if (prefix > 0) contexts.push_back(CausalAttention(own.q.narrow(0, 0, prefix), keys, values, 0, config_));
  if (of_tree > 0) {
    contexts.push_back(all.tree.Forward(own.Rows(prefix, of_tree), keys.unsqueeze(0), values.unsqueeze(0), nullptr));
  }
  AddBlockInPlace(x, Project(Join(contexts), weights.output, weights.output_bias), config_);
}

std::unique_ptr<PackedTrees> AtenBackend::PackTrees(absl::Span<const TreeCase> cases) {
  const c10::InferenceMode inference;
  std::vector<TreeShape> shapes;
  std::vector<int64_t> positions;
  for (const TreeCase& one : cases) {
    shapes.push_back(one.shape);
    for (int depth : one.shape.depths) positions.push_back(one.shape.prefix + depth);
  }
  auto rows = std::make_unique<TreesOverPrompts>(PaddedTrees(shapes, config_, options_));
  rows->rope = RopeAt(positions);
  PadPrompts(cases, config_, options_, *rows);
  return rows;
}

OwnedMatrix AtenBackend::TreeAttention(int l, absl::Span<const PackedTrees* const> trees, const OwnedMatrix& hidden,
                                       std::unique_ptr<Tape>* tape_out) {
  const c10::InferenceMode inference;
  const LayerWeights& weights = layer(l);
  auto tape = std::make_unique<AttentionTape>();
  tape->input = TensorOf(hidden, device());
  tape->rope = JoinRopes(trees);
  tape->projections = ProjectAttention(RmsNorm(tape->input, weights.attention_norm, config_.rms_norm_eps), weights,
                                       config_, tape->rope);
  tape->trees.resize(trees.size());
  std::vector<at::Tensor> contexts;
  int64_t row = 0;
  for (size_t i = 0; i < trees.size(); ++i) {
    const TreesOverPrompts& own = CastTrees(trees[i]);
    contexts.push_back(own.trees.Forward(tape->projections.Rows(row, own.trees.rows()), own.Keys(l), own.Values(l),
                                         tape_out ? &tape->trees[i] : nullptr));
    row += own.trees.rows();
  }
  TORCH_CHECK(row == tape->input.size(0), "the trees have another number of rows");
  const at::Tensor out = AddBlock(tape->input, Project(Join(contexts), weights.output, weights.output_bias), config_);
  if (tape_out) *tape_out = std::move(tape);
  return MatrixOf(out);
}

OwnedMatrix AtenBackend::TreeAttentionBackward(int l, absl::Span<const PackedTrees* const> trees, const Tape& tape_,
                                               const OwnedMatrix& dout) {
  const c10::InferenceMode inference;
  const auto& tape = static_cast<const AttentionTape&>(tape_);
  const LayerWeights& weights = layer(l);
  const at::Tensor dmiddle = TensorOf(dout, device());
  const at::Tensor dcontext = MatMul(AddBlockBackward(dmiddle, config_), weights.output);
  std::vector<at::Tensor> dq, dk, dv;
  int64_t row = 0;
  for (size_t i = 0; i < trees.size(); ++i) {
    const TreesOverPrompts& rows = CastTrees(trees[i]);
    const at::Tensor own_dcontext = dcontext.narrow(0, row, rows.trees.rows());
    PaddedTrees::Gradients own = rows.trees.Backward(own_dcontext, tape.trees.at(i), rows.Keys(l), rows.Values(l));
    dq.push_back(std::move(own.q));
    dk.push_back(std::move(own.k));
    dv.push_back(std::move(own.v));
    row += rows.trees.rows();
  }
  const at::Tensor dattention =
      ProjectAttentionBackward(Join(dq), Join(dk), Join(dv), tape.projections, weights, config_, tape.rope);
  return MatrixOf(dmiddle + RmsNormBackward(dattention, tape.input, weights.attention_norm, config_.rms_norm_eps));
}

}  // namespace c3po::aten
