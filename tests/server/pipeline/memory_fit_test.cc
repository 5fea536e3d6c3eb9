#include "server/pipeline/memory_fit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/server/partial_model.h"

namespace c3po {
namespace {

using testing::HasSubstr;

// A neighbor takes as many MiB as its prompt has tokens, times the positions.
class MebibyteModel final : public PartialModel {
 public:
  int64_t ObjectiveBytes(const ObjectiveSpec& spec, int prompt_positions) const override {
    int64_t tokens = 0;
    for (const NeighborCase& neighbor : spec.cases) tokens += static_cast<int64_t>(neighbor.prompt.size());
    return (tokens * prompt_positions) << 20;
  }
};

ObjectiveSpec Spec(std::vector<int> lengths) {
  ObjectiveSpec spec;
  for (int length : lengths) spec.cases.push_back({"", std::vector<int32_t>(length, 1), {{1}}, 0, 1});
  return spec;
}

constexpr int64_t kMebibyte = 1 << 20;
const MebibyteModel kModel;

TEST(MemoryFit, WhatFitsIsLeftAsItIs) {
  ObjectiveSpec fitted = Spec({3, 4}), held_out = Spec({2});
  const auto fit = FitIntoMemory(kModel, 9 * kMebibyte, 1, false, fitted, held_out);
  ASSERT_TRUE(fit.ok() && fit->fits) << fit.status();
  EXPECT_EQ(fit->bytes, 9 * kMebibyte);
  EXPECT_EQ(fit->warning, "");
  EXPECT_EQ(fitted.cases.size() + held_out.cases.size(), 3u);
}

TEST(MemoryFit, TheHeldOutAndThenTheFarthestAreLeftOut) {
  ObjectiveSpec fitted = Spec({3, 4, 2}), held_out = Spec({1, 1});
  const auto fit = FitIntoMemory(kModel, 8 * kMebibyte, 1, false, fitted, held_out);
  ASSERT_TRUE(fit.ok() && fit->fits) << fit.status();
  EXPECT_EQ(fit->bytes, 7 * kMebibyte);
  EXPECT_EQ(fitted.cases.size(), 2u);
  EXPECT_TRUE(held_out.cases.empty());
  EXPECT_THAT(fit->warning, HasSubstr("3 of 5 neighbors were left out"));
  EXPECT_THAT(fit->warning, HasSubstr("needs about 11 MiB"));
}

TEST(MemoryFit, WhereNotEvenTheNearestFitsNothingIsLeft) {
  ObjectiveSpec fitted = Spec({30, 4}), held_out;
  const auto fit = FitIntoMemory(kModel, 8 * kMebibyte, 1, false, fitted, held_out);
  ASSERT_TRUE(fit.ok()) << fit.status();
  EXPECT_FALSE(fit->fits);
  EXPECT_THAT(fit->warning, HasSubstr("2 of 2 neighbors were left out"));
}

// The held-out neighbors count once a part; what is left out makes parts smaller, and a part without neighbors none.
TEST(MemoryFit, PartsAddUp) {
  const std::vector<int> part_of = {0, 1, 2, 0};
  ObjectiveSpec fitted = Spec({3, 4, 2, 1}), held_out = Spec({2, 1});
  auto fit = FitIntoMemory(kModel, 19 * kMebibyte, 1, false, fitted, held_out, part_of);
  ASSERT_TRUE(fit.ok() && fit->fits) << fit.status();
  EXPECT_EQ(fit->bytes, (10 + 3 * 3) * kMebibyte);
  EXPECT_EQ(fit->warning, "");
  fit = FitIntoMemory(kModel, 8 * kMebibyte, 1, false, fitted, held_out, part_of);
  ASSERT_TRUE(fit.ok() && fit->fits) << fit.status();
  EXPECT_EQ(fit->bytes, 7 * kMebibyte);
  EXPECT_TRUE(held_out.cases.empty());
  EXPECT_EQ(fitted.cases.size(), 2u);
}

TEST(MemoryFit, WhatTheRequestAskedForIsRefusedByItsField) {
  ObjectiveSpec fitted = Spec({3, 4}), held_out;
  const absl::Status positions = FitIntoMemory(kModel, 8 * kMebibyte, 2, false, fitted, held_out).status();
  EXPECT_EQ(positions.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(positions.message(), HasSubstr("optimization.prompt_positions: "));
  ObjectiveSpec oracle = Spec({30});
  const absl::Status own = FitIntoMemory(kModel, 8 * kMebibyte, 1, true, oracle, held_out).status();
  EXPECT_EQ(own.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(own.message(), HasSubstr("continuations: "));
}

TEST(MemoryNeed, RoundsNeedsUpAndLimitsDown) {
  EXPECT_EQ(MemoryNeed(9 * kMebibyte, "a request", 8 * kMebibyte),
            "needs about 9 MiB of working memory, and a request may have 8 (--work-memory-mb)");
  EXPECT_EQ(MemoryNeed(8 * kMebibyte + 1, "a call that learns", 9 * kMebibyte - 1),
            "needs about 9 MiB of working memory, and a call that learns may have 8 (--work-memory-mb)");
}

}  // namespace
}  // namespace c3po
