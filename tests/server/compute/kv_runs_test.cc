#include "server/compute/kv_runs.h"

#include <gtest/gtest.h>

#include <random>
#include <stdexcept>
#include <vector>

namespace c3po {
namespace {

std::vector<int64_t> SlotsOf(const SequenceRuns& sequence) {
  std::vector<int64_t> slots;
  for (const KvRun& run : sequence.kv) {
    for (int64_t i = 0; i < run.length; ++i) slots.push_back(run.slot + i);
  }
  return slots;
}

TEST(PlacedSequences, JoinsBlocksThatFollowEachOtherAndEndsInsideABlock) {
  const std::vector<int32_t> blocks = {4, 5, 9}, beginning = {1, 2}, own = {3};
  PlacedSequences placed;
  placed.Assign({{0, 3, 64, {{}, 0, blocks}}, {3, 1, 40, {beginning, 40, own}}, {4, 1, 64, {beginning, 64, own}}}, 32);
  ASSERT_EQ(placed.get().size(), 3u);
  ASSERT_EQ(placed.get()[0].kv.size(), 2u);
  EXPECT_EQ(placed.get()[0].kv[0].slot, 128);
  EXPECT_EQ(placed.get()[0].kv[0].length, 64);
  EXPECT_EQ(placed.get()[0].kv[1].slot, 288);
  EXPECT_EQ(placed.get()[0].kv[1].length, 3);
  // Behind a beginning that ends inside a block the next position is a block's first.
  EXPECT_EQ(placed.get()[1].kv.size(), 2u);
  EXPECT_EQ(SlotsOf(placed.get()[1])[40], 96);
  EXPECT_EQ(placed.get()[2].kv.size(), 1u);
}

TEST(PlacedSequences, RefusesRowsWithoutBlocks) {
  const std::vector<int32_t> blocks = {4};
  PlacedSequences placed;
  EXPECT_NO_THROW(placed.Assign({{0, 1, 31, {{}, 0, blocks}}}, 32));
  EXPECT_THROW(placed.Assign({{0, 1, 32, {{}, 0, blocks}}}, 32), std::invalid_argument);
  EXPECT_THROW(placed.Assign({{0, 2, 31, {{}, 0, blocks}}}, 32), std::invalid_argument);
}

// Each position's slot, by definition.
TEST(PlacedSequences, PutsEveryPositionWhereItsBlockIs) {
  for (uint32_t seed = 1; seed <= 50; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 rng(seed);
    const int block_positions = 1 + static_cast<int>(rng() % 5);
    struct Case {
      std::vector<int32_t> beginning, blocks;
      int64_t beginning_positions, length;
    };
    std::vector<Case> cases(1 + rng() % 4);
    std::vector<SequenceRows> sequences;
    for (Case& one : cases) {
      for (size_t i = rng() % 4; i > 0; --i) one.beginning.push_back(static_cast<int32_t>(rng() % 8));
      for (size_t i = 1 + rng() % 4; i > 0; --i) one.blocks.push_back(static_cast<int32_t>(rng() % 8));
      const auto room = static_cast<int64_t>(one.beginning.size()) * block_positions;
      one.beginning_positions = room == 0 ? 0 : static_cast<int64_t>(rng() % static_cast<uint32_t>(room + 1));
      const auto all = one.beginning_positions + static_cast<int64_t>(one.blocks.size()) * block_positions;
      one.length = 1 + static_cast<int64_t>(rng() % static_cast<uint32_t>(all));
      sequences.push_back({0, 1, one.length - 1, {one.beginning, one.beginning_positions, one.blocks}});
    }
    PlacedSequences placed;
    placed.Assign(sequences, block_positions);
    for (size_t c = 0; c < cases.size(); ++c) {
      const Case& one = cases[c];
      std::vector<int64_t> expected;
      for (int64_t p = 0; p < one.length; ++p) {
        const bool early = p < one.beginning_positions;
        const int64_t at = early ? p : p - one.beginning_positions;
        const auto block = static_cast<size_t>(at / block_positions);
        expected.push_back((early ? one.beginning : one.blocks)[block] * int64_t{block_positions} +
                           at % block_positions);
      }
      EXPECT_EQ(SlotsOf(placed.get()[c]), expected);
    }
  }
}

}  // namespace
}  // namespace c3po
