#include "server/compute/block_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <new>
#include <random>
#include <set>
#include <thread>
#include <vector>

namespace c3po {
namespace {

struct Slab {
  int64_t blocks;
};
using Pool = BlockPool<Slab>;
using Lease = Pool::Lease;

constexpr int64_t kBlockBytes = 100;

bool Nothing(int64_t) { return false; }

std::shared_ptr<Pool> MakePool(int64_t blocks_max, int64_t slab_blocks) {
  return std::make_shared<Pool>(kBlockBytes, blocks_max, slab_blocks, [](int64_t blocks) { return Slab{blocks}; });
}

std::unique_ptr<Lease> Take(const std::shared_ptr<Pool>& pool, int64_t count) {
  return std::make_unique<Lease>(pool, count, Nothing);
}

using Place = std::pair<const Slab*, int64_t>;
std::vector<Place> PlacesOf(const Lease& lease) {
  std::vector<Place> places;
  for (const Pool::Block& block : lease.blocks()) places.emplace_back(block.slab, block.index);
  return places;
}

TEST(BlockPool, MakesSlabsWhenTheyAreNeededAndNoneBeyondItsBound) {
  const auto pool = MakePool(10, 4);
  EXPECT_EQ(pool->blocks_made(), 0);
  const auto a = Take(pool, 3);
  EXPECT_EQ(pool->blocks_made(), 4);
  const auto b = Take(pool, 3);
  EXPECT_EQ(pool->blocks_made(), 8);
  const auto c = Take(pool, 4);
  EXPECT_EQ(pool->blocks_made(), 10);
  EXPECT_EQ(pool->blocks_in_use(), 10);
  EXPECT_TRUE(a->in_pool() && b->in_pool() && c->in_pool());
  const auto outside = Take(pool, 1);
  EXPECT_FALSE(outside->in_pool());
  EXPECT_EQ(outside->blocks().size(), 1u);
  EXPECT_EQ(pool->blocks_in_use(), 10);
}

TEST(BlockPool, HandsOutWhatCameBackLast) {
  const auto pool = MakePool(8, 8);
  const auto a = Take(pool, 2);
  auto b = Take(pool, 3);
  const std::vector<Place> places = PlacesOf(*b);
  b.reset();
  EXPECT_EQ(PlacesOf(*Take(pool, 3)), places);
  EXPECT_EQ(pool->blocks_in_use(), 2);
}

TEST(BlockPool, AsksForWhatIsMissingUntilThereIsRoom) {
  const auto pool = MakePool(6, 2);
  auto old = Take(pool, 2), older = Take(pool, 3);
  std::vector<int64_t> asked;
  const Lease lease(pool, 5, [&](int64_t bytes) {
    asked.push_back(bytes);
    (older ? older : old).reset();
    return true;
  });
  EXPECT_EQ(asked, (std::vector<int64_t>{4 * kBlockBytes, 1 * kBlockBytes}));
  EXPECT_TRUE(lease.in_pool());
  EXPECT_EQ(pool->blocks_in_use(), 5);
}

TEST(BlockPool, AsksNobodyForRoomThatItCannotHave) {
  const auto pool = MakePool(6, 2);
  bool asked = false;
  const Lease lease(pool, 7, [&](int64_t) { return asked = true; });
  EXPECT_FALSE(asked);
  EXPECT_FALSE(lease.in_pool());
  EXPECT_EQ(lease.blocks().size(), 7u);
  EXPECT_EQ(pool->blocks_made(), 0);
}

TEST(BlockPool, IsWholeAfterASlabThatCouldNotBeMade) {
  int left = 1;
  const auto pool = std::make_shared<Pool>(kBlockBytes, 8, 2, [&left](int64_t blocks) {
    if (left-- <= 0) throw std::bad_alloc();
    return Slab{blocks};
  });
  const auto one = Take(pool, 1);
  EXPECT_THROW(Take(pool, 4), std::bad_alloc);
  EXPECT_THROW(Take(pool, 9), std::bad_alloc) << "outside of it";
  EXPECT_EQ(pool->blocks_in_use(), 1);
  EXPECT_EQ(pool->blocks_made(), 2);
  EXPECT_TRUE(Take(pool, 1)->in_pool());
  left = 3;
  const auto rest = Take(pool, 7);
  EXPECT_TRUE(rest->in_pool());
  EXPECT_EQ(pool->blocks_in_use(), 8);
}

TEST(BlockPool, LivesAsLongAsABlockOfIt) {
  auto pool = MakePool(4, 4);
  const std::weak_ptr<Pool> seen = pool;
  auto lease = Take(pool, 2);
  pool.reset();
  EXPECT_FALSE(seen.expired());
  lease.reset();
  EXPECT_TRUE(seen.expired());
}

// Whoever holds a block is its only holder, in any order of taking and giving back, and on any thread.
TEST(BlockPool, NeverGivesABlockToTwo) {
  const auto pool = MakePool(64, 5);
  std::mt19937 rng(1);
  std::vector<std::unique_ptr<Lease>> held;
  int64_t outside = 0;
  for (int round = 0; round < 2000; ++round) {
    if (!held.empty() && rng() % 2 == 0) {
      std::swap(held[rng() % held.size()], held.back());
      held.pop_back();
    } else {
      held.push_back(Take(pool, static_cast<int64_t>(rng() % 12)));
      outside += held.back()->in_pool() ? 0 : 1;
    }
    std::set<Place> places;
    int64_t in_pool = 0, all = 0;
    for (const auto& lease : held) {
      for (const Place& place : PlacesOf(*lease)) places.insert(place);
      all += static_cast<int64_t>(lease->blocks().size());
      if (lease->in_pool()) in_pool += static_cast<int64_t>(lease->blocks().size());
    }
    ASSERT_EQ(static_cast<int64_t>(places.size()), all);
    ASSERT_EQ(pool->blocks_in_use(), in_pool);
  }
  EXPECT_GT(outside, 0);
  std::thread other([&held] { held.clear(); });
  for (int i = 0; i < 1000; ++i) Take(pool, 3);
  other.join();
  EXPECT_EQ(pool->blocks_in_use(), 0);
  EXPECT_EQ(pool->blocks_made(), 64);
}

}  // namespace
}  // namespace c3po
