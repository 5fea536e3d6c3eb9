#include "server/pipeline/learned_override.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/index/store/random_reference.h"

namespace c3po {
namespace {

RoutingOverride Shift(std::vector<int> layers, std::vector<float> values) {
  RoutingOverride routing{RoutingOverride::Kind::kLogitShift, std::move(layers), {}};
  routing.values = Pathway(static_cast<int>(routing.layers.size()), 2);
  routing.values.weights = std::move(values);
  return routing;
}

class LearnedOverrideTest : public testing::Test {
 protected:
  LearnedOverrideTest() : store_(OpenReferenceStore(folder_.File("store.db")).value()), shifts_(&feed_, "m") {
    settings_.collection = "math";
    settings_.method = Method::kAmortizedShift;
    settings_.critical_layers = {1, 3};
  }

  static WeightedReference Neighbor(const std::string& id, double weight) {
    auto record = std::make_shared<ReferenceRecord>();
    record->id = id;
    return {record, 0, weight};
  }

  ScratchFolder folder_;
  std::unique_ptr<ReferenceStore> store_;
  StoreFeed feed_{store_.get()};
  LearnedShifts shifts_;
  OptimizationSettings settings_;
};

TEST_F(LearnedOverrideTest, AmortizedShiftsOfTheseLayersAreAveragedByKernelWeight) {
  ASSERT_TRUE(shifts_
                  .PutShifts("math", {{"a", Shift({1, 3}, {1, 2, 3, 4}), "m", ""},
                                      {"b", Shift({1, 3}, {5, -2, 0, 8}), "m", ""},
                                      {"other layers", Shift({0, 3}, {100, 100, 100, 100}), "m", ""}})
                  .ok());
  const std::vector<WeightedReference> neighbors = {Neighbor("a", 0.5), Neighbor("none", 0.25),
                                                    Neighbor("other layers", 0.125), Neighbor("b", 0.125)};
  settings_.step_scale = 0.5;
  ASSERT_TRUE(ResolvePrior(shifts_, settings_).ok());
  const auto found = LearnedOverride(shifts_, settings_, neighbors, 2);
  ASSERT_TRUE(found.ok()) << found.status();
  ASSERT_NE(*found, nullptr);
  EXPECT_EQ((*found)->kind, RoutingOverride::Kind::kLogitShift);
  EXPECT_EQ((*found)->layers, settings_.critical_layers);
  const std::vector<float> expected = {0.9f, 0.6f, 1.2f, 2.4f};  // half of (4 a + b) / 5
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR((*found)->values.weights[i], expected[i], 1e-6f);
  EXPECT_EQ(*LearnedOverride(shifts_, settings_, {Neighbor("none", 1)}, 2), nullptr);
}

TEST_F(LearnedOverrideTest, ThePriorIsAppliedWhereItsLayersAreThoseThatWereResolved) {
  settings_.method = Method::kCollectionPrior;
  EXPECT_EQ(ResolvePrior(shifts_, settings_).code(), absl::StatusCode::kNotFound);
  CollectionPrior prior{Shift({0, 2}, {1, 2, 3, 4}), "m"};
  prior.prompt_positions = 7;
  ASSERT_TRUE(shifts_.PutPrior("math", prior).ok());
  settings_.rule = ApplicationRule::kLastPromptToken;
  ASSERT_TRUE(ResolvePrior(shifts_, settings_).ok());
  EXPECT_EQ(settings_.rule, ApplicationRule::kRouterShift);
  EXPECT_EQ(settings_.critical_layers, (std::vector<int>{0, 2}));
  EXPECT_EQ(settings_.prompt_positions, 7);
  EXPECT_EQ((*LearnedOverride(shifts_, settings_, {}, 2))->values.weights, (std::vector<float>{1, 2, 3, 4}));
  prior.prompt_positions = 8;
  ASSERT_TRUE(shifts_.PutPrior("math", prior).ok());
  EXPECT_EQ(LearnedOverride(shifts_, settings_, {}, 2).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(LearnedOverrideTest, MethodsThatLearnedNothingKeepTheirLayersAndRule) {
  settings_.method = Method::kKernelRegression;
  settings_.rule = ApplicationRule::kLastPromptToken;
  ASSERT_TRUE(ResolvePrior(shifts_, settings_).ok());
  EXPECT_EQ(settings_.rule, ApplicationRule::kLastPromptToken);
  EXPECT_EQ(settings_.critical_layers, (std::vector<int>{1, 3}));
}

}  // namespace
}  // namespace c3po
