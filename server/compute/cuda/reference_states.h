#ifndef C3PO_SERVER_COMPUTE_CUDA_REFERENCE_STATES_H_
#define C3PO_SERVER_COMPUTE_CUDA_REFERENCE_STATES_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "server/compute/backend.h"
#include "server/compute/block_pool.h"
#include "server/compute/cuda/device_memory.h"
#include "server/model/config/model_config.h"

namespace c3po::cuda {

// How a block of states lies: keys [kv_heads, kStateBlockPositions, key width] of one layer, then values likewise, both
// as in KvLayer. Bytes are multiples of 16.
struct StateBlock {
  StateBlock(const ModelConfig& config, int64_t element_bytes);
  int64_t key_bytes = 0, value_bytes = 0;
  int64_t bytes() const { return key_bytes + value_bytes; }
};

// Device memory for blocks.
struct DeviceSlab {
  std::shared_ptr<void> data;
};
using StatePool = BlockPool<DeviceSlab>;

// Of at most `bytes`.
std::shared_ptr<StatePool> MakeStatePool(const StateBlock& block, int64_t bytes, std::shared_ptr<DevicePool> memory);

// What a reference keeps, in blocks: layer by layer the prompt's keys and values, then the tree's rows, float32, one
// after the other from block to block.
class CudaReferenceStates final : public ReferenceStates {
 public:
  // See Backend::NewReferenceStates.
  CudaReferenceStates(const ModelConfig& config, const StateBlock& block, const std::shared_ptr<StatePool>& pool,
                      int first_layer, int64_t positions, int64_t tree_rows,
                      absl::FunctionRef<bool(int64_t bytes)> drop);

  int64_t bytes() const override { return static_cast<int64_t>(blocks_.size()) * block_.bytes(); }
  bool in_pool() const override { return lease_.in_pool(); }
  int first_layer() const { return first_layer_; }
  int64_t positions() const { return positions_; }
  int64_t tree_rows() const { return tree_rows_; }
  const StateBlock& block() const { return block_; }

  // Those of a layer's keys and values, StateBlocksOfLayer(positions()) of them. Throws below the first layer.
  char* const* Blocks(int layer) const;
  // Those of the tree's rows, each full but the last.
  absl::Span<char* const> TreeBlocks() const;

 private:
  const StateBlock block_;
  const int first_layer_;
  const int64_t positions_, tree_rows_;
  const int64_t tree_blocks_;
  const StatePool::Lease lease_;
  std::vector<char*> blocks_;
};

}  // namespace c3po::cuda

#endif  // C3PO_SERVER_COMPUTE_CUDA_REFERENCE_STATES_H_
