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
#include "server/compute/aten/reference_states.h"
#include "server/compute/aten/row_operations.h"

namespace c3po::aten {
namespace {

struct PromptsAndTrees final : PreparationRows {
  struct Neighbor {
    PaddedTrees tree;
    int64_t prefix;
  };
  std::vector<Neighbor> neighbors;
  int64_t prompt_rows = 0, tree_rows = 0;
  RopeTensors rope;  // of the prompts' rows, then of the trees'
};

// Trees that attend in one product, and where the prompts before them lie.
struct TreeGroup {
  PaddedTrees trees;
  at::Tensor rows;                     // int64, of the rows of all groups
  std::vector<PaddedPrompts> prompts;  // per layer from first_layer on
};

struct TreesOverPrompts final : PackedTrees {
  std::vector<std::shared_ptr<const ReferenceStates>> states;  // kept for the groups
  std::vector<TreeGroup> groups;
  int64_t rows = 0;
  RopeTensors rope;     // of the rows
  int first_layer = 0;  // from which on all cases have states

  const PaddedPrompts& Prompts(const TreeGroup& group, int layer) const {
    TORCH_CHECK(layer >= first_layer, "the references have no states in layer ", layer);
    return group.prompts.at(static_cast<size_t>(layer - first_layer));
  }

  // The context of the rows, [rows, heads * value_dim].
  at::Tensor Attend(int layer, const Projections& own) const {
    std::vector<at::Tensor> parts;
    for (const TreeGroup& group : groups) {
      const PaddedPrompts& prompts = Prompts(group, layer);
      parts.push_back(group.trees.Forward(RowsOf(group, own), prompts.Keys(), prompts.Values()));
    }
    return InOrder(parts);
  }
  PaddedTrees::Gradients Backward(int layer, const at::Tensor& dcontext, const Projections& own) const {
    std::vector<at::Tensor> dq, dk, dv;
    for (const TreeGroup& group : groups) {
      const PaddedPrompts& prompts = Prompts(group, layer);
      const at::Tensor of_group = groups.size() == 1 ? dcontext : dcontext.index_select(0, group.rows);
      PaddedTrees::Gradients part =
          group.trees.Backward(of_group, RowsOf(group, own), prompts.Keys(), prompts.Values());
      dq.push_back(std::move(part.q));
      dk.push_back(std::move(part.k));
      dv.push_back(std::move(part.v));
    }
    return {InOrder(dq), InOrder(dk), InOrder(dv)};
  }

