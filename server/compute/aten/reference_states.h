#ifndef C3PO_SERVER_COMPUTE_ATEN_REFERENCE_STATES_H_
#define C3PO_SERVER_COMPUTE_ATEN_REFERENCE_STATES_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"
#include "server/compute/backend.h"
#include "server/compute/block_pool.h"
#include "server/model/config/model_config.h"

namespace c3po::aten {

// A block is kStateBlockPositions rows of keys [kv_heads, head_dim], then as many of values, likewise of value_dim.
struct TensorSlab {
  at::Tensor blocks;  // [blocks, StateBlockElements]
};
using StatePool = BlockPool<TensorSlab>;

// Of at most `bytes`; `options` of keys and values.
std::shared_ptr<StatePool> MakeStatePool(const ModelConfig& config, const at::TensorOptions& options, int64_t bytes);

// What a reference keeps, in blocks: layer by layer the prompt's keys and values, then the tree's rows. A block that
// came back may still be read by work in the device's queue: whoever takes it next writes it behind that.
class AtenReferenceStates final : public ReferenceStates {
 public:
  // See Backend::NewReferenceStates. `info`: types of the tree's rows and of keys and values, which the pool has.
  AtenReferenceStates(const ModelConfig& config, const BackendInfo& info, const std::shared_ptr<StatePool>& pool,
                      int first_layer, int64_t positions, int64_t tree_rows,
                      absl::FunctionRef<bool(int64_t bytes)> drop);

  int64_t bytes() const override { return bytes_; }
  bool in_pool() const override { return lease_.in_pool(); }
  int first_layer() const { return first_layer_; }
  int64_t positions() const { return positions_; }
  int64_t tree_rows() const { return tree_rows_; }

  const StatePool::Block& BlockOf(int layer, int64_t position) const;
  // k [positions, kv_heads, head_dim], v likewise of value_dim, both of the pool's type.
  void Store(int layer, const at::Tensor& k, const at::Tensor& v);
  // [tree_rows, hidden size], of the activations' type, whose bytes are kept.
  void StoreTree(const at::Tensor& rows);
  void LoadTree(const at::Tensor& rows) const;

 private:
  // copy(part of a block, as many of `flat`) for all blocks that hold the tree; flat: its numbers, one after the other.
  void ForEachTreeBlock(const at::Tensor& flat,
                        absl::FunctionRef<void(const at::Tensor& of_block, const at::Tensor& of_rows)> copy) const;

  const ModelConfig config_;
  const int first_layer_;
  const int64_t positions_, tree_rows_;
  const int64_t tree_blocks_;
  const StatePool::Lease lease_;
  const int64_t bytes_;
};

// The keys and values of several references in one layer, S prompts as rows of one length while a product reads them.
class PaddedPrompts {
 public:
  // Null: of a reference without a prompt before its tree. They outlive this object.
  PaddedPrompts(const ModelConfig& config, absl::Span<const AtenReferenceStates* const> states, int layer,
                int64_t length, const at::TensorOptions& options);

  // Copies in the type of `options`: [S, kv_heads, length, head_dim], likewise of value_dim; 0 behind a prompt's end.
  at::Tensor Keys() const { return Gather(0, head_dim_); }
  at::Tensor Values() const { return Gather(kStateBlockPositions * kv_heads_ * head_dim_, value_dim_); }

 private:
  at::Tensor Gather(int64_t begin, int64_t dim) const;

  // What lies in one slab.
  struct Part {
    const TensorSlab* slab;
    at::Tensor rows;             // int64 [n] of S * length
    at::Tensor blocks, offsets;  // int64 [n]: the block of each, and its position there
  };

  int64_t kv_heads_, head_dim_, value_dim_;
  int64_t count_, length_;
  at::TensorOptions options_;
  std::vector<Part> parts_;
};

}  // namespace c3po::aten

#endif  // C3PO_SERVER_COMPUTE_ATEN_REFERENCE_STATES_H_
