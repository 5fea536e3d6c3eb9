#ifndef C3PO_SERVER_SCHEDULER_KV_BLOCK_POOL_H_
#define C3PO_SERVER_SCHEDULER_KV_BLOCK_POOL_H_

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"
#include "server/types/kv_blocks.h"

namespace c3po {

// Which blocks of the cache hold what. A block is
//   held        by one or more holders, or
//   available   and then either empty, or kept: nobody holds it, but what it contains has a name, so that a sequence
//   that
//               begins with the same tokens takes it as it is (prefix reuse).
// Who needs room gets empty blocks first, then kept ones, the least recently used first. Bookkeeping only: no tensors.
// Not thread-safe.
class KvBlockPool {
 public:
  static constexpr int kPositions = 32;
  // Names a beginning of whole blocks: the chain before its last block, and that block's tokens. 0 is the empty one.
  // Tokens are compared, not their hashes, and a chain that is gone is never named again. Numbers below kRoots are
  // empty beginnings as well, of sequences that are computed in other ways and share nothing.
  using Chain = uint64_t;
  static constexpr Chain kRoots = Chain{1} << 20;

  explicit KvBlockPool(int64_t blocks);

  // The longest beginning of `tokens` behind `root` in whole blocks that the pool knows, each block with one more
  // holder.
  struct Prefix {
    std::vector<int32_t> blocks;
    Chain chain = 0;
  };
  Prefix TakePrefix(absl::Span<const int32_t> tokens, Chain root = 0);

  // A block without contents, with one holder; the one behind `after` if that is empty, so that sequences lie in long
  // runs. nullopt: all are held.
  std::optional<int32_t> Take(int32_t after = -1);
  void Release(int32_t block);

  // `block`, which the caller holds, contains the keys and values that the model, as it is, gives `tokens` (kPositions
  // of them) after `parent`. Returns the chain that ends with it. Where another block has the same name already,
  // `block` stays nameless.
  Chain Name(int32_t block, Chain parent, absl::Span<const int32_t> tokens);

  int64_t blocks() const { return static_cast<int64_t>(entries_.size()) - 1; }
  int64_t available() const { return available_; }  // empty or kept
  int64_t held() const { return blocks() - available_; }

  static int64_t BlocksFor(int64_t positions) { return (positions + kPositions - 1) / kPositions; }
  // Of whole blocks: what remains of `positions` is left out.
  static KvCacheShape CacheOf(int64_t positions) { return {positions / kPositions, kPositions}; }

 private:
  using Key = std::pair<Chain, std::vector<int32_t>>;  // parent, tokens
  struct Entry {
    int holders = 0;
    Chain chain = 0;  // 0: nameless
    Key key;
    int32_t previous = 0, next = 0;  // among the available ones
  };

  int32_t end() const { return static_cast<int32_t>(blocks()); }  // the list's both ends
  void Link(int32_t block, int32_t before);
  void Unlink(int32_t block);
  void Hold(int32_t block);

  std::vector<Entry> entries_;  // one per block, then the list's end
  int64_t available_ = 0;
  Chain last_chain_ = kRoots;
  absl::flat_hash_map<Key, int32_t> named_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_SCHEDULER_KV_BLOCK_POOL_H_