 private:
  Projections RowsOf(const TreeGroup& group, const Projections& own) const {
    return groups.size() == 1 ? own : own.Select(group.rows);
  }
  // The groups' rows as the rows lie.
  at::Tensor InOrder(const std::vector<at::Tensor>& parts) const {
    if (parts.size() == 1) return parts[0];
    std::vector<int64_t> sizes = parts[0].sizes().vec();
    sizes[0] = rows;
    const at::Tensor all = at::empty(sizes, parts[0].options());
    for (size_t i = 0; i < parts.size(); ++i) all.index_copy_(0, groups[i].rows, parts[i]);
    return all;
  }
};

struct AttentionTape final : Tape {
  at::Tensor input;  // [R, d]
  RopeTensors rope;
  Projections projections;
};

const TreesOverPrompts& CastTrees(const PackedTrees* rows) { return static_cast<const TreesOverPrompts&>(*rows); }

const AtenReferenceStates* CastStates(const ReferenceStates* states) {
  return static_cast<const AtenReferenceStates*>(states);
}

RopeTensors JoinRopes(absl::Span<const PackedTrees* const> trees) {
  std::vector<at::Tensor> cos, sin;
  for (const PackedTrees* rows : trees) {
    cos.push_back(CastTrees(rows).rope.cos);
    sin.push_back(CastTrees(rows).rope.sin);
  }
  return {Join(cos), Join(sin)};
}

// Of the cases `members`, whose first rows are at first_row.
TreeGroup MakeGroup(absl::Span<const TreeCase> cases, absl::Span<const size_t> members,
                    absl::Span<const int64_t> first_row, int first_layer, const ModelConfig& config,
                    const at::TensorOptions& options) {
  std::vector<TreeShape> shapes;
  std::vector<const AtenReferenceStates*> states;
  std::vector<int64_t> rows;
  for (const size_t s : members) {
    shapes.push_back(cases[s].shape);
    states.push_back(CastStates(cases[s].states.get()));
    for (int64_t m = 0; m < cases[s].shape.rows(); ++m) rows.push_back(first_row[s] + m);
  }
  TreeGroup group{PaddedTrees(shapes, config, options), Upload(rows, options.device()), {}};
  for (int l = first_layer; l < config.layers; ++l) {
    group.prompts.emplace_back(config, states, l, group.trees.prefix_max(), options);
  }
  return group;
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

void AtenBackend::LimitReferenceStates(int64_t bytes) { states_ = MakeStatePool(config_, kv_options_, bytes); }

int64_t AtenBackend::reference_bytes_in_use() const { return states_->blocks_in_use() * states_->block_bytes(); }

std::shared_ptr<ReferenceStates> AtenBackend::NewReferenceStates(int first_layer, int64_t positions, int64_t tree_rows,
                                                                 absl::FunctionRef<bool(int64_t bytes)> drop) {
  const c10::InferenceMode inference;
  TORCH_CHECK(first_layer >= 0 && first_layer < config_.layers, "the model has no layer ", first_layer);
  return std::make_shared<AtenReferenceStates>(config_, info_, states_, first_layer, positions, tree_rows, drop);
}

void AtenBackend::StoreTree(const Matrix& hidden, ReferenceStates& states) {
  const c10::InferenceMode inference;
  auto& own = static_cast<AtenReferenceStates&>(states);
  TORCH_CHECK(hidden.rows == own.tree_rows() && hidden.columns == config_.hidden_size, "these are not the tree's rows");
  own.StoreTree(TensorOf(hidden, device()));
}

void AtenBackend::LoadTree(const ReferenceStates& states, Matrix hidden) {
  const c10::InferenceMode inference;
  const auto& own = static_cast<const AtenReferenceStates&>(states);
  TORCH_CHECK(hidden.rows == own.tree_rows() && hidden.columns == config_.hidden_size, "these are not the tree's rows");
  own.LoadTree(TensorOf(hidden, device()));
}

std::unique_ptr<PreparationRows> AtenBackend::NewPreparationRows(absl::Span<const TreeShape> trees) {
  const c10::InferenceMode inference;
  auto rows = std::make_unique<PromptsAndTrees>();
  std::vector<int64_t> positions;
  for (const TreeShape& tree : trees) {
    rows->neighbors.push_back({PaddedTrees({&tree, 1}, config_, options_), tree.prefix});
    rows->prompt_rows += tree.prefix;
    rows->tree_rows += tree.rows();
    for (int64_t p = 0; p < tree.prefix; ++p) positions.push_back(p);
  }
  for (const TreeShape& tree : trees) {
    for (int depth : tree.depths) positions.push_back(tree.prefix + depth);
  }
  rows->rope = RopeAt(positions);
  return rows;
}

// Products take all rows; each neighbor attends by itself.
void AtenBackend::PreparationAttention(int l, const PreparationRows& rows, absl::Span<ReferenceStates* const> states,
                                       bool states_only, Matrix hidden) {
  const c10::InferenceMode inference;
  const auto& all = static_cast<const PromptsAndTrees&>(rows);
  const LayerWeights& weights = layer(l);
  const at::Tensor x = TensorOf(hidden, device());
  const int64_t count = x.size(0), of_trees = count - all.prompt_rows;
  TORCH_CHECK(of_trees == 0 || of_trees == all.tree_rows, "these are not the prompts' rows, nor the trees' with them");
  TORCH_CHECK(states.empty() || states.size() == all.neighbors.size(), "these are not the states of all prompts");
  const RopeTensors rope = {all.rope.cos.narrow(0, 0, count), all.rope.sin.narrow(0, 0, count)};
  const Projections own =
      ProjectAttention(RmsNorm(x, weights.attention_norm, config_.rms_norm_eps), weights, config_, rope);
  std::vector<at::Tensor> of_prompts, contexts;
  int64_t row = 0, tree_row = all.prompt_rows;
  for (size_t i = 0; i < all.neighbors.size(); ++i) {
    const PromptsAndTrees::Neighbor& neighbor = all.neighbors[i];
    const int64_t prefix = neighbor.prefix;
    // Rounded as they are kept, whoever reads them.
    const at::ScalarType kept_type = kv_options_.dtype().toScalarType();
    const at::Tensor k = own.k.narrow(0, row, prefix).to(kept_type), v = own.v.narrow(0, row, prefix).to(kept_type);
    if (!states.empty()) {
      auto& kept = static_cast<AtenReferenceStates&>(*states[i]);
      TORCH_CHECK(kept.positions() == prefix, "a reference's states have another length");
      kept.Store(l, k, v);
    }
    if (!states_only) {
      const auto widened = [&own](const at::Tensor& x) {
        return x.transpose(0, 1).to(own.q.scalar_type()).contiguous();
      };
      const at::Tensor keys = widened(k), values = widened(v);
      if (prefix > 0) of_prompts.push_back(CausalAttention(own.q.narrow(0, row, prefix), keys, values, 0, config_));
      if (of_trees > 0) {
        const int64_t moving = neighbor.tree.rows();
        contexts.push_back(neighbor.tree.Forward(own.Rows(tree_row, moving), keys.unsqueeze(0), values.unsqueeze(0)));
        tree_row += moving;
      }
    }
    row += prefix;
  }
  if (states_only) return;
  contexts.insert(contexts.begin(), of_prompts.begin(), of_prompts.end());
  AddBlockInPlace(x, Project(Join(contexts), weights.output, weights.output_bias), config_);
}

std::unique_ptr<PackedTrees> AtenBackend::PackTrees(absl::Span<const TreeCase> cases) {
  const c10::InferenceMode inference;
  auto rows = std::make_unique<TreesOverPrompts>();
  std::vector<TreeShape> shapes;
  std::vector<int64_t> positions, first_row;
  for (const TreeCase& one : cases) {
    const AtenReferenceStates* const states = CastStates(one.states.get());
    TORCH_CHECK((states ? states->positions() : 0) == one.shape.prefix, "a reference's states have another length");
    if (states) rows->first_layer = std::max(rows->first_layer, states->first_layer());
    rows->states.push_back(one.states);
    shapes.push_back(one.shape);
    first_row.push_back(rows->rows);
    rows->rows += one.shape.rows();
    for (int depth : one.shape.depths) positions.push_back(one.shape.prefix + depth);
  }
  rows->rope = RopeAt(positions);
  for (const std::vector<size_t>& members : GroupTrees(shapes)) {
    rows->groups.push_back(MakeGroup(cases, members, first_row, rows->first_layer, config_, options_));
  }
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
  std::vector<at::Tensor> contexts;
  int64_t row = 0;
  for (const PackedTrees* packed : trees) {
    const TreesOverPrompts& own = CastTrees(packed);
    contexts.push_back(own.Attend(l, tape->projections.Rows(row, own.rows)));
    row += own.rows;
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
  for (const PackedTrees* packed : trees) {
    const TreesOverPrompts& rows = CastTrees(packed);
    PaddedTrees::Gradients own =
        rows.Backward(l, dcontext.narrow(0, row, rows.rows), tape.projections.Rows(row, rows.rows));
    dq.push_back(std::move(own.q));
    dk.push_back(std::move(own.k));
    dv.push_back(std::move(own.v));
    row += rows.rows;
  }
  const at::Tensor dattention =
      ProjectAttentionBackward(Join(dq), Join(dk), Join(dv), tape.projections, weights, config_, tape.rope);
  return MatrixOf(dmiddle + RmsNormBackward(dattention, tape.input, weights.attention_norm, config_.rms_norm_eps));
}

}  // namespace c3po::aten
