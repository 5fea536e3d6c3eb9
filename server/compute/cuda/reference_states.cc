#include "server/compute/cuda/reference_states.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "server/compute/cuda/head_rows.h"

namespace c3po::cuda {
namespace {

int CheckedLayer(int first_layer, const ModelConfig& config) {
  if (first_layer < 0 || first_layer >= config.layers) throw std::invalid_argument("the model has no such first layer");
  return first_layer;
}

int64_t BlocksOfTree(int64_t rows, const ModelConfig& config, const StateBlock& block) {
  return (rows * config.hidden_size * 4 + block.bytes() - 1) / block.bytes();
}

}  // namespace

StateBlock::StateBlock(const ModelConfig& config, int64_t element_bytes) {
  const int64_t entries = kStateBlockPositions * config.kv_heads * element_bytes;
  key_bytes = entries * CacheWidth(config.head_dim);
  value_bytes = entries * CacheWidth(config.value_dim);
}

std::shared_ptr<StatePool> MakeStatePool(const StateBlock& block, int64_t bytes, std::shared_ptr<DevicePool> memory) {
  return std::make_shared<StatePool>(block.bytes(), bytes / block.bytes(), kStateSlabBytes / block.bytes(),
                                     [memory = std::move(memory), bytes = block.bytes()](int64_t blocks) {
                                       return DeviceSlab{memory->Take(blocks * bytes)};
                                     });
}

CudaReferenceStates::CudaReferenceStates(const ModelConfig& config, const StateBlock& block,
                                         const std::shared_ptr<StatePool>& pool, int first_layer, int64_t positions,
                                         int64_t tree_rows, absl::FunctionRef<bool(int64_t bytes)> drop)
    : block_(block),
      first_layer_(CheckedLayer(first_layer, config)),
      positions_(positions),
      tree_rows_(tree_rows),
      tree_blocks_(BlocksOfTree(tree_rows, config, block)),
      lease_(pool, (config.layers - first_layer) * StateBlocksOfLayer(positions) + tree_blocks_, drop) {
  blocks_.reserve(lease_.blocks().size());
  for (const StatePool::Block& one : lease_.blocks()) {
    blocks_.push_back(static_cast<char*>(one.slab->data.get()) + one.index * block_.bytes());
  }
}

char* const* CudaReferenceStates::Blocks(int layer) const {
  if (layer < first_layer_) throw std::invalid_argument("a reference has no states below its first layer");
  return blocks_.data() + (layer - first_layer_) * StateBlocksOfLayer(positions_);
}

absl::Span<char* const> CudaReferenceStates::TreeBlocks() const {
  return absl::MakeConstSpan(blocks_).last(static_cast<size_t>(tree_blocks_));
}

}  // namespace c3po::cuda
