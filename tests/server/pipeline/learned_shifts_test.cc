#include "server/pipeline/learned_shifts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/index/store/random_reference.h"

namespace c3po {
namespace {

using ::testing::HasSubstr;

RoutingOverride Shift(std::vector<int> layers, float first) {
  RoutingOverride routing;
  routing.kind = RoutingOverride::Kind::kLogitShift;
  routing.values = Pathway(static_cast<int>(layers.size()), 4);
  for (size_t i = 0; i < routing.values.weights.size(); ++i) routing.values.weights[i] = first + 0.1f * float(i);
  routing.layers = std::move(layers);
  return routing;
}

class LearnedShiftsTest : public testing::Test {
 protected:
  LearnedShiftsTest() : store_(OpenReferenceStore(folder_.File("store.db")).value()) {}
  ScratchFolder folder_;
  std::unique_ptr<ReferenceStore> store_;
  StoreFeed feed_{store_.get()};
};

TEST_F(LearnedShiftsTest, PriorsAndShiftsAreTheSameFloatsAfterARestart) {
  CollectionPrior prior{Shift({1, 3}, -0.3f), "model", 80, 20, 1.5, 1.25, 0.5, 0.625, {"a", "b"}};
  {
    LearnedShifts shifts(&feed_, "model");
    EXPECT_EQ(shifts.Prior("math").status().code(), absl::StatusCode::kNotFound);
    ASSERT_TRUE(shifts.PutPrior("math", prior).ok());
    ASSERT_TRUE(shifts.PutShifts("math", {{"a", Shift({2}, 0.7f), "model", "steps 5"}, {"b", {}, "model", ""}}).ok());
    EXPECT_EQ((*shifts.Prior("math"))->routing.values.weights, prior.routing.values.weights);
  }
  LearnedShifts shifts(&feed_, "model");
  const auto read = shifts.Prior("math");
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ((*read)->routing.layers, prior.routing.layers);
  EXPECT_EQ((*read)->routing.values.weights, prior.routing.values.weights);
  EXPECT_EQ((*read)->references, 80);
  EXPECT_EQ((*read)->validation_accuracy_after, 0.625);
  EXPECT_EQ((*read)->validation_reference_ids, prior.validation_reference_ids);
  const auto shift = shifts.Shift("math", "a");
  ASSERT_TRUE(shift.ok());
  ASSERT_TRUE(*shift);
  EXPECT_EQ((*shift)->routing.values.weights, Shift({2}, 0.7f).values.weights);
  EXPECT_EQ((*shift)->settings, "steps 5");
  EXPECT_FALSE(*shifts.Shift("math", "c"));
  EXPECT_EQ(*shifts.CountShifts("math"), 2);
  EXPECT_EQ(*shifts.CountShifts("other"), 0);
}

TEST_F(LearnedShiftsTest, WhatAnotherModelLearnedIsAbsent) {
  {
    LearnedShifts shifts(&feed_, "old");
    ASSERT_TRUE(shifts.PutPrior("math", {Shift({1}, 0), "old"}).ok());
    ASSERT_TRUE(shifts.PutShifts("math", {{"a", Shift({2}, 0), "old", ""}}).ok());
  }
  LearnedShifts shifts(&feed_, "new");
  EXPECT_EQ(shifts.Prior("math").status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(shifts.Prior("math").status().message()), HasSubstr("\"math\""));
  EXPECT_FALSE(*shifts.Shift("math", "a"));
}

TEST_F(LearnedShiftsTest, WhatAnotherModelLearnedIsCountedShownAndReplaced) {
  {
    LearnedShifts shifts(&feed_, "old");
    ASSERT_TRUE(shifts.PutPrior("math", {Shift({1}, 0), "old"}).ok());
    ASSERT_TRUE(shifts.PutPrior("law", {Shift({1}, 0), "new"}).ok());
    ASSERT_TRUE(shifts.PutShifts("math", {{"a", Shift({2}, 0), "old", ""}, {"b", Shift({2}, 0), "old", ""}}).ok());
  }
  Metrics metrics("model", "0");
  const auto ignored = [&](const std::string& kind, int count) {
    return HasSubstr("c3po_learned_ignored{kind=\"" + kind + "\"} " + std::to_string(count) + "\n");
  };
  LearnedShifts shifts(&feed_, "new", &metrics);
  ASSERT_TRUE(shifts.ReadPriors().ok());
  EXPECT_THAT(metrics.PrometheusText(), ignored("prior", 1));
  EXPECT_THAT(metrics.PrometheusText(), ignored("shift", 0));  // Nobody has asked for one.
  EXPECT_EQ((*shifts.StoredPrior("math"))->model_digest, "old");
  EXPECT_EQ((*shifts.StoredPrior("law"))->model_digest, "new");
  EXPECT_FALSE(*shifts.StoredPrior("physics"));
  EXPECT_EQ(*shifts.CountForeignShifts("math"), 2);
  EXPECT_EQ(*shifts.CountShifts("math"), 0);
  EXPECT_THAT(metrics.PrometheusText(), ignored("shift", 2));

  ASSERT_TRUE(shifts.PutPrior("math", {Shift({1}, 0), "new"}).ok());
  ASSERT_TRUE(shifts.PutShifts("math", {{"a", Shift({2}, 0), "new", ""}}).ok());
  EXPECT_THAT(metrics.PrometheusText(), ignored("prior", 0));
  EXPECT_THAT(metrics.PrometheusText(), ignored("shift", 1));
  EXPECT_EQ((*shifts.StoredPrior("math"))->model_digest, "new");
  ASSERT_TRUE(store_->DeleteCollection("math").ok());
  ASSERT_TRUE(feed_.CatchUp().ok());
  EXPECT_THAT(metrics.PrometheusText(), ignored("shift", 0));
}

// Another server over the same store has a feed of its own.
TEST_F(LearnedShiftsTest, WhatOthersLearnIsThereOnceTheFeedHasCaughtUp) {
  LearnedShifts shifts(&feed_, "model");
  StoreFeed others_feed(store_.get());
  LearnedShifts others(&others_feed, "model");
  ASSERT_TRUE(shifts.PutPrior("math", {Shift({1}, 0), "model"}).ok());
  ASSERT_TRUE(shifts.PutShifts("math", {{"a", Shift({2}, 1), "model", "s"}, {"b", Shift({2}, 1), "model", "s"}}).ok());
  EXPECT_EQ((*shifts.Prior("math"))->routing.values.weights[0], 0);
  EXPECT_EQ((*shifts.Shift("math", "a"))->routing.values.weights[0], 1);
  ASSERT_TRUE(others.PutPrior("math", {Shift({1}, 7), "model"}).ok());
  ASSERT_TRUE(others.PutShifts("math", {{"a", Shift({2}, 9), "model", "s"}, {"c", Shift({2}, 9), "old", "s"}}).ok());
  EXPECT_EQ((*shifts.Prior("math"))->routing.values.weights[0], 0);
  EXPECT_EQ((*shifts.Shift("math", "a"))->routing.values.weights[0], 1);
  ASSERT_TRUE(feed_.CatchUp().ok());
  EXPECT_EQ((*shifts.Prior("math"))->routing.values.weights[0], 7);
  EXPECT_EQ((*shifts.Shift("math", "a"))->routing.values.weights[0], 9);
  EXPECT_EQ(*shifts.CountShifts("math"), 2);
  EXPECT_EQ(*shifts.CountForeignShifts("math"), 1);

  ASSERT_TRUE(store_->PutArtifacts({{"math", "prior", ""}, {"math", "reference/a/shift", ""}}).ok());
  EXPECT_TRUE(shifts.Prior("math").ok());
  ASSERT_TRUE(feed_.CatchUp().ok());
  EXPECT_EQ(shifts.Prior("math").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(*shifts.Shift("math", "a"), nullptr);
  EXPECT_NE(*shifts.Shift("math", "b"), nullptr);
}

TEST_F(LearnedShiftsTest, ShiftsGoWithTheirReference) {
  const std::vector<ReferenceRecord> records = MakeReferences("math", 0, 2);
  ASSERT_TRUE(store_->Add(records).ok());
  LearnedShifts shifts(&feed_, "model");
  ASSERT_TRUE(shifts.PutShifts("math", {{records[0].id, Shift({2}, 0), "model", ""}}).ok());
  ASSERT_TRUE(shifts.PutShifts("math", {{records[1].id, Shift({2}, 0), "model", ""}}).ok());
  EXPECT_EQ(*shifts.CountShifts("math"), 2);
  ASSERT_TRUE(store_->Delete({records[0].id}).ok());
  ASSERT_TRUE(feed_.CatchUp().ok());
  EXPECT_EQ(*shifts.Shift("math", records[0].id), nullptr);
  EXPECT_EQ(*shifts.CountShifts("math"), 1);
}

TEST_F(LearnedShiftsTest, WhatComesUnreadableFromOthersIsToldToWhoAsksForItAndNoOneElse) {
  LearnedShifts shifts(&feed_, "model");
  ASSERT_TRUE(shifts.PutPrior("law", {Shift({1}, 0), "model"}).ok());
  ASSERT_TRUE(shifts.PutShifts("math", {{"a", Shift({2}, 1), "model", "s"}}).ok());
  ASSERT_TRUE(shifts.Prior("law").ok());
  EXPECT_EQ(*shifts.CountShifts("math"), 1);
  ASSERT_TRUE(store_->PutArtifacts({{"math", "prior", "{"}, {"math", "reference/b/shift", "{"}}).ok());
  ASSERT_TRUE(feed_.CatchUp().ok());
  EXPECT_EQ(shifts.Prior("math").status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(shifts.Shift("math", "a").status().code(), absl::StatusCode::kDataLoss);
  EXPECT_TRUE(shifts.Prior("law").ok());
}

TEST_F(LearnedShiftsTest, UnreadableTextIsDataLossThatNamesTheArtifact) {
  for (const char* text : {"{", "{}", "[1]", R"({"routing": {"layers": [1], "experts": 4, "shift": [1, 2]}})"}) {
    ASSERT_TRUE(store_->PutArtifacts({{"math", "prior", text}}).ok());
    LearnedShifts shifts(&feed_, "model");
    const absl::Status status = shifts.Prior("math").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr("artifact prior"));
  }
}

}  // namespace
}  // namespace c3po
