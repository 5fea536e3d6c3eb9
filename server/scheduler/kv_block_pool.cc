#include "server/scheduler/kv_block_pool.h"

#include <algorithm>

namespace c3po {

KvBlockPool::KvBlockPool(int64_t blocks) : entries_(static_cast<size_t>(std::max<int64_t>(0, blocks)) + 1) {
  entries_.back().previous = entries_.back().next = end();
  for (int32_t block = 0; block < end(); ++block) Link(block, end());
}

// Available blocks are one ring through `end`: the empty ones, then the kept ones by age.
void KvBlockPool::Link(int32_t block, int32_t before) {
  Entry& entry = entries_[block];
  entry.next = before;
  entry.previous = entries_[before].previous;
  entries_[entry.previous].next = block;
  entries_[before].previous = block;
  ++available_;
}

void KvBlockPool::Unlink(int32_t block) {
  const Entry& entry = entries_[block];
  entries_[entry.previous].next = entry.next;
  entries_[entry.next].previous = entry.previous;
  --available_;
}

void KvBlockPool::Hold(int32_t block) {
  if (entries_[block].holders++ == 0) Unlink(block);
}

KvBlockPool::Prefix KvBlockPool::TakePrefix(absl::Span<const int32_t> tokens, Chain root) {
  Prefix prefix{{}, root};
  for (; tokens.size() >= kPositions; tokens.remove_prefix(kPositions)) {
    const auto known = named_.find(Key(prefix.chain, {tokens.begin(), tokens.begin() + kPositions}));
    if (known == named_.end()) break;
    Hold(known->second);
    prefix.blocks.push_back(known->second);
    prefix.chain = entries_[known->second].chain;
  }
  return prefix;
}

std::optional<int32_t> KvBlockPool::Take(int32_t after) {
  if (available_ == 0) return std::nullopt;
  int32_t block = entries_[end()].next;
  if (after >= 0 && after + 1 < end() && entries_[after + 1].holders == 0 && entries_[after + 1].chain == 0) {
    block = after + 1;
  }
  Hold(block);
  Entry& entry = entries_[block];
  if (entry.chain != 0) {
    named_.erase(entry.key);
    entry.chain = 0;
    entry.key = Key();
  }
  return block;
}

void KvBlockPool::Release(int32_t block) {
  Entry& entry = entries_[block];
  if (--entry.holders > 0) return;
  Link(block, entry.chain == 0 ? entries_[end()].next : end());
}

KvBlockPool::Chain KvBlockPool::Name(int32_t block, Chain parent, absl::Span<const int32_t> tokens) {
  Key key(parent, {tokens.begin(), tokens.end()});
  const auto [named, is_new] = named_.try_emplace(key, block);
  if (!is_new) return entries_[named->second].chain;
  entries_[block].key = std::move(key);
  return entries_[block].chain = ++last_chain_;
}

}  // namespace c3po
