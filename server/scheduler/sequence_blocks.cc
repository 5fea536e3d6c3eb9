#include "server/scheduler/sequence_blocks.h"

#include <algorithm>
#include <optional>

namespace c3po {
namespace {

// A continuation lies in blocks of its own; its last token is never written.
int64_t BlocksOfLongest(const std::vector<std::vector<int32_t>>& continuations) {
  size_t longest = 1;
  for (const auto& continuation : continuations) longest = std::max(longest, continuation.size());
  return KvBlockPool::BlocksFor(static_cast<int64_t>(longest) - 1);
}

}  // namespace

int64_t BlocksNeeded(const SequenceRequest& request) {
  const auto prompt = static_cast<int64_t>(request.prompt.size());
  if (request.continuations.empty()) return KvBlockPool::BlocksFor(prompt + request.sampling.max_tokens);
  return KvBlockPool::BlocksFor(prompt) + BlocksOfLongest(request.continuations);
}

int64_t BlocksMissing(const Sequence& sequence) {
  int64_t blocks = KvBlockPool::BlocksFor(sequence.reserved());
  if (sequence.stage == Sequence::Stage::kScore) {
    blocks += BlocksOfLongest(sequence.request.continuations) - static_cast<int64_t>(sequence.partial.blocks.size());
  }
  return blocks - static_cast<int64_t>(sequence.blocks.size());
}

bool Reserve(Sequence& sequence, int positions, KvBlockPool& pool) {
  while (static_cast<int64_t>(sequence.blocks.size()) < KvBlockPool::BlocksFor(positions)) {
    const std::optional<int32_t> block = pool.Take(sequence.blocks.empty() ? -1 : sequence.blocks.back());
    if (!block) return false;
    sequence.blocks.push_back(*block);
  }
  return true;
}

void GiveBack(Sequence& sequence, KvBlockPool& pool) {
  for (size_t i = sequence.blocks.size(); i > 0; --i) pool.Release(sequence.blocks[i - 1]);
  sequence.blocks.clear();
  for (const int32_t block : sequence.partial.blocks) pool.Release(block);
  sequence.partial = {};
  sequence.state_sum = nullptr;
  sequence.chain = sequence.root();
  sequence.cached = sequence.named = 0;
}

void NameBlocks(Sequence& sequence, KvBlockPool& pool) {
  constexpr int kPositions = KvBlockPool::kPositions;
  while ((sequence.named + 1) * kPositions <= std::min(sequence.cached, sequence.shareable())) {
    const absl::Span<const int32_t> tokens(sequence.tokens.data() + sequence.named * kPositions, kPositions);
    sequence.chain = pool.Name(sequence.blocks[sequence.named++], sequence.chain, tokens);
  }
}

}  // namespace c3po
