#ifndef C3PO_SERVER_COMPUTE_CPU_REFERENCE_STATES_H_
#define C3PO_SERVER_COMPUTE_CPU_REFERENCE_STATES_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "server/compute/backend.h"
#include "server/compute/block_pool.h"
#include "server/model/config/model_config.h"

namespace c3po::cpu {

// Blocks, one behind the other.
struct BlockSlab {
  std::shared_ptr<void> data;
};
using StatePool = BlockPool<BlockSlab>;

// A block has room for kStateBlockPositions keys and values of all heads in one layer, in `kv`. Of at most `bytes`.
std::shared_ptr<StatePool> MakeStatePool(const ModelConfig& config, ElementType kv, int64_t bytes);

// What a reference keeps, in blocks: layer by layer the prompt's keys and values, as TreePrefixes has them, then the
// tree's rows, float32, one after the other from block to block.
class CpuReferenceStates final : public ReferenceStates {
 public:
  // See Backend::NewReferenceStates. `pool` is of the same configuration and `kv`.
  CpuReferenceStates(const ModelConfig& config, ElementType kv, const std::shared_ptr<StatePool>& pool, int first_layer,
                     int64_t positions, int64_t tree_rows, absl::FunctionRef<bool(int64_t bytes)> drop);
  ~CpuReferenceStates() override;

  int64_t bytes() const override { return bytes_; }
  bool in_pool() const override { return lease_.in_pool(); }
  int64_t positions() const { return positions_; }
  int64_t tree_rows() const { return tree_rows_; }

  // Those of the layer's blocks. Throws below the first layer.
  const void* const* Blocks(int layer) const;
  // k [positions, kv_heads, head_dim], v likewise of value_dim; rounded to what they are kept in.
  void Store(int layer, const float* k, const float* v);
  // Packed rows [tree_rows, hidden size].
  void StoreTree(const float* rows);
  void LoadTree(float* rows) const;

 private:
  int64_t IndexOf(int layer) const;
  // copy(block, first byte of the rows, bytes) for all blocks that hold the tree.
  template <typename Copy>
  void ForEachTreeBlock(const Copy& copy) const;

  const ElementType kv_;
  const int first_layer_;
  const int64_t positions_, tree_rows_;
  const int64_t kv_heads_, head_dim_, value_dim_, hidden_size_;
  const int64_t layer_blocks_;  // of one layer's keys and values
  const int64_t block_bytes_;
  const int64_t tree_blocks_;
  const StatePool::Lease lease_;
  const int64_t bytes_;
  std::vector<void*> blocks_;
};

}  // namespace c3po::cpu

#endif  // C3PO_SERVER_COMPUTE_CPU_REFERENCE_STATES_H_
