// A label offset fitted to references whose scores are made up. What a method adds is in
// tests/integration/offset_test.py.

#include "server/pipeline/offset_tuner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "server/pipeline/collection_learning.h"
#include "tests/server/pipeline/made_up_pipeline.h"

namespace c3po {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr float kOfOne = -1, kOfTwo = -3;  // The model leans to "1", whatever the text.

class OffsetTunerTest : public MadeUpPipelineTest {
 protected:
  OffsetTunerTest() : offsets_(&feed_, kModelDigest, embedding_.digest()) {
    parts_.workers = &workers_;
    parts_.offsets = &offsets_;
    model_.answers = true;
    const int32_t one = tokenizer_->Encode("1", false)->front();
    model_.logprob_of = [one](int32_t token) { return token == one ? kOfOne : kOfTwo; };
    request_.settings.collection = "set";
    request_.settings.method = Method::kNone;
    request_.settings.critical_layers = {2};
    request_.settings.core_experts = 0;
  }

  // References numbered from `first`, of which every third is "1" and the others "2".
  std::vector<ReferenceRecord> Records(int first, int count, const std::vector<std::string>& choices = {"1", "2"}) {
    std::vector<ReferenceRecord> records = MakeReferences("set", first, first + count);
    for (int i = 0; i < count; ++i) {
      records[i].embedder_digest = embedding_.digest();
      records[i].sample.choices = choices;
      records[i].sample.answer = choices.empty() ? "2" : choices[i % 3 == 0 ? 0 : 1];
      records[i].id = ReferenceId("set", records[i].sample);
    }
    return records;
  }
  void Add(const std::vector<ReferenceRecord>& records) { ASSERT_TRUE(store_->Add(records).ok()); }

  absl::StatusOr<OffsetTuner::Outcome> Tune() {
    CollectionLearning learning(parts_, store_.get(), 1);
    absl::StatusOr<OffsetTuner::Outcome> result = absl::UnknownError("not ended");
    absl::Notification ended;
    progress_.clear();
    const absl::Status begun = learning.TuneOffset(
        request_, [&](const OffsetTuner::Progress& progress) { progress_.push_back(progress); },
        [&](const absl::StatusOr<OffsetTuner::Outcome>& outcome) {
          result = outcome;
          ended.Notify();
        });
    if (!begun.ok()) return begun;
    ended.WaitForNotification();
    return result;
  }
  void ExpectRefused(absl::StatusCode code, const std::string& words) {
    const absl::Status status = Tune().status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(words));
    EXPECT_TRUE(offsets_.All("set")->empty());
  }

  LabelOffsets offsets_;
  OffsetRequest request_;
  std::vector<OffsetTuner::Progress> progress_;
  WorkerPool workers_{2, 8};  // Goes first: its jobs end the calls.
};

TEST_F(OffsetTunerTest, FitsWhatTheReferencesScoresSayAndStoresIt) {
  Add(Records(0, 30));
  const auto outcome = Tune();
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_TRUE(outcome->stored);
  const CollectionOffset& offset = *outcome->offset;
  EXPECT_THAT(offset.labels, ElementsAre("1", "2"));
  EXPECT_EQ(offset.references, 30);
  EXPECT_EQ(offset.accuracy_before, 10.0 / 30);
  EXPECT_EQ(offset.accuracy_after, 20.0 / 30);
  LabelScores scores;
  scores.labels = 2;
  for (int i = 0; i < 30; ++i) {
    scores.scores.insert(scores.scores.end(), {kOfOne, kOfTwo});
    scores.gold.push_back(i % 3 == 0 ? 0 : 1);
  }
  const LabelOffset expected = *FitLabelOffset(scores);
  EXPECT_NEAR(offset.fitted.scale, expected.scale, 1e-9);
  EXPECT_NEAR(offset.fitted.offsets[1], expected.offsets[1], 1e-9);
  EXPECT_EQ(offset.model_digest, kModelDigest);
  EXPECT_EQ(offset.embedder_digest, "") << "no neighbor took part";
  EXPECT_EQ((*offsets_.FittedAfter(request_.settings))->fitted.offsets, offset.fitted.offsets);
  ASSERT_GE(progress_.size(), 2u);
  EXPECT_EQ(progress_.front().done, 0);
  EXPECT_EQ(progress_.back().done, 30);
  EXPECT_EQ(progress_.back().total, 30);
}

TEST_F(OffsetTunerTest, WhatIsThereIsKeptWhereThatIsAskedFor) {
  Add(Records(0, 12));
  ASSERT_TRUE(Tune().ok());
  std::atomic<int> forwards{0};
  model_.on_forward = [&] { ++forwards; };
  request_.keep = true;
  const auto kept = Tune();
  ASSERT_TRUE(kept.ok()) << kept.status();
  EXPECT_FALSE(kept->stored);
  EXPECT_EQ(kept->offset->references, 12);
  EXPECT_EQ(forwards.load(), 0);
  request_.keep = false;
  EXPECT_TRUE(Tune()->stored);
  EXPECT_GT(forwards.load(), 0);
}

