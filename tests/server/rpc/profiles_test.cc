#include "server/rpc/profiles.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/index/store/random_reference.h"

namespace c3po {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// What serves a store: a model of so many MoE layers, and an embedder.
struct Runs {
  std::string model = "model-a";
  std::string embedder = "embedder-a";
  int moe_layers = 30;
};

class ProfilesTest : public testing::Test {
 protected:
  ProfilesTest() : store_(OpenReferenceStore(folder_.File("store.db")).value()) {}

  static ModelShape ShapeOf(const Runs& runs) {
    ModelShape shape;
    shape.digest = runs.model;
    shape.layers = shape.moe_layers = runs.moe_layers;
    shape.experts = 32;
    return shape;
  }

  // As a server does at its start.
  Profiles& Start(const Runs& runs) {
    const ModelShape shape = ShapeOf(runs);
    return Start(runs, DefaultSettings(shape));
  }
  Profiles& Start(const Runs& runs, OptimizationSettings defaults) {
    shifts_ = std::make_unique<LearnedShifts>(&feed_, runs.model, &metrics_);
    profiles_ =
        std::make_unique<Profiles>(&feed_, shifts_.get(), &metrics_, ShapeOf(runs), runs.embedder, std::move(defaults));
    EXPECT_TRUE(profiles_->Open().ok());
    return *profiles_;
  }

  static Profiles::Profile ProfileOf(std::vector<uint32_t> layers) {
    Profiles::Profile profile;
    profile.options.set_k(24);
    for (const uint32_t layer : layers) profile.options.add_critical_layers(layer);
    return profile;
  }

  static OptimizationSettings ResolvedBy(Profiles& profiles, v1::OptimizationOptions options = {}) {
    options.set_collection("set");
    auto settings = profiles.Resolve(options);
    EXPECT_TRUE(settings.ok()) << settings.status();
    return settings.ok() ? *settings : OptimizationSettings();
  }

  std::string AddReference(int number, const Runs& runs) {
    ReferenceRecord record = MakeReference("set", number);
    record.model_digest = runs.model;
    record.embedder_digest = runs.embedder;
    EXPECT_TRUE(store_->Add({record}).ok());
    return record.id;
  }

