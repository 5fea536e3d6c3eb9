#include "server/compute/aten/padded_trees.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <utility>
#include <vector>

namespace c3po::aten {
namespace {

// Sizes {rows, prefix} of chains.
std::vector<std::vector<size_t>> GroupsOf(const std::vector<std::pair<int64_t, int64_t>>& sizes) {
  static const std::vector<int> kZeros(64);
  std::vector<TreeShape> trees;
  for (const auto& [rows, prefix] : sizes) {
    const auto numbers = absl::MakeConstSpan(kZeros).first(static_cast<size_t>(rows));
    trees.push_back({numbers, numbers, prefix});
  }
  return GroupTrees(trees);
}

TEST(GroupTrees, PutsTogetherWhatIsOfAboutOneSize) {
  using Groups = std::vector<std::vector<size_t>>;
  EXPECT_EQ(GroupsOf({}), Groups());
  EXPECT_EQ(GroupsOf({{3, 50}}), Groups({{0}}));
  EXPECT_EQ(GroupsOf({{2, 50}, {2, 50}, {2, 40}, {2, 55}}), Groups({{0, 1, 2, 3}}));
  EXPECT_EQ(GroupsOf({{1, 10}, {1, 1000}, {1, 12}, {1, 11}}), Groups({{0, 2, 3}, {1}}));
  EXPECT_EQ(GroupsOf({{40, 10}, {1, 49}, {1, 49}}), Groups({{1, 2}, {0}})) << "as many columns, more rows";
}

// Together at most half as much again as they have themselves, whatever their sizes.
TEST(GroupTrees, NeverPadsMuch) {
  std::mt19937 rng(2);
  for (int round = 0; round < 300; ++round) {
    std::vector<std::pair<int64_t, int64_t>> sizes;
    for (uint32_t i = 0; i < 1 + rng() % 20; ++i) {
      sizes.emplace_back(1 + rng() % (rng() % 2 ? 4 : 60), rng() % (rng() % 3 ? 40 : 900));
    }
    std::vector<int> seen(sizes.size());
    for (const std::vector<size_t>& group : GroupsOf(sizes)) {
      int64_t rows = 0, columns = 0, pairs = 0, rows_max = 0, prefix_max = 0;
      for (const size_t s : group) {
        const auto& [own, prefix] = sizes[s];
        ++seen[s];
        rows += own;
        columns += own + prefix;
        pairs += own * (own + prefix);
        rows_max = std::max(rows_max, own);
        prefix_max = std::max(prefix_max, prefix);
      }
      const auto count = static_cast<int64_t>(group.size()), width = prefix_max + rows_max;
      EXPECT_LE(2 * count * rows_max, 3 * rows);
      EXPECT_LE(2 * count * width, 3 * columns);
      EXPECT_LE(2 * count * rows_max * width, 3 * pairs);
    }
    EXPECT_EQ(seen, std::vector<int>(sizes.size(), 1));
  }
}

}  // namespace
}  // namespace c3po::aten