TEST_F(OffsetTunerTest, FitsToTheChoicesThatMostReferencesHaveAndASampleOfThem) {
  Add(Records(0, 11, {"1", "2", "3"}));
  Add(Records(100, 20, {"1", "2"}));
  Add(Records(200, 7, {"2", "1"}));  // The same set in another order.
  Add(Records(300, 40, {}));
  auto outcome = Tune();
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_EQ(outcome->offset->references, 27);
  EXPECT_EQ(outcome->offset->labels.size(), 2u);
  request_.max_references = 15;
  EXPECT_EQ(Tune()->offset->references, 15);
  request_.max_references = 0;
  // Who is excluded takes no part.
  const std::vector<ReferenceRecord> all = Records(100, 20);
  for (int i = 0; i < 5; ++i) request_.settings.exclude_reference_ids.push_back(all[i].id);
  EXPECT_EQ(Tune()->offset->references, 22);
}

// Nor does who does not match the filter, where the method looks at neighbors.
TEST_F(OffsetTunerTest, FitsToTheReferencesThatMatchTheFilter) {
  std::vector<ReferenceRecord> records = Records(0, 40);
  for (size_t i = 0; i < records.size(); ++i) records[i].sample.metadata = {{"line", absl::StrCat(i)}};
  Add(records);
  MetadataCondition condition;
  condition.key = "line";
  condition.range.emplace().lt = 12;
  request_.settings.filter.must = {condition};
  EXPECT_EQ(Tune()->offset->references, 40);
  request_.settings.method = Method::kNeighborhoodGradientDescent;
  request_.settings.collection_may_be_missing = true;  // The catalog has no neighbors: scores are the model's own.
  const auto outcome = Tune();
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_EQ(outcome->offset->references, 12);
}

TEST_F(OffsetTunerTest, RefusesWhatItCannotFitToAndSaysWhy) {
  ExpectRefused(absl::StatusCode::kNotFound, "\"set\" does not exist");
  Add(Records(0, 20, {}));
  ExpectRefused(absl::StatusCode::kFailedPrecondition, "no reference with two choices");
  for (int i = 0; i < 20; ++i) Add(Records(100 + i, 1, {absl::StrCat("a", i), absl::StrCat("b", i)}));
  ExpectRefused(absl::StatusCode::kFailedPrecondition, "has 1 references with the same choices");
  request_.settings.method = Method::kOracle;
  ExpectRefused(absl::StatusCode::kInvalidArgument, "optimization.method");
  request_.settings.method = Method::kNone;
  request_.max_references = 9;
  ExpectRefused(absl::StatusCode::kInvalidArgument, "max_references");
  request_.max_references = 0;
  request_.settings.method = Method::kCollectionPrior;
  ExpectRefused(absl::StatusCode::kNotFound, "optimization.collection");
}

TEST_F(OffsetTunerTest, ReferencesOfAnotherModelDoNotCount) {
  std::vector<ReferenceRecord> records = Records(0, 20);
  for (ReferenceRecord& record : records) record.model_digest = "another";
  Add(records);
  ExpectRefused(absl::StatusCode::kFailedPrecondition, "made with this model");
}

TEST_F(OffsetTunerTest, AReferenceThatCannotBeScoredIsLeftOut) {
  Add(Records(0, 12));
  std::vector<ReferenceRecord> endless = Records(50, 1);
  for (int i = 0; i < 5000; ++i) endless[0].sample.prompt += " word";
  endless[0].id = ReferenceId("set", endless[0].sample);
  Add(endless);
  const auto outcome = Tune();
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_EQ(outcome->offset->references, 12);
  EXPECT_EQ(progress_.back().done, 13);
}

TEST_F(OffsetTunerTest, UnderAPriorOnlyReferencesCountThatItWasNotFittedTo) {
  const std::vector<ReferenceRecord> records = Records(0, 30);
  Add(records);
  CollectionPrior prior;
  prior.routing.kind = RoutingOverride::Kind::kLogitShift;
  prior.routing.layers = {2};
  prior.routing.values = Pathway(1, 4);
  prior.model_digest = kModelDigest;
  for (int i = 0; i < 6; ++i) prior.validation_reference_ids.push_back(records[i].id);
  ASSERT_TRUE(shifts_.PutPrior("set", prior).ok());
  request_.settings.method = Method::kCollectionPrior;
  ExpectRefused(absl::StatusCode::kFailedPrecondition, "has 6 references with these choices that the prior was not");
}

TEST_F(OffsetTunerTest, WhatIsCancelledOrFailsLeavesWhatWasThere) {
  Add(Records(0, 30));
  ASSERT_TRUE(Tune().ok());
  Add(Records(100, 30));
  const auto cancelled = std::make_shared<std::atomic<bool>>(false);
  request_.context.cancelled = cancelled;
  std::atomic<int> forwards{0};
  model_.on_forward = [&] {
    if (++forwards == 5) cancelled->store(true);
  };
  EXPECT_EQ(Tune().status().code(), absl::StatusCode::kCancelled);
  request_.context.cancelled = nullptr;
  model_.broken = true;
  EXPECT_EQ(Tune().status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ((*offsets_.FittedAfter(request_.settings))->references, 30);
  EXPECT_EQ(store_->Artifacts("set", "offset/")->size(), 1u);
}

TEST_F(OffsetTunerTest, ACollectionThatIsDeletedMeanwhileGetsNone) {
  Add(Records(0, 30));
  std::atomic<bool> deleted{false};
  model_.on_forward = [&] {
    if (deleted.exchange(true)) return;
    EXPECT_TRUE(store_->DeleteCollection("set").ok());
  };
  EXPECT_EQ(Tune().status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(store_->Artifacts("set", "")->empty());
}

}  // namespace
}  // namespace c3po