  ScratchFolder folder_;
  std::unique_ptr<ReferenceStore> store_;
  StoreFeed feed_{store_.get()};
  Metrics metrics_{"model", "0"};
  std::unique_ptr<LearnedShifts> shifts_;
  std::unique_ptr<Profiles> profiles_;
};

TEST_F(ProfilesTest, AProfileIsUsedByItsOwnModelAndEmbedderOnly) {
  ASSERT_TRUE(Start({}).Set("set", ProfileOf({22, 29})).ok());
  const auto own = [&](const Runs& runs) { return ResolvedBy(Start(runs)); };
  EXPECT_THAT(own({}).critical_layers, ElementsAre(22, 29));
  EXPECT_THAT(own({}).warnings, IsEmpty());
  EXPECT_THAT(metrics_.PrometheusText(), HasSubstr("c3po_learned_ignored{kind=\"profile\"} 0"));

  // Another model of other layers, another one of as many, another embedder: none may take its layers or its k.
  for (const Runs& other :
       {Runs{"model-b", "embedder-a", 3}, Runs{"model-b", "embedder-a", 30}, Runs{"model-a", "embedder-b", 30}}) {
    const OptimizationSettings settings = own(other);
    EXPECT_EQ(settings.critical_layers, DefaultSettings(ShapeOf(other)).critical_layers);
    EXPECT_EQ(settings.k, DefaultSettings(ShapeOf({})).k);
    ASSERT_EQ(settings.warnings.size(), 1u);
    EXPECT_THAT(settings.warnings[0], HasSubstr(other.model == "model-b" ? "model-a" : "embedder-a"));
    EXPECT_THAT(metrics_.PrometheusText(), HasSubstr("c3po_learned_ignored{kind=\"profile\"} 1"));
    EXPECT_TRUE(ValidateSettings(settings, ShapeOf(other)).ok());
    EXPECT_THAT((*profiles_->Find("set"))->why_ignored, HasSubstr("calibrate"));
  }
  // It is kept: its own model finds it again.
  EXPECT_THAT(own({}).critical_layers, ElementsAre(22, 29));
}

// Else every request to a collection that nobody calibrated would read the store, and wait for imports and backups.
TEST_F(ProfilesTest, TheStoreIsNotAskedAgainForAProfileThatIsNotThere) {
  Profiles& profiles = Start({});
  EXPECT_EQ(*profiles.Find("set"), nullptr);
  ASSERT_TRUE(store_->PutArtifacts({{"set", "profile", ProfileOf({29}).options.SerializeAsString()}}).ok());
  EXPECT_EQ(*profiles.Find("set"), nullptr) << "it has read the store again";
  ASSERT_TRUE(profiles.Set("set", ProfileOf({22})).ok());
  ASSERT_NE(*profiles.Find("set"), nullptr);
  EXPECT_THAT(ResolvedBy(profiles).critical_layers, ElementsAre(22));
  ASSERT_TRUE(profiles.Remove("set").ok());
  EXPECT_EQ(*profiles.Find("set"), nullptr);
}

// Another server over the same store has a feed of its own.
TEST_F(ProfilesTest, WhatOthersStoreIsUsedOnceTheFeedHasCaughtUp) {
  Profiles& profiles = Start({});
  StoreFeed others_feed(store_.get());
  LearnedShifts others_shifts(&others_feed, "model-a");
  const ModelShape shape = ShapeOf({});
  Profiles others(&others_feed, &others_shifts, nullptr, shape, "embedder-a", DefaultSettings(shape));
  ASSERT_TRUE(others.Open().ok());
  Profiles::Profile profile = ProfileOf({21});
  profile.notes = "{\"by\": 1}";
  ASSERT_TRUE(others.Set("set", profile).ok());
  EXPECT_EQ(*profiles.Find("set"), nullptr);
  ASSERT_TRUE(feed_.CatchUp().ok());
  EXPECT_THAT(ResolvedBy(profiles).critical_layers, ElementsAre(21));
  EXPECT_EQ((*profiles.Find("set"))->notes, "{\"by\": 1}");
  EXPECT_THAT(profiles.Collections(), ElementsAre("set"));
  ASSERT_TRUE(profiles.Set("set", ProfileOf({22})).ok());
  ASSERT_TRUE(others_feed.CatchUp().ok());
  EXPECT_THAT(ResolvedBy(others).critical_layers, ElementsAre(22));
  EXPECT_EQ((*others.Find("set"))->notes, "");
  ASSERT_TRUE(others.Remove("set").ok());
  ASSERT_TRUE(feed_.CatchUp().ok());
  EXPECT_EQ(*profiles.Find("set"), nullptr);
  EXPECT_THAT(profiles.Collections(), IsEmpty());
}

TEST_F(ProfilesTest, StoredAgainItIsOfTheModelThatRuns) {
  ASSERT_TRUE(Start({}).Set("set", ProfileOf({29})).ok());
  Profiles& profiles = Start({"model-b", "embedder-a", 3});
  ASSERT_TRUE(profiles.Set("set", ProfileOf({2})).ok());
  EXPECT_THAT(ResolvedBy(profiles).critical_layers, ElementsAre(2));
  EXPECT_THAT(metrics_.PrometheusText(), HasSubstr("c3po_learned_ignored{kind=\"profile\"} 0"));
  ASSERT_TRUE(profiles.Remove("set").ok());
  EXPECT_TRUE(store_->Artifacts("set", "")->empty());
}

TEST_F(ProfilesTest, OneOfAnEarlierVersionIsBoundWhereAllReferencesAreOfTheServersModel) {
  const std::string stored = ProfileOf({28}).options.SerializeAsString();
  ASSERT_TRUE(store_->PutArtifacts({{"set", "profile", stored}}).ok());
  EXPECT_THAT(ResolvedBy(Start({})).warnings, ElementsAre(HasSubstr("earlier version")));  // No reference says whose.
  const std::string id = AddReference(1, {});
  EXPECT_THAT(ResolvedBy(Start({})).critical_layers, ElementsAre(28));
  // From now on it is bound, whatever becomes of the references.
  ASSERT_TRUE(store_->Delete({id}).ok());
  EXPECT_THAT(ResolvedBy(Start({})).critical_layers, ElementsAre(28));
  AddReference(2, {"model-b", "embedder-a"});
  EXPECT_THAT(ResolvedBy(Start({"model-b", "embedder-a"})).warnings, ElementsAre(HasSubstr("model-a")));
}

TEST_F(ProfilesTest, OneOfAnEarlierVersionStaysUnboundWhereSomeReferencesAreOfAnotherModel) {
  ASSERT_TRUE(store_->PutArtifacts({{"set", "profile", ProfileOf({28}).options.SerializeAsString()}}).ok());
  AddReference(1, {});
  AddReference(2, {"model-b", "embedder-a"});
  EXPECT_THAT(ResolvedBy(Start({})).warnings, ElementsAre(HasSubstr("earlier version")));
}

TEST_F(ProfilesTest, OneThatWantsAPriorIsIgnoredWithoutItUnlessTheRequestNamesIt) {
  Profiles::Profile profile = ProfileOf({});
  profile.options.set_method(v1::METHOD_COLLECTION_PRIOR);
  ASSERT_TRUE(Start({}).Set("set", profile).ok());
  RoutingOverride shift;
  shift.kind = RoutingOverride::Kind::kLogitShift;
  shift.layers = {1};
  shift.values = Pathway(1, 4);
  ASSERT_TRUE(shifts_->PutPrior("set", {shift, "model-a"}).ok());
  EXPECT_EQ(ResolvedBy(*profiles_).method, Method::kCollectionPrior);
  // Another model learns one over the same collection, which takes the place of the first.
  Start({"model-b", "embedder-a"});
  ASSERT_TRUE(shifts_->PutPrior("set", {shift, "model-b"}).ok());

  Profiles& profiles = Start({});
  const OptimizationSettings settings = ResolvedBy(profiles);
  EXPECT_EQ(settings.method, Method::kNeighborhoodGradientDescent);
  EXPECT_EQ(settings.k, DefaultSettings(ShapeOf({})).k);
  EXPECT_THAT(settings.warnings, ElementsAre(HasSubstr("no prior for this model")));
  v1::OptimizationOptions asked;
  asked.set_method(v1::METHOD_COLLECTION_PRIOR);
  EXPECT_EQ(ResolvedBy(profiles, asked).method, Method::kCollectionPrior);  // And fails for want of it, as it should.
  asked.set_method(v1::METHOD_NEIGHBORHOOD_GRADIENT_DESCENT);
  EXPECT_EQ(ResolvedBy(profiles, asked).k, 24);
}

TEST_F(ProfilesTest, OneThatOtherDefaultsMakeInvalidIsIgnored) {
  Profiles::Profile profile;
  profile.options.set_prompt_positions(50);  // Valid for up to 40 neighbors.
  ASSERT_TRUE(Start({}).Set("set", profile).ok());
  EXPECT_EQ(ResolvedBy(*profiles_).prompt_positions, 50);
  OptimizationSettings defaults = DefaultSettings(ShapeOf({}));
  defaults.k = 60;
  const OptimizationSettings settings = ResolvedBy(Start({}, defaults));
  EXPECT_EQ(settings.prompt_positions, 1);
  EXPECT_THAT(settings.warnings, ElementsAre(HasSubstr("prompt_positions")));
}

TEST_F(ProfilesTest, AnErrorOfRequestAndProfileTogetherNamesTheProfile) {
  Profiles::Profile profile;
  profile.options.set_prompt_positions(50);
  Profiles& profiles = Start({});
  ASSERT_TRUE(profiles.Set("set", profile).ok());
  v1::OptimizationOptions options;
  options.set_collection("set");
  options.set_k(60);
  const absl::Status refused = profiles.Resolve(options).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("profile of collection \"set\""));
  options.set_use_profile(false);
  EXPECT_TRUE(profiles.Resolve(options).ok());
}

