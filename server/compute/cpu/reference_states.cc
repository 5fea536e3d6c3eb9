#include "server/compute/cpu/reference_states.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "server/compute/cpu/attention.h"
#include "server/compute/cpu/memory.h"

namespace c3po::cpu {
namespace {

int CheckedLayer(int first_layer, const ModelConfig& config) {
  if (first_layer < 0 || first_layer >= config.layers) throw std::invalid_argument("the model has no such first layer");
  return first_layer;
}

}  // namespace

std::shared_ptr<StatePool> MakeStatePool(const ModelConfig& config, ElementType kv, int64_t bytes) {
  const int64_t block_bytes = StateBlockBytes(config, kv);
  return std::make_shared<StatePool>(block_bytes, bytes / block_bytes, kStateSlabBytes / block_bytes,
                                     [block_bytes](int64_t blocks) {
                                       // What the blocks in use take counts as held, not the slab.
                                       return BlockSlab{AllocateUncounted(blocks * block_bytes)};
                                     });
}

CpuReferenceStates::CpuReferenceStates(const ModelConfig& config, ElementType kv,
                                       const std::shared_ptr<StatePool>& pool, int first_layer, int64_t positions,
                                       int64_t tree_rows, absl::FunctionRef<bool(int64_t bytes)> drop)
    : kv_(kv),
      first_layer_(CheckedLayer(first_layer, config)),
      positions_(positions),
      tree_rows_(tree_rows),
      kv_heads_(config.kv_heads),
      head_dim_(config.head_dim),
      value_dim_(config.value_dim),
      hidden_size_(config.hidden_size),
      layer_blocks_(StateBlocksOfLayer(positions)),
      block_bytes_(StateBlockBytes(config, kv)),
      tree_blocks_(StateBlocksOfRows(tree_rows, config, ElementType::kFloat32, kv)),
      lease_(pool, (config.layers - first_layer) * layer_blocks_ + tree_blocks_, drop),
      bytes_(static_cast<int64_t>(lease_.blocks().size()) * block_bytes_) {
  blocks_.reserve(lease_.blocks().size());
  for (const StatePool::Block& block : lease_.blocks()) {
    blocks_.push_back(static_cast<char*>(block.slab->data.get()) + block.index * block_bytes_);
  }
  HeldMemory::Add(bytes_);
}

CpuReferenceStates::~CpuReferenceStates() { HeldMemory::Add(-bytes_); }

int64_t CpuReferenceStates::IndexOf(int layer) const {
  if (layer < first_layer_) throw std::invalid_argument("a reference has no states below its first layer");
  return (layer - first_layer_) * layer_blocks_;
}

const void* const* CpuReferenceStates::Blocks(int layer) const { return blocks_.data() + IndexOf(layer); }

void CpuReferenceStates::Store(int layer, const float* k, const float* v) {
  const int64_t first = IndexOf(layer);
  for (int64_t p = 0; p < positions_; ++p) {
    char* const keys = static_cast<char*>(blocks_[static_cast<size_t>(first + p / kStateBlockPositions)]);
    char* const values = keys + kStateBlockPositions * kv_heads_ * head_dim_ * BytesOf(kv_);
    const int64_t at = p % kStateBlockPositions;
    for (int64_t g = 0; g < kv_heads_; ++g) {
      const int64_t from = p * kv_heads_ + g, to = (g * kStateBlockPositions + at) * BytesOf(kv_);
      StoreElements(k + from * head_dim_, head_dim_, kv_, keys + to * head_dim_);
      StoreElements(v + from * value_dim_, value_dim_, kv_, values + to * value_dim_);
    }
  }
}

template <typename Copy>
void CpuReferenceStates::ForEachTreeBlock(const Copy& copy) const {
  const int64_t all = tree_rows_ * hidden_size_ * static_cast<int64_t>(sizeof(float));
  void* const* const tree = blocks_.data() + blocks_.size() - static_cast<size_t>(tree_blocks_);
  for (int64_t b = 0; b < tree_blocks_; ++b) {
    copy(tree[b], b * block_bytes_, static_cast<size_t>(std::min(block_bytes_, all - b * block_bytes_)));
  }
}

void CpuReferenceStates::StoreTree(const float* rows) {
  const auto* const from = reinterpret_cast<const char*>(rows);
  ForEachTreeBlock([from](void* block, int64_t begin, size_t bytes) { std::memcpy(block, from + begin, bytes); });
}

void CpuReferenceStates::LoadTree(float* rows) const {
  auto* const to = reinterpret_cast<char*>(rows);
  ForEachTreeBlock([to](const void* block, int64_t begin, size_t bytes) { std::memcpy(to + begin, block, bytes); });
}

}  // namespace c3po::cpu
