#include "server/scheduler/kv_block_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <numeric>
#include <random>
#include <set>

namespace c3po {
namespace {

using testing::ElementsAre;

constexpr int kPositions = KvBlockPool::kPositions;

std::vector<int32_t> Tokens(int count, int32_t first) {
  std::vector<int32_t> tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

absl::Span<const int32_t> BlockOf(const std::vector<int32_t>& tokens, int i) {
  return absl::MakeSpan(tokens).subspan(i * kPositions, kPositions);
}

TEST(KvBlockPool, GivesNeighboringBlocksWhileItCanAndNoneWhenAllAreHeld) {
  KvBlockPool pool(4);
  const int32_t first = *pool.Take();
  const int32_t other = *pool.Take(first);
  EXPECT_EQ(other, first + 1);
  pool.Take();
  pool.Take();
  EXPECT_EQ(pool.available(), 0);
  EXPECT_EQ(pool.Take(), std::nullopt);
  pool.Release(first);
  EXPECT_EQ(pool.held(), 3);
  EXPECT_EQ(*pool.Take(), first);
}

TEST(KvBlockPool, ANamedBlockIsFoundAgainUntilItsRoomIsNeeded) {
  KvBlockPool pool(3);
  const std::vector<int32_t> tokens = Tokens(2 * kPositions, 100);
  const int32_t a = *pool.Take(), b = *pool.Take(a);
  const KvBlockPool::Chain chain = pool.Name(a, 0, BlockOf(tokens, 0));
  const KvBlockPool::Chain whole = pool.Name(b, chain, BlockOf(tokens, 1));
  pool.Release(b);
  pool.Release(a);
  EXPECT_EQ(pool.held(), 0);

  auto found = pool.TakePrefix(tokens);
  EXPECT_THAT(found.blocks, ElementsAre(a, b));
  EXPECT_EQ(found.chain, whole);
  // A second holder.
  EXPECT_THAT(pool.TakePrefix(absl::MakeSpan(tokens).subspan(0, 2 * kPositions - 1)).blocks, ElementsAre(a));
  EXPECT_EQ(pool.held(), 2);
  pool.Release(a);
  pool.Release(b);
  EXPECT_EQ(pool.held(), 1);
  pool.Release(a);

  // The empty block goes first, then the one that was let go first.
  EXPECT_EQ(*pool.Take(), 3 - a - b);
  EXPECT_EQ(*pool.Take(), b);
  EXPECT_THAT(pool.TakePrefix(tokens).blocks, ElementsAre(a));
}

TEST(KvBlockPool, TheSameTokensBehindAnotherRootAreOtherContents) {
  KvBlockPool pool(4);
  const std::vector<int32_t> tokens = Tokens(kPositions, 1);
  const int32_t a = *pool.Take(), b = *pool.Take();
  const KvBlockPool::Chain own = pool.Name(a, 0, tokens), other = pool.Name(b, 3, tokens);
  EXPECT_NE(own, other);
  EXPECT_GT(own, KvBlockPool::kRoots) << "no root is ever a chain";
  EXPECT_THAT(pool.TakePrefix(tokens).blocks, ElementsAre(a));
  EXPECT_THAT(pool.TakePrefix(tokens, 3).blocks, ElementsAre(b));
  const KvBlockPool::Prefix none = pool.TakePrefix(tokens, 4);
  EXPECT_TRUE(none.blocks.empty());
  EXPECT_EQ(none.chain, 4u);
}

TEST(KvBlockPool, TheSameTokensBehindAnotherBeginningAreOtherContents) {
  KvBlockPool pool(4);
  const std::vector<int32_t> one = Tokens(kPositions, 1), two = Tokens(kPositions, 2), end = Tokens(kPositions, 900);
  const int32_t a = *pool.Take(), b = *pool.Take(), c = *pool.Take();
  const KvBlockPool::Chain first = pool.Name(a, 0, one), second = pool.Name(b, 0, two);
  pool.Name(c, first, end);
  std::vector<int32_t> tokens = two;
  tokens.insert(tokens.end(), end.begin(), end.end());
  EXPECT_THAT(pool.TakePrefix(tokens).blocks, ElementsAre(b));
  EXPECT_NE(first, second);
  // The same contents once more: the first block keeps the name, and the chain goes on from it.
  const int32_t d = *pool.Take();
  EXPECT_EQ(pool.Name(d, 0, one), first);
  pool.Release(d);
  EXPECT_THAT(pool.TakePrefix(one).blocks, ElementsAre(a));
}

// Against a plain model of who holds what, and of what every named block contains.
TEST(KvBlockPool, RandomUseNeverSharesAHeldBlockNorForgetsAHolder) {
  for (uint32_t seed = 1; seed <= 50; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 rng(seed);
    KvBlockPool pool(1 + static_cast<int64_t>(rng() % 12));
    std::map<int32_t, int> holders;
    std::map<int32_t, std::vector<int32_t>> contents;  // all tokens up to the end of the block
    struct Held {
      std::vector<int32_t> blocks, tokens;
      KvBlockPool::Chain chain;
    };
    std::vector<Held> sequences;
    for (int step = 0; step < 400; ++step) {
      if (rng() % 2 == 0) {
        std::vector<int32_t> tokens;
        for (uint32_t i = 0; i <= rng() % 3; ++i)
          tokens.resize(tokens.size() + kPositions, static_cast<int32_t>(rng() % 3));
        KvBlockPool::Prefix prefix = pool.TakePrefix(tokens);
        for (size_t i = 0; i < prefix.blocks.size(); ++i) {
          ++holders[prefix.blocks[i]];
          const std::vector<int32_t> before(tokens.begin(), tokens.begin() + (i + 1) * kPositions);
          EXPECT_EQ(contents[prefix.blocks[i]], before);
        }
        Held held{prefix.blocks, tokens, prefix.chain};
        while (held.blocks.size() * kPositions < tokens.size()) {
          const auto block = pool.Take(held.blocks.empty() ? -1 : held.blocks.back());
          if (!block) break;
          EXPECT_EQ(holders[*block]++, 0);
          held.blocks.push_back(*block);
          const size_t end = held.blocks.size() * kPositions;
          contents[*block].assign(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(end));
          held.chain = pool.Name(*block, held.chain, BlockOf(tokens, static_cast<int>(held.blocks.size()) - 1));
        }
        sequences.push_back(std::move(held));
      } else if (!sequences.empty()) {
        const size_t i = rng() % sequences.size();
        for (size_t b = sequences[i].blocks.size(); b > 0; --b) {
          --holders[sequences[i].blocks[b - 1]];
          pool.Release(sequences[i].blocks[b - 1]);
        }
        sequences.erase(sequences.begin() + static_cast<std::ptrdiff_t>(i));
      }
      const auto held = std::count_if(holders.begin(), holders.end(), [](const auto& h) { return h.second > 0; });
      ASSERT_EQ(pool.held(), held);
    }
  }
}

}  // namespace
}  // namespace c3po
