// What references keep, and attention of an objective's trees: preparing them, up and down.

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "server/compute/cuda/cuda_backend.h"
#include "server/compute/cuda/tree_plan.h"

namespace c3po::cuda {
namespace {

void CheckStates(bool right, const char* what) {
  if (!right) throw std::invalid_argument(what);
}

int64_t BlocksOf(int64_t positions) { return StateBlocksOfLayer(positions); }

// Prompts' beginnings, whose keys and values lie in blocks of one layer, used anew by each; and the trees below them.
struct CudaPreparationRows final : public PreparationRows {
  std::vector<int64_t> prefixes;       // of each prompt
  int64_t prompt_rows = 0;             // of all
  std::shared_ptr<void> keys, values;  // blocks as KvLayer has them, one prompt's after the other's
  std::shared_ptr<void> arrays;
  const AttentionRow* rows = nullptr;  // of the prompts, then of the trees
  const AttentionSequence* sequences = nullptr;
  const int32_t* table = nullptr;
  const AttentionTile* tiles = nullptr;
  int tile_count = 0;
  TreePlan tree;
};

struct CudaPackedTrees final : public PackedTrees {
  TreePlan plan;
  std::vector<std::shared_ptr<const ReferenceStates>> states;  // whose blocks the plan names
};

const CudaPackedTrees& Of(const PackedTrees* trees) { return static_cast<const CudaPackedTrees&>(*trees); }

int64_t RowsOf(absl::Span<const PackedTrees* const> trees) {
  int64_t rows = 0;
  for (const PackedTrees* one : trees) rows += Of(one).plan.rows();
  return rows;
}

HeadSource SourceFrom(const HeadSource& all, int64_t row) {
  HeadSource source = all;
  source.q += row * all.q_stride;
  source.k += row * all.k_stride;
  source.v += row * all.v_stride;
  if (source.shared_key != nullptr) source.shared_key += row * all.shared_stride;
  return source;
}

}  // namespace

// The transformed heads of packed rows, and what they were made of.
struct CudaBackend::HeadRows {
  HeadSource source;
  float* q = nullptr;  // [R, heads, head_dim]
  float* k = nullptr;  // [R, kv_heads, head_dim]
  float* v = nullptr;  // [R, kv_heads, value_dim]
};

struct CudaBackend::AttentionTape final : public Tape {
  explicit AttentionTape(TapeMemory of) : memory(std::move(of)) {}
  OwnedMatrix input;
  HeadRows rows;
  std::vector<float*> probabilities;  // by PackedTrees
  TapeMemory memory;
};

void CudaBackend::LimitReferenceStates(int64_t bytes) { states_ = MakeStatePool(state_block_, bytes, memory_); }

int64_t CudaBackend::reference_bytes_in_use() const { return states_->blocks_in_use() * states_->block_bytes(); }

std::shared_ptr<ReferenceStates> CudaBackend::NewReferenceStates(int first_layer, int64_t positions, int64_t tree_rows,
                                                                 absl::FunctionRef<bool(int64_t bytes)> drop) {
  return std::make_shared<CudaReferenceStates>(config_, state_block_, states_, first_layer, positions, tree_rows, drop);
}

void CudaBackend::StoreTree(const Matrix& hidden, ReferenceStates& states) {
  const auto& own = static_cast<const CudaReferenceStates&>(states);
  CheckStates(hidden.rows == own.tree_rows() && hidden.stride == config_.hidden_size, "these are not the tree's rows");
  int64_t done = 0;
  for (char* const block : own.TreeBlocks()) {
    const int64_t bytes = std::min(own.block().bytes(), hidden.bytes() - done);
    Check(runtime_.CopyOnDevice(stream(), block, static_cast<const char*>(hidden.data) + done, bytes),
          "keeping a tree's rows");
    done += bytes;
  }
}

void CudaBackend::LoadTree(const ReferenceStates& states, Matrix hidden) {
  const auto& own = static_cast<const CudaReferenceStates&>(states);
  CheckStates(hidden.rows == own.tree_rows() && hidden.stride == config_.hidden_size, "these are not the tree's rows");
  int64_t done = 0;
  for (const char* const block : own.TreeBlocks()) {
    const int64_t bytes = std::min(own.block().bytes(), hidden.bytes() - done);
    Check(runtime_.CopyOnDevice(stream(), static_cast<char*>(hidden.data) + done, block, bytes),
          "taking a tree's rows");
    done += bytes;
  }
}

void CudaBackend::Embed(absl::Span<const int64_t> tokens, Matrix hidden) {
  if (tokens.empty()) return;
  DeviceArrays arrays;
  const int64_t at = arrays.Add(std::vector<int>(tokens.begin(), tokens.end()));
  const std::shared_ptr<void> piece = arrays.Send(*memory_, copies_);
  EmbedRows(At<int>(piece, at), static_cast<int64_t>(tokens.size()), hidden);
}

std::unique_ptr<PreparationRows> CudaBackend::NewPreparationRows(absl::Span<const TreeShape> trees) {
  auto rows = std::make_unique<CudaPreparationRows>();
  int64_t blocks = 0;
  for (const TreeShape& shape : trees) {
    rows->prefixes.push_back(shape.prefix);
    rows->prompt_rows += shape.prefix;
    blocks += BlocksOf(shape.prefix);
  }
  rows->keys = memory_->Take(std::max<int64_t>(blocks, 1) * state_block_.key_bytes);
  rows->values = memory_->Take(std::max<int64_t>(blocks, 1) * state_block_.value_bytes);

  std::vector<AttentionRow> positions;
  std::vector<AttentionSequence> sequences;
  std::vector<AttentionTile> tiles;
  std::vector<int32_t> table;
  const int per_tile = RowsPerTile(config_.heads, config_.kv_heads);
  for (const TreeShape& shape : trees) {
    const auto sequence = static_cast<int32_t>(sequences.size()), first = static_cast<int32_t>(positions.size());
    const auto prefix = static_cast<int32_t>(shape.prefix), begin = static_cast<int32_t>(table.size());
    sequences.push_back({0, begin, begin});
    for (int32_t p = 0; p < prefix; ++p) positions.push_back({sequence, p});
    for (int32_t p = 0; p < prefix; p += per_tile) tiles.push_back({first + p, std::min(per_tile, prefix - p)});
    PrefixBlocks where;
    for (int64_t b = 0; b < BlocksOf(shape.prefix); ++b) {
      const auto block = static_cast<int32_t>(table.size());
      table.push_back(block);
      where.keys.push_back(static_cast<char*>(rows->keys.get()) + block * state_block_.key_bytes);
      where.values.push_back(static_cast<char*>(rows->values.get()) + block * state_block_.value_bytes);
    }
    rows->tree.Add(shape, {where});
  }
  for (const TreeShape& shape : trees) {
    for (const int depth : shape.depths) positions.push_back({0, static_cast<int32_t>(shape.prefix + depth)});
  }
  rows->tree.Send(0, kStateBlockPositions, planes() == 1, *memory_, copies_);
  DeviceArrays arrays;
  const int64_t positions_at = arrays.Add(positions), tiles_at = arrays.Add(tiles), table_at = arrays.Add(table);
  const int64_t sequences_at = arrays.Add(sequences);
  rows->arrays = arrays.Send(*memory_, copies_);
  rows->rows = At<AttentionRow>(rows->arrays, positions_at);
  rows->tiles = At<AttentionTile>(rows->arrays, tiles_at);
  rows->tile_count = static_cast<int>(tiles.size());
  rows->table = At<int32_t>(rows->arrays, table_at);
  rows->sequences = At<AttentionSequence>(rows->arrays, sequences_at);
  return rows;
}

CudaBackend::HeadRows CudaBackend::NewHeadRows(const HeadSource& source, int64_t rows, RowMemory& memory) const {
  HeadRows made;
  made.source = source;
  made.q = memory.Floats(rows * config_.heads * config_.head_dim);
  made.k = memory.Floats(rows * config_.kv_heads * config_.head_dim);
  made.v = memory.Floats(rows * config_.kv_heads * config_.value_dim);
  return made;
}

// Norm and rotation of rows [first, first + count) of `heads`, at `positions`; into the cache where there is one.
void CudaBackend::Rotate(const CudaLayer& weights, const HeadRows& heads, int64_t first, int64_t count,
                         const AttentionRow* positions, const KvLayer& cache, const AttentionSequence* sequences,
                         const int32_t* tables) {
  if (count == 0) return;
  RotateArgs args;
  args.transform = TransformOf(weights);
  args.source = SourceFrom(heads.source, first);
  args.rows = positions;
  args.row_count = static_cast<int32_t>(count);
  args.planes = planes();
  args.q = heads.q + first * config_.heads * config_.head_dim;
  args.k = heads.k + first * config_.kv_heads * config_.head_dim;
  args.v = heads.v + first * config_.kv_heads * config_.value_dim;
  args.cache = cache;
  args.sequences = sequences;
  args.tables = tables;
  Check(kernels_.rotate(args, stream()), "rotating");
}

TreeAttentionArgs CudaBackend::TreeArgs(const HeadRows& heads, int64_t first, const TreeTables& tree,
                                        const TreePrefixBlocks& prefix, float* probabilities,
                                        const ActivationPlanes& context) const {
  TreeAttentionArgs args;
  args.heads = config_.heads;
  args.kv_heads = config_.kv_heads;
  args.head_dim = config_.head_dim;
  args.value_dim = config_.value_dim;
  args.scale = static_cast<float>(config_.attention_scale);
  args.tree = tree;
  args.prefix = prefix;
  args.q = heads.q + first * config_.heads * config_.head_dim;
  args.k = heads.k + first * config_.kv_heads * config_.head_dim;
  args.v = heads.v + first * config_.kv_heads * config_.value_dim;
  args.probabilities = probabilities;
  args.planes = planes();
  args.context = context;
  if (context.data != nullptr) args.context.data = context.data + first * context.stride;
  return args;
}

// From a pass over prompts to what is kept of them, block by block.
void CudaBackend::KeepStates(const KvLayer& from, int l, absl::Span<ReferenceStates* const> to) {
  std::vector<BlockCopy> keys, values;
  const auto* next_keys = static_cast<const char*>(from.keys);
  const auto* next_values = static_cast<const char*>(from.values);
  for (const ReferenceStates* const one : to) {
    const auto& states = static_cast<const CudaReferenceStates&>(*one);
    for (int64_t b = 0; b < BlocksOf(states.positions()); ++b) {
      char* const block = states.Blocks(l)[b];
      keys.push_back({next_keys, block});
      values.push_back({next_values, block + state_block_.key_bytes});
      next_keys += state_block_.key_bytes;
      next_values += state_block_.value_bytes;
    }
  }
  if (keys.empty()) return;
  DeviceArrays arrays;
  const int64_t keys_at = arrays.Add(keys), values_at = arrays.Add(values);
  const std::shared_ptr<void> piece = arrays.Send(*memory_, copies_);
  const auto count = static_cast<int32_t>(keys.size());
  Check(kernels_.block_copies({At<BlockCopy>(piece, keys_at), count, state_block_.key_bytes}, stream()),
        "keeping keys");
  Check(kernels_.block_copies({At<BlockCopy>(piece, values_at), count, state_block_.value_bytes}, stream()),
        "keeping values");
}

void CudaBackend::PreparationAttention(int l, const PreparationRows& preparation,
                                       absl::Span<ReferenceStates* const> states, bool states_only, Matrix hidden) {
  const auto& plan = static_cast<const CudaPreparationRows&>(preparation);
  const CudaLayer& weights = layer(l);
  const int64_t rows = hidden.rows, prefix = plan.prompt_rows, tree_rows = rows - prefix;
  CheckStates(tree_rows == 0 || tree_rows == plan.tree.rows(),
              "these are not the prompts' rows, nor the trees' with them");
  CheckStates(states.empty() || states.size() == plan.prefixes.size(), "these are not the states of all prompts");
  for (size_t i = 0; i < states.size(); ++i) {
    CheckStates(static_cast<const CudaReferenceStates&>(*states[i]).positions() == plan.prefixes[i],
                "a reference's states have another length");
  }
  if (rows == 0) return;
  const StepArena::Scope scope(arena_);
  const HeadRows heads = NewHeadRows(ProjectHeads(weights, FloatsOf(hidden), rows, arena_), rows, arena_);
  const KvLayer cache{plan.keys.get(), plan.values.get(), kStateBlockPositions};
  Rotate(weights, heads, 0, prefix, plan.rows, cache, plan.sequences, plan.table);
  KeepStates(cache, l, states);
  if (states_only) return;
  const ActivationPlanes context = NewPlanes(rows, context_width());
  ProductArgs output;
  output.planes = context;
  if (prefix > 0) {
    AttentionArgs attention;
    attention.transform = TransformOf(weights);
    attention.scale = static_cast<float>(config_.attention_scale);
    attention.rows = plan.rows;
    attention.sequences = plan.sequences;
    attention.tables = plan.table;
    attention.cache = cache;
    attention.planes = planes();
    attention.q = heads.q;
    attention.tiles = plan.tiles;
    attention.tile_count = plan.tile_count;
    attention.context = context;
    Check(kernels_.attention(attention, stream()), "attending");
  }
  if (tree_rows > 0) {
    Rotate(weights, heads, prefix, tree_rows, plan.rows + prefix, {}, nullptr, nullptr);
    float* const probabilities = arena_.Floats(plan.tree.columns() * config_.heads);
    const TreeAttentionArgs args =
        TreeArgs(heads, prefix, plan.tree.tree(), plan.tree.Prefix(0), probabilities, context);
    Check(kernels_.tree_attention(args, stream()), "attending in a tree");
  }
  AddOutput(weights, output, rows, FloatsOf(hidden), FloatsOf(hidden));
}

std::unique_ptr<PackedTrees> CudaBackend::PackTrees(absl::Span<const TreeCase> cases) {
  auto trees = std::make_unique<CudaPackedTrees>();
  int first_layer = 0;
  for (const TreeCase& one : cases) {
    const auto* const states = static_cast<const CudaReferenceStates*>(one.states.get());
    CheckStates(states != nullptr ? states->positions() == one.shape.prefix : one.shape.prefix == 0,
                "a reference's states have another length");
    if (states != nullptr) first_layer = std::max(first_layer, states->first_layer());
  }
  for (const TreeCase& one : cases) {
    const auto* const states = static_cast<const CudaReferenceStates*>(one.states.get());
    std::vector<PrefixBlocks> blocks(static_cast<size_t>(config_.layers - first_layer));
    for (int l = first_layer; states != nullptr && l < config_.layers; ++l) {
      PrefixBlocks& of_layer = blocks[static_cast<size_t>(l - first_layer)];
      for (int64_t b = 0; b < BlocksOf(states->positions()); ++b) {
        of_layer.keys.push_back(states->Blocks(l)[b]);
        of_layer.values.push_back(states->Blocks(l)[b] + state_block_.key_bytes);
      }
    }
    trees->plan.Add(one.shape, blocks);
    trees->states.push_back(one.states);
  }
  trees->plan.Send(first_layer, kStateBlockPositions, planes() == 1, *memory_, copies_);
  return trees;
}

OwnedMatrix CudaBackend::TreeAttention(int l, absl::Span<const PackedTrees* const> trees, const OwnedMatrix& hidden,
                                       std::unique_ptr<Tape>* tape_out) {
  const CudaLayer& weights = layer(l);
  const int64_t rows = RowsOf(trees);
  const StepArena::Scope scope(arena_);
  auto tape = std::make_unique<AttentionTape>(NewTapeMemory());
  RowMemory& memory = tape_out ? static_cast<RowMemory&>(tape->memory) : arena_;
  const HeadRows heads = NewHeadRows(ProjectHeads(weights, FloatsOf(hidden.view()), rows, memory), rows, memory);
  const ActivationPlanes context = NewPlanes(rows, context_width());
  ProductArgs output;
  output.planes = context;
  int64_t first = 0;
  for (const PackedTrees* one : trees) {
    const TreePlan& plan = Of(one).plan;
    Rotate(weights, heads, first, plan.rows(), plan.positions(), {}, nullptr, nullptr);
    float* const probabilities = memory.Floats(plan.columns() * config_.heads);
    Check(
        kernels_.tree_attention(TreeArgs(heads, first, plan.tree(), plan.Prefix(l), probabilities, context), stream()),
        "attending in a tree");
    tape->probabilities.push_back(probabilities);
    first += plan.rows();
  }
  OwnedMatrix out = AllocateHidden(rows);
  AddOutput(weights, output, rows, FloatsOf(hidden.view()), FloatsOf(out.view()));
  if (tape_out) {
    tape->input = hidden;
    tape->rows = heads;
    *tape_out = std::move(tape);
  }
  return out;
}

OwnedMatrix CudaBackend::TreeAttentionBackward(int l, absl::Span<const PackedTrees* const> trees, const Tape& taped,
                                               const OwnedMatrix& dout) {
  const auto& tape = static_cast<const AttentionTape&>(taped);
  const CudaLayer& weights = layer(l);
  const int64_t rows = dout.rows(), heads = config_.heads, kv_heads = config_.kv_heads;
  const StepArena::Scope scope(arena_);
  float* const dcontext = arena_.Floats(rows * context_width());
  MultiplyBack(weights.output, FloatsOf(dout.view()), config_.hidden_size,
               static_cast<float>(config_.residual_multiplier), rows, dcontext, context_width());

  HeadsBack back = NewHeadsBack(weights, tape.rows.source, rows);
  int64_t first = 0;
  size_t member = 0;
  for (const PackedTrees* one : trees) {
    const TreePlan& plan = Of(one).plan;
    TreeBackwardArgs args;
    args.forward = TreeArgs(tape.rows, first, plan.tree(), plan.Prefix(l), tape.probabilities[member++], {});
    args.dcontext = dcontext + first * context_width();
    args.dscores = arena_.Floats(plan.columns() * heads);
    args.dq = arena_.Floats(plan.rows() * heads * config_.head_dim);
    args.dk = arena_.Floats(plan.rows() * kv_heads * config_.head_dim);
    args.dv = arena_.Floats(plan.rows() * kv_heads * config_.value_dim);
    Check(kernels_.tree_backward(args, stream()), "going back through a tree");
    HeadsBackwardArgs through;
    through.transform = TransformOf(weights);
    through.source = SourceFrom(tape.rows.source, first);
    through.rows = plan.positions();
    through.row_count = static_cast<int32_t>(plan.rows());
    through.dq = args.dq;
    through.dk = args.dk;
    through.dv = args.dv;
    through.gradient = back.From(first);
    Check(kernels_.heads_backward(through, stream()), "going back through heads");
    first += plan.rows();
  }
  float* const dnormed = arena_.Floats(rows * config_.hidden_size);
  FinishHeadsBack(weights, tape.rows.source, back, rows, dnormed);
  OwnedMatrix dx = AllocateHidden(rows);
  NormBackward(dnormed, tape.input.view(), weights.attention_norm, FloatsOf(dout.view()), FloatsOf(dx.view()));
  return dx;
}

}  // namespace c3po::cuda
