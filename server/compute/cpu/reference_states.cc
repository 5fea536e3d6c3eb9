#include "server/compute/cpu/reference_states.h"

#include <algorithm>
#include <stdexcept>

#include "server/compute/cpu/memory.h"

namespace c3po::cpu {
namespace {

constexpr int64_t kFloatBytes = sizeof(float);

int CheckedLayer(int first_layer, const ModelConfig& config) {
  if (first_layer < 0 || first_layer >= config.layers) throw std::invalid_argument("the model has no such first layer");
  return first_layer;
}

}  // namespace

std::shared_ptr<StatePool> MakeStatePool(const ModelConfig& config, int64_t bytes) {
  const int64_t block_bytes = StateBlockElements(config) * kFloatBytes;
  return std::make_shared<StatePool>(block_bytes, bytes / block_bytes, kStateSlabBytes / block_bytes,
                                     [block_bytes](int64_t blocks) {
                                       // What the blocks in use take counts as held, not the slab.
                                       return FloatSlab{AllocateUncounted(blocks * block_bytes)};
                                     });
}

CpuReferenceStates::CpuReferenceStates(const ModelConfig& config, const std::shared_ptr<StatePool>& pool,
                                       int first_layer, int64_t positions, int64_t tree_rows,
                                       absl::FunctionRef<bool(int64_t bytes)> drop)
    : first_layer_(CheckedLayer(first_layer, config)),
      positions_(positions),
      tree_rows_(tree_rows),
      kv_heads_(config.kv_heads),
      head_dim_(config.head_dim),
      value_dim_(config.value_dim),
      hidden_size_(config.hidden_size),
      layer_blocks_(StateBlocksOfLayer(positions)),
      block_floats_(StateBlockElements(config)),
      lease_(pool, (config.layers - first_layer) * layer_blocks_ + StateBlocksOfRows(tree_rows, config), drop),
      tree_blocks_(StateBlocksOfRows(tree_rows, config)),
      bytes_(static_cast<int64_t>(lease_.blocks().size()) * block_floats_ * kFloatBytes) {
  blocks_.reserve(lease_.blocks().size());
  for (const StatePool::Block& block : lease_.blocks()) {
    blocks_.push_back(static_cast<float*>(block.slab->data.get()) + block.index * block_floats_);
  }
  HeldMemory::Add(bytes_);
}

CpuReferenceStates::~CpuReferenceStates() { HeldMemory::Add(-bytes_); }

int64_t CpuReferenceStates::IndexOf(int layer) const {
  if (layer < first_layer_) throw std::invalid_argument("a reference has no states below its first layer");
  return (layer - first_layer_) * layer_blocks_;
}

const float* const* CpuReferenceStates::Blocks(int layer) const { return blocks_.data() + IndexOf(layer); }

void CpuReferenceStates::Store(int layer, const float* k, const float* v) {
  const int64_t first = IndexOf(layer);
  for (int64_t p = 0; p < positions_; ++p) {
    float* const keys = blocks_[static_cast<size_t>(first + p / kStateBlockPositions)];
    float* const values = keys + kStateBlockPositions * kv_heads_ * head_dim_;
    const int64_t at = p % kStateBlockPositions;
    for (int64_t g = 0; g < kv_heads_; ++g) {
      std::copy_n(k + (p * kv_heads_ + g) * head_dim_, head_dim_, keys + (g * kStateBlockPositions + at) * head_dim_);
      std::copy_n(v + (p * kv_heads_ + g) * value_dim_, value_dim_,
                  values + (g * kStateBlockPositions + at) * value_dim_);
    }
  }
}

template <typename Copy>
void CpuReferenceStates::ForEachTreeBlock(const Copy& copy) const {
  const int64_t all = tree_rows_ * hidden_size_;
  float* const* const tree = blocks_.data() + blocks_.size() - static_cast<size_t>(tree_blocks_);
  for (int64_t b = 0; b < tree_blocks_; ++b) {
    copy(tree[b], b * block_floats_, std::min(block_floats_, all - b * block_floats_));
  }
}

void CpuReferenceStates::StoreTree(const float* rows) {
  ForEachTreeBlock([rows](float* block, int64_t begin, int64_t count) { std::copy_n(rows + begin, count, block); });
}

void CpuReferenceStates::LoadTree(float* rows) const {
  ForEachTreeBlock(
      [rows](const float* block, int64_t begin, int64_t count) { std::copy_n(block, count, rows + begin); });
}

}  // namespace c3po::cpu
