#include "server/compute/aten/reference_states.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>

#include "server/compute/aten/matrix_tensors.h"

namespace c3po::aten {
namespace {

// Positions of one slab, and the row that each is in another matrix.
struct Places {
  const TensorSlab* slab;
  std::vector<int64_t> rows, blocks, offsets;
};

// Adds one reference's positions in a layer, which are rows from first_row on.
void AppendPlaces(const AtenReferenceStates& states, int layer, int64_t first_row, std::vector<Places>& all) {
  for (int64_t p = 0; p < states.positions(); ++p) {
    const StatePool::Block& block = states.BlockOf(layer, p);
    auto found = std::find_if(all.begin(), all.end(), [&](const Places& part) { return part.slab == block.slab; });
    if (found == all.end()) found = all.insert(all.end(), {block.slab, {}, {}, {}});
    found->rows.push_back(first_row + p);
    found->blocks.push_back(block.index);
    found->offsets.push_back(p % kStateBlockPositions);
  }
}

// [blocks, kStateBlockPositions, kv_heads, dim]: keys or values of all blocks of a slab, where they lie.
at::Tensor RowsOf(const TensorSlab& slab, int64_t begin, int64_t kv_heads, int64_t dim) {
  return slab.blocks.narrow(1, begin, kStateBlockPositions * kv_heads * dim)
      .view({slab.blocks.size(0), kStateBlockPositions, kv_heads, dim});
}

}  // namespace

std::shared_ptr<StatePool> MakeStatePool(const ModelConfig& config, const at::TensorOptions& options, int64_t bytes) {
  const int64_t elements = StateBlockElements(config);
  const auto block_bytes = static_cast<int64_t>(elements * static_cast<int64_t>(options.dtype().itemsize()));
  return std::make_shared<StatePool>(block_bytes, bytes / block_bytes, kStateSlabBytes / block_bytes,
                                     [elements, options](int64_t blocks) {
                                       return TensorSlab{at::empty({blocks, elements}, options)};
                                     });
}

AtenReferenceStates::AtenReferenceStates(const ModelConfig& config, const BackendInfo& info,
                                         const std::shared_ptr<StatePool>& pool, int first_layer, int64_t positions,
                                         int64_t tree_rows, absl::FunctionRef<bool(int64_t bytes)> drop)
    : config_(config),
      first_layer_(first_layer),
      positions_(positions),
      tree_rows_(tree_rows),
      tree_blocks_(StateBlocksOfRows(tree_rows, config, info.activations, info.kv)),
      lease_(pool, (config.layers - first_layer) * StateBlocksOfLayer(positions) + tree_blocks_, drop),
      bytes_(static_cast<int64_t>(lease_.blocks().size()) * pool->block_bytes()) {}

const StatePool::Block& AtenReferenceStates::BlockOf(int layer, int64_t position) const {
  TORCH_CHECK(layer >= first_layer_, "a reference has no states in layer ", layer);
  const int64_t index = (layer - first_layer_) * StateBlocksOfLayer(positions_) + position / kStateBlockPositions;
  return lease_.blocks().at(static_cast<size_t>(index));
}

void AtenReferenceStates::Store(int layer, const at::Tensor& k, const at::Tensor& v) {
  std::vector<Places> all;
  AppendPlaces(*this, layer, 0, all);
  for (const Places& part : all) {
    const at::Device device = k.device();
    const at::Tensor rows = Upload(part.rows, device), blocks = Upload(part.blocks, device);
    const at::Tensor offsets = Upload(part.offsets, device);
    const int64_t keys = kStateBlockPositions * config_.kv_heads * config_.head_dim;
    RowsOf(*part.slab, 0, config_.kv_heads, config_.head_dim).index_put_({blocks, offsets}, k.index_select(0, rows));
    RowsOf(*part.slab, keys, config_.kv_heads, config_.value_dim)
        .index_put_({blocks, offsets}, v.index_select(0, rows));
  }
}

void AtenReferenceStates::ForEachTreeBlock(
    const at::Tensor& flat, absl::FunctionRef<void(const at::Tensor& of_block, const at::Tensor& of_rows)> copy) const {
  auto block = lease_.blocks().end() - tree_blocks_;
  for (int64_t begin = 0; begin < flat.size(0); ++block) {
    const at::Tensor whole = block->slab->blocks.select(0, block->index).view(flat.scalar_type());
    const int64_t count = std::min(whole.size(0), flat.size(0) - begin);
    copy(whole.narrow(0, 0, count), flat.narrow(0, begin, count));
    begin += count;
  }
}

void AtenReferenceStates::StoreTree(const at::Tensor& rows) {
  ForEachTreeBlock(rows.reshape({-1}),
                   [](const at::Tensor& of_block, const at::Tensor& of_rows) { of_block.copy_(of_rows); });
}

void AtenReferenceStates::LoadTree(const at::Tensor& rows) const {
  ForEachTreeBlock(rows.view({-1}),
                   [](const at::Tensor& of_block, const at::Tensor& of_rows) { of_rows.copy_(of_block); });
}

PaddedPrompts::PaddedPrompts(const ModelConfig& config, absl::Span<const AtenReferenceStates* const> states, int layer,
                             int64_t length, const at::TensorOptions& options)
    : kv_heads_(config.kv_heads),
      head_dim_(config.head_dim),
      value_dim_(config.value_dim),
      count_(static_cast<int64_t>(states.size())),
      length_(length),
      options_(options) {
  std::vector<Places> all;
  for (int64_t s = 0; s < count_; ++s) {
    const AtenReferenceStates* const own = states[static_cast<size_t>(s)];
    if (own) AppendPlaces(*own, layer, s * length, all);
  }
  for (const Places& part : all) {
    parts_.push_back({part.slab, Upload(part.rows, options.device()), Upload(part.blocks, options.device()),
                      Upload(part.offsets, options.device())});
  }
}

at::Tensor PaddedPrompts::Gather(int64_t begin, int64_t dim) const {
  const at::Tensor rows = at::zeros({count_ * length_, kv_heads_, dim}, options_);
  for (const Part& part : parts_) {
    const at::Tensor kept = RowsOf(*part.slab, begin, kv_heads_, dim).index({part.blocks, part.offsets});
    rows.index_copy_(0, part.rows, kept.to(rows.scalar_type()));
  }
  return rows.view({count_, length_, kv_heads_, dim}).transpose(1, 2);
}

}  // namespace c3po::aten
