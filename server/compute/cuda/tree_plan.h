#ifndef C3PO_SERVER_COMPUTE_CUDA_TREE_PLAN_H_
#define C3PO_SERVER_COMPUTE_CUDA_TREE_PLAN_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "server/compute/backend.h"
#include "server/compute/cuda/attention.h"
#include "server/compute/cuda/device_memory.h"
#include "server/compute/cuda/host_copies.h"
#include "server/compute/cuda/tree_attention.h"

namespace c3po::cuda {

// Arrays of the host that are copied to the device as one piece, each 16-byte aligned.
class DeviceArrays {
 public:
  // Where the array will lie: to be asked of the piece's beginning once it is there.
  template <class T>
  int64_t Add(const std::vector<T>& values) {
    const int64_t at = static_cast<int64_t>(bytes_.size());
    const auto* const first = reinterpret_cast<const char*>(values.data());
    bytes_.insert(bytes_.end(), first, first + values.size() * sizeof(T));
    bytes_.resize((bytes_.size() + 15) / 16 * 16);
    return at;
  }
  // Enqueues the copy.
  std::shared_ptr<void> Send(DevicePool& memory, HostCopies& copies) const;
  const std::vector<char>& bytes() const { return bytes_; }

 private:
  std::vector<char> bytes_;
};

template <class T>
const T* At(const std::shared_ptr<void>& piece, int64_t offset) {
  return reinterpret_cast<const T*>(static_cast<const char*>(piece.get()) + offset);
}

// Where a case's prefix lies in one layer, block by block.
struct PrefixBlocks {
  std::vector<const void*> keys, values;
};

// The rows of several trees as TreeTables has them, on the device: with their positions, and with the blocks of their
// prefixes in some layers.
class TreePlan {
 public:
  // Adds a tree; its rows follow those before. prefix_blocks[i]: of layer first_layer + i.
  void Add(const TreeShape& shape, const std::vector<PrefixBlocks>& prefix_blocks);
  void Send(int first_layer, int block_positions, bool bfloat16, DevicePool& memory, HostCopies& copies);

  int64_t rows() const { return static_cast<int64_t>(row_case_.size()); }
  int64_t columns() const { return columns_.back(); }
  TreeTables tree() const;
  const AttentionRow* positions() const { return At<AttentionRow>(device_, at_.positions); }  // [rows]
  TreePrefixBlocks Prefix(int layer) const;  // Throws for a layer that was not told of.

 private:
  std::vector<int32_t> row_case_, prefix_lengths_, block_begin_, ancestors_, ancestor_begin_{0};
  std::vector<int64_t> columns_{0};
  std::vector<AttentionRow> positions_;
  std::vector<PrefixBlocks> blocks_;  // by layer
  int first_layer_ = 0;
  int block_positions_ = 1;
  bool bfloat16_ = false;
  std::shared_ptr<void> device_;
  struct {
    int64_t row_case, prefix_lengths, block_begin, ancestor_begin, ancestors, columns, descendant_begin, descendants,
        positions;
    std::vector<int64_t> keys, values;  // by layer
  } at_{};
};

}  // namespace c3po::cuda

#endif  // C3PO_SERVER_COMPUTE_CUDA_TREE_PLAN_H_
