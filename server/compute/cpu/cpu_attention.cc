// The attention blocks: of running sequences on the paged cache, of a neighbor that is prepared, and of an objective's
// trees, up and down.

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "server/compute/cpu/cpu_backend.h"
#include "server/compute/cpu/row_operations.h"

namespace c3po::cpu {
namespace {

void Check(bool right, const char* what) {
  if (!right) throw std::invalid_argument(what);
}

// Adds a tree's rows: case s, whose first packed row is the number of rows so far.
void AppendTree(const TreeShape& shape, TreeRows& packed) {
  if (packed.case_begin.empty()) {
    packed.case_begin.push_back(0);
    packed.ancestor_begin.push_back(0);
    packed.column_begin.push_back(0);
  }
  const int64_t first = packed.case_begin.back();
  packed.prefix_lengths.push_back(shape.prefix);
  for (int64_t m = 0; m < shape.rows(); ++m) {
    for (int64_t a = m; a >= 0; a = shape.parents[a]) packed.ancestors.push_back(first + a);
    const auto end = static_cast<int64_t>(packed.ancestors.size());
    packed.column_begin.push_back(packed.column_begin.back() + shape.prefix + end - packed.ancestor_begin.back());
    packed.ancestor_begin.push_back(end);
  }
  packed.case_begin.push_back(first + shape.rows());
}

struct CpuPreparationRows final : public PreparationRows {
  struct Neighbor {
    TreeRows tree;
    int64_t prefix = 0;
  };
  std::vector<Neighbor> neighbors;
  int64_t prompt_rows = 0, tree_rows = 0;
  std::vector<float> cos, sin;  // of the prompts' rows, then of the trees'
};

struct CpuPackedTrees final : public PackedTrees {
  TreeRows packed;
  std::vector<std::shared_ptr<const ReferenceStates>> states;  // per case
  std::vector<float> cos, sin;
};

// What the way back through an attention block reads.
struct AttentionTape final : public Tape {
  OwnedMatrix input;
  HeadRows rows{};
  std::vector<float*> probabilities;  // per TreeRows
  KeptMemory memory;
};

// The trees of one block as one matrix.
struct Members {
  explicit Members(absl::Span<const PackedTrees* const> trees) {
    for (const PackedTrees* tree : trees) {
      all.push_back(static_cast<const CpuPackedTrees*>(tree));
      first_row.push_back(rows);
      rows += all.back()->packed.rows();
    }
  }
  Rotations JoinRotations(int64_t half, Memory& memory) const {
    if (all.size() == 1) return {all[0]->cos.data(), all[0]->sin.data()};
    float* const cos = memory.Floats(rows * half);
    float* const sin = memory.Floats(rows * half);
    for (size_t i = 0; i < all.size(); ++i) {
      std::copy(all[i]->cos.begin(), all[i]->cos.end(), cos + first_row[i] * half);
      std::copy(all[i]->sin.begin(), all[i]->sin.end(), sin + first_row[i] * half);
    }
    return {cos, sin};
  }
  // Of one member in a layer.
  TreePrefixes Prefixes(size_t i, int layer, ElementType type) const {
    TreePrefixes prefixes{kStateBlockPositions, type, {}};
    for (const auto& states : all[i]->states) {
      prefixes.blocks.push_back(static_cast<const CpuReferenceStates&>(*states).Blocks(layer));
    }
    return prefixes;
  }

