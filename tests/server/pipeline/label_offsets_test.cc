#include "server/pipeline/label_offsets.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "index/types/optimization_terms.h"
#include "tests/index/store/random_reference.h"

namespace c3po {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

OptimizationSettings Settings(Method method, int k = 12) {
  OptimizationSettings settings;
  settings.method = method;
  settings.collection = "mood";
  settings.k = k;
  settings.critical_layers = {1, 2};
  return settings;
}

CollectionOffset Offset(const OptimizationSettings& settings, const std::string& model = "model",
                        const std::string& embedder = "", int64_t created = 7) {
  CollectionOffset offset;
  offset.labels = {" bad", " good"};
  offset.fitted = {1.0 / 3, {-0.1234567890123, 0.1234567890123}};
  offset.method = settings.method;
  offset.settings = OffsetSettingsText(settings);
  offset.references = 120;
  offset.accuracy_before = 0.5;
  offset.accuracy_after = 0.75;
  offset.model_digest = model;
  offset.embedder_digest = embedder;
  offset.created_unix_seconds = created;
  return offset;
}

const OptimizationSettings kNone = Settings(Method::kNone), kNgd = Settings(Method::kNeighborhoodGradientDescent);

class LabelOffsetsTest : public testing::Test {
 protected:
  LabelOffsetsTest() : store_(OpenReferenceStore(folder_.File("store.db")).value()) {
    EXPECT_TRUE(store_->Add(MakeReferences("mood", 0, 3)).ok());
  }
  LabelOffsets Open(const std::string& model = "model", const std::string& embedder = "embedder",
                    Metrics* metrics = nullptr) {
    return LabelOffsets(&feed_, model, embedder, metrics);
  }