CollectionNames Only(const std::string& name) { return {false, {name}}; }

TEST_F(ProfilesTest, AnotherCallersCollectionIsRefusedWhetherItExistsOrNot) {
  Profiles& profiles = Start({});
  ASSERT_TRUE(profiles.Set("set", ProfileOf({3})).ok());
  AddReference(1, {});
  const CollectionAccess access(Only("mine"), {});
  for (const char* name : {"set", "nowhere", "default", ""}) {
    for (const v1::Method method : {v1::METHOD_UNSPECIFIED, v1::METHOD_NONE, v1::METHOD_COLLECTION_PRIOR}) {
      v1::OptimizationOptions options;
      options.set_collection(name);
      options.set_method(method);
      const absl::Status refused = profiles.Resolve(options, access).status();
      EXPECT_TRUE(absl::IsPermissionDenied(refused)) << name << ": " << refused;
      EXPECT_EQ(refused.message(),
                std::string("optimization.collection: the caller may not read the collection \"") + name + "\"");
    }
  }
  v1::OptimizationOptions mine;
  mine.set_collection("mine");
  EXPECT_EQ(profiles.Resolve(mine, access)->collection, "mine");
}

TEST_F(ProfilesTest, WhoMayNotReadTheDefaultCollectionGetsTheModelAloneWhereNoneIsNamed) {
  Profiles& profiles = Start({});
  ASSERT_TRUE(profiles.Set("default", ProfileOf({3})).ok());
  const CollectionAccess access(Only("mine"), {});
  for (const bool paper : {false, true}) {
    v1::OptimizationOptions options;
    if (paper) options.set_preset(v1::PRESET_PAPER);
    options.set_use_prior(true);
    const auto settings = profiles.Resolve(options, access);
    ASSERT_TRUE(settings.ok()) << settings.status();
    EXPECT_EQ(settings->method, Method::kNone);
    EXPECT_FALSE(settings->use_prior);
    EXPECT_THAT(settings->warnings, ElementsAre(HasSubstr("the model answers alone")));
    EXPECT_EQ(profiles.Resolve(options)->method, Method::kNeighborhoodGradientDescent);
  }
  v1::OptimizationOptions oracle;
  oracle.set_method(v1::METHOD_ORACLE);
  EXPECT_EQ(profiles.Resolve(oracle, access)->method, Method::kOracle);
  EXPECT_NE(profiles.Resolve(oracle, access)->critical_layers, std::vector<int>{3}) << "not by the profile either";
}

TEST_F(ProfilesTest, WhereAProfileCannotBeReadOnlyCallsWithoutOptimizationGoOn) {
  Profiles& profiles = Start(Runs());
  ASSERT_TRUE(store_->PutArtifacts({{"set", "profile", "\xff\xff"}}).ok());
  ASSERT_TRUE(feed_.CatchUp().ok());
  v1::OptimizationOptions options;
  options.set_collection("set");
  EXPECT_EQ(profiles.Resolve(options).status().code(), absl::StatusCode::kDataLoss);
  options.set_method(v1::METHOD_NONE);
  const auto settings = profiles.Resolve(options);
  ASSERT_TRUE(settings.ok()) << settings.status();
  EXPECT_EQ(settings->method, Method::kNone);
  EXPECT_THAT(settings->warnings, ElementsAre(HasSubstr("the profile of collection \"set\" cannot be read")));
}

}  // namespace
}  // namespace c3po
