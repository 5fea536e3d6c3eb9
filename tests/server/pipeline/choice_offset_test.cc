#include "server/pipeline/choice_offset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/index/store/random_reference.h"

namespace c3po {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class ChoiceOffsetTest : public testing::Test {
 protected:
  ChoiceOffsetTest()
      : store_(OpenReferenceStore(folder_.File("store.db")).value()), offsets_(&feed_, "model", "embedder") {
    none_.collection = ngd_.collection = "mood";
    none_.method = Method::kNone;
    ngd_.method = Method::kNeighborhoodGradientDescent;
  }
  void Store(const OptimizationSettings& settings, std::vector<std::string> labels, LabelOffset fitted) {
    CollectionOffset offset;
    offset.labels = std::move(labels);
    offset.fitted = std::move(fitted);
    offset.method = settings.method;
    offset.settings = OffsetSettingsText(settings);
    offset.model_digest = "model";
    ASSERT_TRUE(offsets_.Put("mood", std::move(offset)).ok());
  }
  ChoiceOffset Resolve(const OptimizationSettings& settings, const std::vector<std::string>& choices) {
    return *ResolveOffset(&offsets_, settings, /*may_be_missing=*/false, choices);
  }

  ScratchFolder folder_;
  std::unique_ptr<ReferenceStore> store_;
  StoreFeed feed_{store_.get()};
  LabelOffsets offsets_;
  OptimizationSettings none_, ngd_;
};

TEST_F(ChoiceOffsetTest, LabelsAreMatchedByTextInTheOrderOfTheContinuations) {
  Store(none_, {" bad", " fair", " good"}, {2, {-1, 0.25, 0.75}});
  const ChoiceOffset found = Resolve(none_, {" good", " bad", " fair"});
  ASSERT_TRUE(found.applied);
  EXPECT_EQ(found.applied->scale, 2);
  EXPECT_THAT(found.applied->offsets, ElementsAre(0.75, -1, 0.25));
  EXPECT_THAT(found.warning, IsEmpty());
  std::vector<ContinuationScore> scores = {{-3, true, {-1, -2}}, {-1, true, {-1}}, {-2, true, {-2}}};
  ApplyOffset(*found.applied, scores);
  EXPECT_EQ(scores[0].offset_score, 2 * -1.5 + 0.75);
  EXPECT_EQ(scores[1].offset_score, 2 * -1 - 1);
  EXPECT_EQ(scores[2].offset_score, 2 * -2 + 0.25);
  EXPECT_EQ(scores[0].choice_score(), 2 * -1.5 + 0.75);
  EXPECT_EQ(scores[0].per_token(), -1.5);
}

TEST_F(ChoiceOffsetTest, OtherChoicesAreLeftAloneWithAWarning) {
  Store(none_, {" bad", " good"}, {1, {-1, 1}});
  for (const std::vector<std::string>& choices :
       {std::vector<std::string>{" bad", "good"}, {" bad"}, {" bad", " good", " fair"}, {" bad", " bad"}}) {
    const ChoiceOffset found = Resolve(none_, choices);
    EXPECT_FALSE(found.applied);
    EXPECT_THAT(found.warning, AllOf(HasSubstr("not applied"), HasSubstr("\" bad\", \" good\"")));
  }
}

TEST_F(ChoiceOffsetTest, ThatOfTheSettingsComesBeforeThatOfTheModelAlone) {
  Store(none_, {" bad", " good"}, {1, {-1, 1}});
  ChoiceOffset found = Resolve(ngd_, {" bad", " good"});
  ASSERT_TRUE(found.applied);
  EXPECT_THAT(found.applied->offsets, ElementsAre(-1, 1));
  EXPECT_THAT(found.warning, AllOf(HasSubstr("that of the model alone"), HasSubstr("--method ngd")));
  Store(ngd_, {" bad", " good"}, {1, {-0.5, 0.5}});
  found = Resolve(ngd_, {" bad", " good"});
  ASSERT_TRUE(found.applied);
  EXPECT_THAT(found.applied->offsets, ElementsAre(-0.5, 0.5));
  EXPECT_THAT(found.warning, IsEmpty());
  EXPECT_THAT(Resolve(none_, {" bad", " good"}).applied->offsets, ElementsAre(-1, 1));
}

TEST_F(ChoiceOffsetTest, WithoutAnyWhoAskedForOneIsToldAndADefaultIsAWarning) {
  Store(ngd_, {" bad", " good"}, {1, {-1, 1}});  // Serves no request of other settings.
  for (LabelOffsets* offsets : {&offsets_, static_cast<LabelOffsets*>(nullptr)}) {
    const std::vector<std::string> choices = {" bad", " good"};
    const auto asked = ResolveOffset(offsets, none_, /*may_be_missing=*/false, choices);
    EXPECT_EQ(asked.status().code(), absl::StatusCode::kNotFound);
    EXPECT_THAT(std::string(asked.status().message()), AllOf(HasSubstr("\"mood\""), HasSubstr("refs tune --offset")));
    const auto by_default = ResolveOffset(offsets, none_, /*may_be_missing=*/true, choices);
    ASSERT_TRUE(by_default.ok());
    EXPECT_FALSE(by_default->applied);
    EXPECT_THAT(by_default->warning, HasSubstr("without a label offset"));
  }
}

}  // namespace
}  // namespace c3po