  std::vector<const CpuPackedTrees*> all;
  std::vector<int64_t> first_row;
  int64_t rows = 0;
};

void AppendRotation(const RopeTable& rope, int64_t position, std::vector<float>& cos, std::vector<float>& sin) {
  const size_t half = static_cast<size_t>(rope.half), begin = cos.size();
  cos.resize(begin + half);
  sin.resize(begin + half);
  rope.CopyRow(position, cos.data() + begin, sin.data() + begin);
}

}  // namespace

HeadShape CpuBackend::heads() const {
  return {config_.heads, config_.kv_heads, config_.head_dim, config_.value_dim, config_.attention_scale};
}

KvSlots CpuBackend::CacheOf(int l) const {
  const int64_t before = int64_t{l} * config_.kv_heads * slots_ * BytesOf(info_.kv);  // Heads' slots.
  return {static_cast<char*>(keys_.get()) + before * config_.head_dim,
          static_cast<char*>(values_.get()) + before * config_.value_dim, info_.kv, slots_};
}

void CpuBackend::AddOutput(const LayerViews& views, const float* x, const float* context, int64_t rows, float* out) {
  const int64_t d = config_.hidden_size;
  float* const block = arena_.Floats(rows * d);
  Project({context, context_width(), rows, nullptr}, views.output, views.output_bias, block);
  AddScaledRows(x, block, static_cast<float>(config_.residual_multiplier), rows * d, out);
}

void CpuBackend::Attention(int l, Matrix hidden) {
  const LayerViews& views = step_layer(l);
  const int64_t rows = hidden.rows, d = config_.hidden_size;
  Check(keys_ != nullptr, "no cache was allocated");
  Check(static_cast<int64_t>(cos_.size()) == rows * rope_.half, "other rows were placed");
  const Arena::Scope scope(arena_);
  float* const normed = arena_.Floats(rows * d);
  Norm(FloatsOf(hidden), views.attention_norm, rows, normed);
  const HeadRows own = ProjectHeads(config_, views, normed, rows, {cos_.data(), sin_.data()}, arena_, arena_);
  StoreKeysAndValues(heads(), sequences_.get(), own.k, own.v, CacheOf(l));
  float* const context = arena_.Floats(rows * context_width());
  CausalAttention(heads(), sequences_.get(), own.q, CacheOf(l), context);
  AddOutput(views, FloatsOf(hidden), context, rows, FloatsOf(hidden));
}

void CpuBackend::LimitReferenceStates(int64_t bytes) { states_ = MakeStatePool(config_, info_.kv, bytes); }

int64_t CpuBackend::reference_bytes_in_use() const { return states_->blocks_in_use() * states_->block_bytes(); }

std::shared_ptr<ReferenceStates> CpuBackend::NewReferenceStates(int first_layer, int64_t positions, int64_t tree_rows,
                                                                absl::FunctionRef<bool(int64_t bytes)> drop) {
  return std::make_shared<CpuReferenceStates>(config_, info_.kv, states_, first_layer, positions, tree_rows, drop);
}

void CpuBackend::StoreTree(const Matrix& hidden, ReferenceStates& states) {
  auto& own = static_cast<CpuReferenceStates&>(states);
  Check(hidden.rows == own.tree_rows() && hidden.stride == config_.hidden_size, "these are not the tree's rows");
  own.StoreTree(FloatsOf(hidden));
}

void CpuBackend::LoadTree(const ReferenceStates& states, Matrix hidden) {
  const auto& own = static_cast<const CpuReferenceStates&>(states);
  Check(hidden.rows == own.tree_rows() && hidden.stride == config_.hidden_size, "these are not the tree's rows");
  own.LoadTree(FloatsOf(hidden));
}

std::unique_ptr<PreparationRows> CpuBackend::NewPreparationRows(absl::Span<const TreeShape> trees) {
  auto rows = std::make_unique<CpuPreparationRows>();
  for (const TreeShape& tree : trees) {
    CpuPreparationRows::Neighbor& neighbor = rows->neighbors.emplace_back();
    neighbor.prefix = tree.prefix;
    AppendTree(tree, neighbor.tree);
    rows->prompt_rows += tree.prefix;
    rows->tree_rows += tree.rows();
    for (int64_t p = 0; p < tree.prefix; ++p) AppendRotation(rope_, p, rows->cos, rows->sin);
  }
  for (const TreeShape& tree : trees) {
    for (const int depth : tree.depths) AppendRotation(rope_, tree.prefix + depth, rows->cos, rows->sin);
  }
  return rows;
}

// Products take all rows; each neighbor attends by itself.
void CpuBackend::PreparationAttention(int l, const PreparationRows& preparation,
                                      absl::Span<ReferenceStates* const> states, bool states_only, Matrix hidden) {
  const auto& plan = static_cast<const CpuPreparationRows&>(preparation);
  const LayerViews& views = layer(l);
  const int64_t rows = hidden.rows, d = config_.hidden_size;
  const HeadShape shape = heads();
  const int64_t q_width = shape.heads * shape.head_dim, kv = shape.kv_heads;
  const int64_t k_width = kv * shape.head_dim, v_width = kv * shape.value_dim;
  Check(rows == plan.prompt_rows || rows == plan.prompt_rows + plan.tree_rows,
        "these are not the prompts' rows, nor the trees' with them");
  Check(states.empty() || states.size() == plan.neighbors.size(), "these are not the states of all prompts");
  const Arena::Scope scope(arena_);
  float* const normed = arena_.Floats(rows * d);
  Norm(FloatsOf(hidden), views.attention_norm, rows, normed);
  const HeadRows own = ProjectHeads(config_, views, normed, rows, {plan.cos.data(), plan.sin.data()}, arena_, arena_);
  float* const context = states_only ? nullptr : arena_.Floats(rows * context_width());
  int64_t row = 0, tree_row = plan.prompt_rows;
  for (size_t i = 0; i < plan.neighbors.size(); ++i) {
    const CpuPreparationRows::Neighbor& neighbor = plan.neighbors[i];
    const int64_t prefix = neighbor.prefix;
    const float* const q = own.q + row * q_width;
    const float* const k = own.k + row * k_width;
    const float* const v = own.v + row * v_width;
    if (!states.empty()) {
      auto& kept = static_cast<CpuReferenceStates&>(*states[i]);
      Check(kept.positions() == prefix, "a reference's states have another length");
      kept.Store(l, k, v);
    }
    if (!states_only) {
      // One block for all that attend to it now, rounded as the states are.
      const Arena::Scope of_neighbor(arena_);
      void* const block = arena_.Take(prefix * (k_width + v_width) * BytesOf(info_.kv));
      void* const values = static_cast<char*>(block) + prefix * k_width * BytesOf(info_.kv);
      const KvSlots kv_slots{block, values, info_.kv, prefix};
      const KvRun whole{0, prefix};
      const SequenceRuns prompt{0, prefix, 0, {&whole, 1}};
      const absl::Span<const SequenceRuns> prompts(&prompt, prefix > 0 ? 1 : 0);
      StoreKeysAndValues(shape, prompts, k, v, kv_slots);
      CausalAttention(shape, prompts, q, kv_slots, context + row * context_width());
      if (rows > plan.prompt_rows) {
        float* const probabilities = arena_.Floats(neighbor.tree.columns() * shape.heads);
        const void* const blocks[] = {block};
        TreeAttentionForward(shape, neighbor.tree, own.q + tree_row * q_width, own.k + tree_row * k_width,
                             own.v + tree_row * v_width, {std::max<int64_t>(prefix, 1), info_.kv, {blocks}},
                             probabilities, context + tree_row * context_width());
        tree_row += neighbor.tree.rows();
      }
    }
    row += prefix;
  }
  if (!states_only) AddOutput(views, FloatsOf(hidden), context, rows, FloatsOf(hidden));
}

std::unique_ptr<PackedTrees> CpuBackend::PackTrees(absl::Span<const TreeCase> cases) {
  auto rows = std::make_unique<CpuPackedTrees>();
  for (const TreeCase& one : cases) {
    const auto* const states = static_cast<const CpuReferenceStates*>(one.states.get());
    Check(states != nullptr && states->positions() == one.shape.prefix, "a reference's states have another length");
    AppendTree(one.shape, rows->packed);
    rows->states.push_back(one.states);
    for (const int depth : one.shape.depths) AppendRotation(rope_, one.shape.prefix + depth, rows->cos, rows->sin);
  }
  return rows;
}

OwnedMatrix CpuBackend::TreeAttention(int l, absl::Span<const PackedTrees* const> trees, const OwnedMatrix& hidden,
                                      std::unique_ptr<Tape>* tape_out) {
  const LayerViews& views = layer(l);
  const Members members(trees);
  const HeadShape shape = heads();
  const int64_t rows = members.rows, d = config_.hidden_size;
  auto tape = tape_out ? std::make_unique<AttentionTape>() : nullptr;
  const Arena::Scope scope(arena_);
  Memory& memory = tape ? static_cast<Memory&>(tape->memory) : arena_;
  float* const normed = arena_.Floats(rows * d);
  Norm(FloatsOf(hidden.view()), views.attention_norm, rows, normed);
  const HeadRows own =
      ProjectHeads(config_, views, normed, rows, members.JoinRotations(rope_.half, arena_), memory, arena_);
  float* const context = arena_.Floats(rows * context_width());
  for (size_t i = 0; i < members.all.size(); ++i) {
    const TreeRows& packed = members.all[i]->packed;
    const int64_t first = members.first_row[i];
    float* const probabilities = memory.Floats(packed.columns() * shape.heads);
    TreeAttentionForward(shape, packed, own.q + first * shape.heads * shape.head_dim,
                         own.k + first * shape.kv_heads * shape.head_dim,
                         own.v + first * shape.kv_heads * shape.value_dim, members.Prefixes(i, l, info_.kv),
                         probabilities, context + first * context_width());
    if (tape) tape->probabilities.push_back(probabilities);
  }
  OwnedMatrix out = AllocateHidden(rows);
  AddOutput(views, FloatsOf(hidden.view()), context, rows, FloatsOf(out.view()));
  if (tape) {
    tape->input = hidden;
    tape->rows = own;
    *tape_out = std::move(tape);
  }
  return out;
}

OwnedMatrix CpuBackend::TreeAttentionBackward(int l, absl::Span<const PackedTrees* const> trees, const Tape& taped,
                                              const OwnedMatrix& dout) {
  const auto& tape = static_cast<const AttentionTape&>(taped);
  const LayerViews& views = layer(l);
  const Members members(trees);
  const HeadShape shape = heads();
  const int64_t rows = members.rows, d = config_.hidden_size;
  const int64_t query = shape.heads * shape.head_dim, key = shape.kv_heads * shape.head_dim,
                value = shape.kv_heads * shape.value_dim;
  const Arena::Scope scope(arena_);
  const float* const dblock = Scaled(FloatsOf(dout.view()), rows * d);
  float* const dcontext = arena_.Floats(rows * context_width());
  ProjectBackward({dblock, d, rows, nullptr}, views.output, arena_, dcontext);
  float* const dq = arena_.Floats(rows * query);
  float* const dk = arena_.Floats(rows * key);
  float* const dv = arena_.Floats(rows * value);
  for (size_t i = 0; i < members.all.size(); ++i) {
    const int64_t first = members.first_row[i];
    cpu::TreeAttentionBackward(shape, members.all[i]->packed, dcontext + first * context_width(),
                               tape.rows.q + first * query, tape.rows.k + first * key, tape.rows.v + first * value,
                               members.Prefixes(i, l, info_.kv), tape.probabilities[i], dq + first * query,
                               dk + first * key, dv + first * value);
  }
  float* const dnormed = arena_.Floats(rows * d);
  ProjectHeadsBackward(config_, views, tape.rows, dq, dk, dv, rows, members.JoinRotations(rope_.half, arena_), arena_,
                       dnormed);
  OwnedMatrix dx = AllocateHidden(rows);
  RmsNormBackwardRows(dnormed, FloatsOf(tape.input.view()), d, views.attention_norm, FloatsOf(dout.view()),
                      config_.rms_norm_eps, rows, d, FloatsOf(dx.view()));
  return dx;
}

}  // namespace c3po::cpu
