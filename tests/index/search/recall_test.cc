#include "index/search/recall.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <utility>
#include <vector>

#include "tests/index/store/random_reference.h"

namespace c3po {
namespace {

constexpr int kDimension = 12, kMembers = 150, k = 6;

class RecallTest : public ::testing::Test {
 protected:
  RecallTest() : queries_(SpreadQueries(kMembers, 20)) {
    std::mt19937 random(20261129);
    for (int i = 0; i < kMembers; ++i) vectors_.push_back(RandomUnitVector(random, kDimension));
    for (int i = 0; i < kMembers; ++i) members_.push_back({1000 - i, vectors_[i]});
  }

  // All members by their distance from a query in double precision, itself first.
  std::vector<LabeledDistance> Naive(size_t query) const {
    std::vector<std::pair<double, int64_t>> all;
    for (const LabeledVector& member : members_) {
      double sum = 0;
      for (int i = 0; i < kDimension; ++i) sum += std::pow(double{member.vector[i]} - members_[query].vector[i], 2);
      all.emplace_back(std::sqrt(sum), member.label);
    }
    std::sort(all.begin(), all.end());
    std::vector<LabeledDistance> nearest;
    for (const auto& [distance, label] : all) nearest.push_back({label, static_cast<float>(distance) - 1e-6f});
    return nearest;
  }

  // What a search finds that leaves out the `missed` nearest of every query's k others, and finds farther ones instead.
  double Recall(int missed) const {
    std::vector<std::vector<LabeledDistance>> found;
    for (const size_t query : queries_) {
      std::vector<LabeledDistance> nearest = Naive(query);
      nearest.erase(nearest.begin() + 1, nearest.begin() + 1 + missed);
      nearest.resize(k + 1);
      found.push_back(nearest);
    }
    return CountRecall(members_, queries_, k, found).Share();
  }

  std::vector<std::vector<float>> vectors_;
  std::vector<LabeledVector> members_;
  const std::vector<size_t> queries_;
};

TEST_F(RecallTest, IsTheShareOfTheExactNeighborsThatWereFound) {
  for (int missed = 0; missed <= k; ++missed) EXPECT_DOUBLE_EQ(Recall(missed), (k - missed) / double{k}) << missed;
}

TEST_F(RecallTest, TheQueryItselfIsNoNeighborAndNothingFoundIsNothing) {
  std::vector<std::vector<LabeledDistance>> themselves;
  for (const size_t query : queries_) themselves.push_back({{members_[query].label, 0.0f}});
  const RecallCount count = CountRecall(members_, queries_, k, themselves);
  EXPECT_EQ(count.found, 0);
  EXPECT_EQ(count.exact, static_cast<int64_t>(queries_.size()) * k);
  EXPECT_EQ(count.Share(), 0.0);
}

TEST_F(RecallTest, OthersAsNearAsTheFarthestNeighborCountAndNeverForMoreThanThereAre) {
  for (auto& vector : vectors_) vector = vectors_[0];
  for (int i = 0; i < kMembers; ++i) members_[i].vector = vectors_[i];
  std::vector<std::vector<LabeledDistance>> found;
  for (const size_t query : queries_) {
    found.emplace_back();
    for (int i = 0; i < k + 1; ++i) found.back().push_back({members_[(query + 20 + i) % kMembers].label, 0.0f});
  }
  const RecallCount count = CountRecall(members_, queries_, k, found);
  EXPECT_EQ(count.found, count.exact);
}

TEST_F(RecallTest, OfFewMembersThereIsLittleToFind) {
  EXPECT_EQ(CountRecall({}, {}, k, {}).Share(), 1.0);
  const auto one = absl::MakeSpan(members_).first(1);
  EXPECT_EQ(CountRecall(one, {0}, k, {{{one[0].label, 0.0f}}}).exact, 0);
  const auto three = absl::MakeSpan(members_).first(3);
  EXPECT_EQ(CountRecall(three, {0, 1}, k, {{}, {}}).exact, 4);
}

TEST_F(RecallTest, QueriesAreSpreadAndAtMostSoMany) {
  EXPECT_THAT(SpreadQueries(0, 4), ::testing::IsEmpty());
  EXPECT_THAT(SpreadQueries(3, 4), ::testing::ElementsAre(0, 1, 2));
  EXPECT_THAT(SpreadQueries(10, 4), ::testing::ElementsAre(0, 3, 6, 9));
  for (int count = 1; count < 40; ++count) {
    const auto queries = SpreadQueries(kMembers, count);
    EXPECT_LE(queries.size(), static_cast<size_t>(count));
    EXPECT_LT(queries.back(), static_cast<size_t>(kMembers));
  }
}

}  // namespace
}  // namespace c3po