  ScratchFolder folder_;
  std::unique_ptr<ReferenceStore> store_;
  StoreFeed feed_{store_.get()};
};

TEST_F(LabelOffsetsTest, OffsetsAreTheSameDoublesAfterARestartAndOnePerSettings) {
  const OptimizationSettings wider = Settings(Method::kNeighborhoodGradientDescent, 20);
  {
    LabelOffsets offsets = Open();
    EXPECT_EQ(*offsets.FittedAfter(kNone), nullptr);
    ASSERT_TRUE(offsets.Put("mood", Offset(kNone)).ok());
    ASSERT_TRUE(offsets.Put("mood", Offset(kNgd, "model", "embedder")).ok());
    EXPECT_EQ((*offsets.FittedAfter(kNgd))->method, Method::kNeighborhoodGradientDescent);
  }
  LabelOffsets offsets = Open();
  const auto read = offsets.FittedAfter(kNgd);
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_NE(*read, nullptr);
  const CollectionOffset written = Offset(kNgd, "model", "embedder");
  EXPECT_EQ((*read)->labels, written.labels);
  EXPECT_EQ((*read)->fitted.scale, written.fitted.scale);
  EXPECT_EQ((*read)->fitted.offsets, written.fitted.offsets);
  EXPECT_EQ((*read)->references, 120);
  EXPECT_EQ((*read)->accuracy_before, 0.5);
  EXPECT_EQ((*read)->accuracy_after, 0.75);
  EXPECT_EQ((*read)->created_unix_seconds, 7);
  EXPECT_EQ(*offsets.FittedAfter(wider), nullptr);
  EXPECT_EQ((*offsets.OfModelAlone("mood"))->method, Method::kNone);
  EXPECT_EQ(*offsets.OfModelAlone("law"), nullptr);
  EXPECT_EQ(offsets.All("mood")->size(), 2u);
  EXPECT_THAT(*offsets.All("law"), IsEmpty());
}

TEST_F(LabelOffsetsTest, WhatOtherModelsAndEmbeddersGaveIsIgnoredCountedAndReplaced) {
  {
    LabelOffsets offsets = Open("old", "embedder");
    ASSERT_TRUE(offsets.Put("mood", Offset(kNone, "old")).ok());
    ASSERT_TRUE(offsets.Put("mood", Offset(kNgd, "old", "embedder")).ok());
  }
  Metrics metrics("model", "0");
  const auto ignored = [](int count) {
    return HasSubstr("c3po_learned_ignored{kind=\"offset\"} " + std::to_string(count) + "\n");
  };
  LabelOffsets offsets = Open("new", "embedder", &metrics);
  ASSERT_TRUE(offsets.ReadAll().ok());
  EXPECT_THAT(metrics.PrometheusText(), ignored(2));
  EXPECT_EQ(*offsets.FittedAfter(kNone), nullptr);
  EXPECT_EQ(*offsets.FittedAfter(kNgd), nullptr);
  ASSERT_EQ(offsets.All("mood")->size(), 2u);
  EXPECT_FALSE(offsets.IsUsable(*offsets.All("mood")->front()));
  ASSERT_TRUE(offsets.Put("mood", Offset(kNgd, "new", "embedder")).ok());
  EXPECT_THAT(metrics.PrometheusText(), ignored(1));
  EXPECT_NE(*offsets.FittedAfter(kNgd), nullptr);
  // Another encoder finds other neighbors; the model alone has none.
  LabelOffsets reembedded = Open("new", "other");
  EXPECT_EQ(*reembedded.FittedAfter(kNgd), nullptr);
  LabelOffsets before = Open("old", "other");
  EXPECT_NE(*before.FittedAfter(kNone), nullptr);
}

TEST_F(LabelOffsetsTest, TheTextOfSettingsTellsApartWhatChangesScoresAndNothingElse) {
  const std::string text = OffsetSettingsText(kNgd);
  OptimizationSettings same = kNgd;
  same.collection = "law";
  same.use_offset = same.return_pathways = true;
  same.exclude_reference_ids = {"a"};
  same.warnings = {"w"};
  EXPECT_EQ(OffsetSettingsText(same), text);
  // Every other option is part of it.
  OptimizationSettings changed = kNgd;
  VisitOptions(changed, [&](const OptimizationOption& option, auto& value) {
    const std::string name = option.name;
    if (name == "collection" || name == "use_offset" || name == "return_pathways" || option.is_of_one_request) return;
    using Value = std::decay_t<decltype(value)>;
    const Value before = value;
    if constexpr (std::is_same_v<Value, bool>) value = !value;
    if constexpr (std::is_same_v<Value, int> || std::is_same_v<Value, double>) value += 1;
    if constexpr (std::is_same_v<Value, std::optional<double>>) value = value.value_or(0) + 0.25;
    if constexpr (std::is_same_v<Value, std::vector<int>>) value.push_back(9);
    if constexpr (std::is_same_v<Value, MetadataFilter>) value.must.push_back({.key = "a", .equals = "b"});
    if constexpr (std::is_enum_v<Value>) value = TermsOf<Value>()[value == TermsOf<Value>()[0].value ? 1 : 0].value;
    EXPECT_NE(OffsetSettingsText(changed), text) << name;
    value = before;
  });
  EXPECT_EQ(OffsetSettingsText(changed), text);
  // Of a long filter the text has the digest.
  changed.filter.must.push_back({.key = "a", .equals = std::string(1000, 'b')});
  const std::string with_long = OffsetSettingsText(changed);
  EXPECT_LT(with_long.size(), text.size() + 100);
  changed.filter.must[0].equals->back() = 'c';
  EXPECT_NE(OffsetSettingsText(changed), with_long);
  // Nothing but its method makes the model alone; and k is not read beside epsilon.
  EXPECT_EQ(OffsetSettingsText(kNone), OffsetSettingsText(Settings(Method::kNone, 3)));
  OptimizationSettings within = kNgd, within_wider = Settings(Method::kNeighborhoodGradientDescent, 20);
  within.epsilon = within_wider.epsilon = 0.5;
  EXPECT_EQ(OffsetSettingsText(within), OffsetSettingsText(within_wider));
}

TEST_F(LabelOffsetsTest, BeyondTheMostOfACollectionTheOldestGoesThoseOfOtherModelsFirst) {
  LabelOffsets offsets = Open();
  constexpr int kMost = static_cast<int>(LabelOffsets::kOffsetsMax);
  const auto settings = [](int k) { return Settings(Method::kNeighborhoodGradientDescent, k); };
  for (int i = 0; i < kMost; ++i) {
    ASSERT_TRUE(offsets.Put("mood", Offset(settings(i + 1), i == 5 ? "old" : "model", "embedder", 100 + i)).ok());
  }
  ASSERT_TRUE(offsets.Put("mood", Offset(settings(kMost + 1), "model", "embedder", 500)).ok());
  EXPECT_EQ(offsets.All("mood")->size(), LabelOffsets::kOffsetsMax);
  EXPECT_NE(*offsets.FittedAfter(settings(1)), nullptr);
  EXPECT_EQ(store_->Artifacts("mood", "offset/")->size(), LabelOffsets::kOffsetsMax);
  ASSERT_TRUE(offsets.Put("mood", Offset(settings(kMost + 2), "model", "embedder", 501)).ok());
  EXPECT_EQ(*offsets.FittedAfter(settings(1)), nullptr);
  EXPECT_NE(*offsets.FittedAfter(settings(2)), nullptr);
  // One that takes another's place pushes none out.
  ASSERT_TRUE(offsets.Put("mood", Offset(settings(2), "model", "embedder", 502)).ok());
  EXPECT_NE(*offsets.FittedAfter(settings(3)), nullptr);
}

TEST_F(LabelOffsetsTest, OffsetsGoWithTheirCollection) {
  LabelOffsets offsets = Open();
  ASSERT_TRUE(offsets.Put("mood", Offset(kNone)).ok());
  EXPECT_NE(*offsets.FittedAfter(kNone), nullptr);
  ASSERT_TRUE(store_->DeleteCollection("mood").ok());
  EXPECT_NE(*offsets.FittedAfter(kNone), nullptr);
  ASSERT_TRUE(feed_.CatchUp().ok());
  EXPECT_EQ(*offsets.FittedAfter(kNone), nullptr);
}

TEST_F(LabelOffsetsTest, WhatOthersFitIsThereOnceTheFeedHasCaughtUp) {
  LabelOffsets offsets = Open();
  ASSERT_TRUE(offsets.ReadAll().ok());
  StoreFeed others_feed(store_.get());
  LabelOffsets others(&others_feed, "model", "embedder");
  ASSERT_TRUE(others.Put("mood", Offset(kNone)).ok());
  ASSERT_TRUE(store_->Add(MakeReferences("law", 0, 3)).ok());
  ASSERT_TRUE(others.Put("law", Offset(kNone)).ok());
  EXPECT_EQ(*offsets.OfModelAlone("mood"), nullptr) << "it was read at the start";
  ASSERT_TRUE(feed_.CatchUp().ok());
  EXPECT_NE(*offsets.OfModelAlone("mood"), nullptr);
  EXPECT_NE(*offsets.OfModelAlone("law"), nullptr);
  CollectionOffset newer = Offset(kNone);
  newer.references = 121;
  ASSERT_TRUE(others.Put("mood", newer).ok());
  EXPECT_EQ((*offsets.OfModelAlone("mood"))->references, 120);
  ASSERT_TRUE(feed_.CatchUp().ok());
  EXPECT_EQ((*offsets.OfModelAlone("mood"))->references, 121);
  EXPECT_EQ(offsets.All("mood")->size(), 1u);
}

TEST_F(LabelOffsetsTest, TextThatDoesNotFitTogetherIsDataLossThatNamesTheArtifact) {
  LabelOffsets offsets = Open();
  ASSERT_TRUE(offsets.Put("mood", Offset(kNone)).ok());
  const std::vector<Artifact> stored = *store_->Artifacts("mood", "offset/");
  ASSERT_EQ(stored.size(), 1u);
  const auto broken = [&](const std::string& from, const std::string& to) {
    std::string text = stored[0].value;
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from << " in " << text;
    return text.replace(at, from.size(), to);
  };
  for (const std::string& text :
       {std::string("{"), std::string("[]"), broken("\" good\"", "\" bad\""), broken("\"none\"", "\"magic\""),
        broken("[-0.1234567890123,", "["), broken("\"scale\"", "\"scales\""), broken("120", "\"many\"")}) {
    ASSERT_TRUE(store_->PutArtifacts({{"mood", stored[0].name, text}}).ok());
    LabelOffsets again = Open();
    const absl::Status status = again.FittedAfter(kNone).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr("artifact offset/")) << text;
  }
}

}  // namespace
}  // namespace c3po
