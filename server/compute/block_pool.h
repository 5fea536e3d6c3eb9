#ifndef C3PO_SERVER_COMPUTE_BLOCK_POOL_H_
#define C3PO_SERVER_COMPUTE_BLOCK_POOL_H_

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/synchronization/mutex.h"
#include "server/compute/matrix.h"
#include "server/model/config/model_config.h"

namespace c3po {

// The blocks that references' states lie in, of one size whatever layers a state has: kStateBlockPositions keys and
// values of one layer, of all its heads. Few, as the last block of a layer may be part empty.
inline constexpr int64_t kStateBlockPositions = 8;
inline int64_t StateBlockElements(const ModelConfig& config) {
  return kStateBlockPositions * config.kv_heads * (config.head_dim + config.value_dim);
}
// Keys and values are kept in `kv`.
inline int64_t StateBlockBytes(const ModelConfig& config, ElementType kv) {
  return StateBlockElements(config) * BytesOf(kv);
}
// Of keys and values of so many positions in one layer; of rows of hidden states of type `hidden`, which follow each
// other.
inline int64_t StateBlocksOfLayer(int64_t positions) {
  return (positions + kStateBlockPositions - 1) / kStateBlockPositions;
}
inline int64_t StateBlocksOfRows(int64_t rows, const ModelConfig& config, ElementType hidden, ElementType kv) {
  const int64_t block = StateBlockBytes(config, kv);
  return (rows * config.hidden_size * BytesOf(hidden) + block - 1) / block;
}
// What a pool of them grows by.
inline constexpr int64_t kStateSlabBytes = int64_t{16} << 20;

// Blocks of one size, at most blocks_max, in slabs: a slab is memory for several blocks, made by `make_slab`. Slabs are
// made when they are first needed, so that a process that keeps no states has none, and a bound beyond what the machine
// has costs nothing before that much is kept. They stay with the pool. The block that came back last is handed out
// first: few pages are touched.
template <typename Slab>
class BlockPool {
 public:
  struct Block {
    Slab* slab = nullptr;
    int64_t index = 0;  // of the slab's blocks
  };
  // Memory for so many blocks. May throw; then the pool is as before.
  using MakeSlab = std::function<Slab(int64_t blocks)>;

  BlockPool(int64_t block_bytes, int64_t blocks_max, int64_t slab_blocks, MakeSlab make_slab)
      : block_bytes_(block_bytes),
        blocks_max_(blocks_max),
        slab_blocks_(std::max<int64_t>(1, slab_blocks)),
        make_slab_(std::move(make_slab)) {}

  int64_t block_bytes() const { return block_bytes_; }
  // In use, and of the slabs that were made. Any thread.
  int64_t blocks_in_use() const {
    const absl::MutexLock lock(&mu_);
    return made_ - static_cast<int64_t>(free_.size());
  }
  int64_t blocks_made() const {
    const absl::MutexLock lock(&mu_);
    return made_;
  }

  // Blocks of somebody who keeps the pool alive; they go back when the lease goes, on any thread.
  class Lease {
   public:
    // While the pool has too few, `drop` is told how many bytes of blocks are missing: it lets go of others' that give
    // back as many, or of none, and says which. Without room the blocks lie outside of the pool, in a slab of their
    // own. Throws what make_slab throws, and then holds nothing.
    Lease(std::shared_ptr<BlockPool> pool, int64_t count, absl::FunctionRef<bool(int64_t bytes)> drop) {
      blocks_.reserve(static_cast<size_t>(count));
      if (pool->Take(count, drop, blocks_)) {
        pool_ = std::move(pool);
        return;
      }
      own_ = std::make_unique<Slab>(pool->make_slab_(count));
      for (int64_t i = 0; i < count; ++i) blocks_.push_back({own_.get(), i});
    }
    ~Lease() {
      if (pool_) pool_->Return(blocks_);
    }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;

    const std::vector<Block>& blocks() const { return blocks_; }
    bool in_pool() const { return pool_ != nullptr; }

   private:
    std::shared_ptr<BlockPool> pool_;  // null: the blocks are `own_`'s
    std::unique_ptr<Slab> own_;
    std::vector<Block> blocks_;
  };

 private:
  // `out` has room for `count`. False: nothing was taken.
  bool Take(int64_t count, absl::FunctionRef<bool(int64_t bytes)> drop, std::vector<Block>& out) {
    if (count > blocks_max_) return false;
    while (const int64_t missing = TakeNow(count, out)) {
      if (!drop(missing * block_bytes_)) return false;
    }
    return true;
  }
  // 0, or how many are missing.
  int64_t TakeNow(int64_t count, std::vector<Block>& out) {
    const absl::MutexLock lock(&mu_);
    const int64_t missing = count - static_cast<int64_t>(free_.size()) - (blocks_max_ - made_);
    if (missing > 0) return missing;
    while (static_cast<int64_t>(free_.size()) < count) Grow();
    for (int64_t i = 0; i < count; ++i) {
      out.push_back(free_.back());
      free_.pop_back();
    }
    return 0;
  }
  void Grow() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const int64_t count = std::min(slab_blocks_, blocks_max_ - made_);
    free_.reserve(static_cast<size_t>(made_ + count));  // So that none that comes back needs memory.
    slabs_.reserve(slabs_.size() + 1);
    slabs_.push_back(std::make_unique<Slab>(make_slab_(count)));
    for (int64_t i = count - 1; i >= 0; --i) free_.push_back({slabs_.back().get(), i});
    made_ += count;
  }
  void Return(const std::vector<Block>& blocks) {
    const absl::MutexLock lock(&mu_);
    free_.insert(free_.end(), blocks.rbegin(), blocks.rend());
  }

  const int64_t block_bytes_, blocks_max_, slab_blocks_;
  const MakeSlab make_slab_;
  mutable absl::Mutex mu_;
  std::vector<std::unique_ptr<Slab>> slabs_ ABSL_GUARDED_BY(mu_);
  std::vector<Block> free_ ABSL_GUARDED_BY(mu_);  // The last one is the next.
  int64_t made_ ABSL_GUARDED_BY(mu_) = 0;         // in all slabs
};

}  // namespace c3po

#endif  // C3PO_SERVER_COMPUTE_BLOCK_POOL_H_
