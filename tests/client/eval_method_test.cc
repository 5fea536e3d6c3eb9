// Methods by name, options by name, and the points of ablations.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/eval/ablation.h"
#include "client/eval/item_runner.h"
#include "client/eval/method.h"
#include "client/eval/option_setting.h"

namespace c3po {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

MethodContext Context() {
  MethodContext context;
  context.server.mutable_model()->set_moe_layers(8);
  context.server.mutable_model()->set_experts(64);
  context.server.mutable_default_optimization()->set_k(7);
  context.server.mutable_default_optimization()->set_reference_selection(v1::REFERENCE_SELECTION_SUCCESSFUL);
  context.common.set_steps(4);
  return context;
}

TEST(SetOption, TakesEveryKindOfField) {
  v1::OptimizationOptions options;
  EXPECT_TRUE(SetOption("k", "12", &options).ok());
  EXPECT_TRUE(SetOption("learning_rate", "0.25", &options).ok());
  EXPECT_TRUE(SetOption("use_prior", "true", &options).ok());
  EXPECT_TRUE(SetOption("application_rule", "router_shift", &options).ok());
  EXPECT_TRUE(SetOption("critical_layers", "3,5-7", &options).ok());
  EXPECT_TRUE(SetOption("gate.max_base_confidence", "0.9", &options).ok());
  EXPECT_TRUE(SetOption("exclude_reference_ids", "a,b", &options).ok());
  EXPECT_TRUE(SetOption("filter", R"({"must":[{"key":"a","equals":"b"}]})", &options).ok());
  EXPECT_EQ(
      OptionsJson(options),
      R"({"k":12,"learning_rate":0.25,"critical_layers":[3,5,6,7],"application_rule":"APPLICATION_RULE_ROUTER_SHIFT",)"
      R"("gate":{"max_base_confidence":0.9},"use_prior":true,"exclude_reference_ids":["a","b"],)"
      R"("filter":{"must":[{"key":"a","equals":"b"}]}})");
  const auto parsed = ParseOptionsJson(OptionsJson(options));
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->SerializeAsString(), options.SerializeAsString());
}

TEST(SetOption, NamesWhatIsWrong) {
  v1::OptimizationOptions options;
  EXPECT_THAT(std::string(SetOption("kk", "1", &options).message()), HasSubstr("kk: no such option; there are method"));
  EXPECT_THAT(std::string(SetOption("k", "x", &options).message()), HasSubstr("k: \"x\""));
  EXPECT_THAT(std::string(SetOption("kernel", "box", &options).message()), HasSubstr("gaussian, matern"));
  EXPECT_FALSE(SetOption("gate", "1", &options).ok());
  EXPECT_FALSE(SetOption("k.x", "1", &options).ok());
  EXPECT_THAT(std::string(SetOption("filter", "[1]", &options).message()), HasSubstr("filter: is no filter as JSON"));
  EXPECT_FALSE(SetOption("filter.must", "{}", &options).ok());
  EXPECT_FALSE(SetOption("critical_layers", "9-3", &options).ok());
  EXPECT_FALSE(ParseOptionsJson("{\"k\": \"many\"}").ok());
}

TEST(DescribeOptions, SaysWhatDiffers) {
  v1::OptimizationOptions base, options;
  base.set_k(3);
  options.set_k(3);
  options.set_steps(20);
  options.mutable_gate()->set_enabled(false);
  for (const uint32_t layer : {22, 23, 24}) options.add_critical_layers(layer);
  EXPECT_EQ(DescribeOptions(options, base), "steps 20 · critical_layers 22-24 · gate.enabled false");
}

TEST(MakeMethod, OptimizingMethodsTakeTheCommonOptions) {
  const auto ngd = MakeMethod("ngd", Context());
  ASSERT_TRUE(ngd.ok());
  EXPECT_EQ(OptionsJson(ngd->optimization), R"({"method":"METHOD_NEIGHBORHOOD_GRADIENT_DESCENT","steps":4})");
  const auto none = MakeMethod("none", Context());
  EXPECT_EQ(OptionsJson(none->optimization), R"({"method":"METHOD_NONE"})");
  const auto profile = MakeMethod("profile", Context());
  EXPECT_EQ(OptionsJson(profile->optimization), R"({"use_profile":true})");
}

TEST(MakeMethod, PairsIsDescentOnTheLossOverPairs) {
  const auto pairs = MakeMethod("pairs", Context());
  ASSERT_TRUE(pairs.ok());
  EXPECT_EQ(pairs->label, "pairs");
  EXPECT_EQ(OptionsJson(pairs->optimization),
            R"({"method":"METHOD_NEIGHBORHOOD_GRADIENT_DESCENT","steps":4,"objective":"OBJECTIVE_PAIRS"})");
  const auto held = MakeMethods({"none", "held=pairs"}, {"held.trust=0.5"}, Context());
  ASSERT_TRUE(held.ok()) << held.status();
  EXPECT_EQ((*held)[1].label, "held");
  EXPECT_EQ((*held)[1].optimization.trust(), 0.5);
  EXPECT_EQ((*held)[1].optimization.objective(), v1::OBJECTIVE_PAIRS);
}

TEST(MakeMethod, PaperAndPublicCodeLeaveNothingToTheServer) {
  const auto paper = MakeMethod("paper", Context());
  ASSERT_TRUE(paper.ok());
  EXPECT_THAT(paper->optimization.critical_layers(), ElementsAre(3, 4, 5, 6, 7));
  EXPECT_EQ(paper->optimization.core_experts(), 20);
  EXPECT_EQ(paper->optimization.steps(), 10);
  EXPECT_FALSE(paper->optimization.use_profile());
  EXPECT_FALSE(paper->optimization.gate().enabled());
  const auto code = MakeMethod("public-code", Context());
  EXPECT_EQ(code->optimization.method(), v1::METHOD_KERNEL_REGRESSION);
  EXPECT_TRUE(code->optimization.has_alpha());
  EXPECT_EQ(code->optimization.alpha(), 0.0);
  EXPECT_EQ(code->optimization.core_experts(), 0);
}

// A default that changes must not change what the tables of RESULTS.md call the paper's.
TEST(MakeMethod, PaperSetsEveryFieldThatADefaultCouldFill) {
  const auto paper = MakeMethod("paper", Context());
  ASSERT_TRUE(paper.ok());
  const std::set<std::string> others = {
      "epsilon", "bandwidth",           "filter", "collection", "alpha", "return_pathways", "exclude_reference_ids",
      "preset",  "min_index_generation"};
  const auto* descriptor = v1::OptimizationOptions::descriptor();
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const auto* field = descriptor->field(i);
    if (others.count(field->name()) > 0) continue;
    const auto* reflection = paper->optimization.GetReflection();
    EXPECT_TRUE(field->is_repeated() ? reflection->FieldSize(paper->optimization, field) > 0
                                     : reflection->HasField(paper->optimization, field))
        << field->name();
  }
  EXPECT_EQ(paper->optimization.learning_rate(), 0.1);
  EXPECT_EQ(paper->optimization.validation_neighbors(), 0u);
}

TEST(MakeMethod, BaselinesLeaveTheirNeighborsToTheCollectionUnlessTheUserSetsThem) {
  const auto knn = MakeMethod("knn", Context());
  ASSERT_TRUE(knn.ok());
  EXPECT_EQ(knn->kind, MethodKind::kNeighborVote);
  EXPECT_EQ(OptionsJson(knn->optimization), "{}");
  MethodContext context = Context();
  for (const char* setting : {"epsilon=0.5", "reference_selection=all", "kernel=matern", "bandwidth=0.25",
                              R"(filter={"must":[{"key":"a","equals":"b"}]})"}) {
    const std::pair<std::string, std::string> field = absl::StrSplit(setting, '=');
    ASSERT_TRUE(SetOption(field.first, field.second, &context.common).ok()) << setting;
  }
  for (const char* name : {"knn", "icl"}) {
    EXPECT_EQ(OptionsJson(MakeMethod(name, context)->optimization),
              R"({"epsilon":0.5,"kernel":"KERNEL_MATERN","bandwidth":0.25,)"
              R"("reference_selection":"REFERENCE_SELECTION_ALL","filter":{"must":[{"key":"a","equals":"b"}]}})")
        << name;
  }
  EXPECT_EQ(MakeMethod("icl", context)->shots, 0);  // As many as there are neighbors.
  context.shots = 5;
  EXPECT_EQ(MakeMethod("icl", context)->shots, 5);
}

TEST(MakeMethod, AnOffsetIsFittedAfterEveryMethodButTheOracle) {
  const MethodContext context = Context();
  const EvalMethod alone = *MakeMethod("offset", context);
  EXPECT_EQ(OptionsJson(alone.optimization), R"({"method":"METHOD_NONE","use_offset":true})");
  EXPECT_EQ(alone.label, "offset");
  for (const char* name : {"ngd", "kernel", "mode", "prior", "amortized", "profile", "paper", "public-code", "none"}) {
    EvalMethod method = *MakeMethod(absl::StrCat(name, "+offset"), context);
    EXPECT_EQ(method.label, absl::StrCat(name, "+offset"));
    EXPECT_TRUE(method.optimization.use_offset());
    EvalMethod without = *MakeMethod(name, context);
    without.optimization.set_use_offset(true);
    EXPECT_EQ(OptionsJson(method.optimization), OptionsJson(without.optimization)) << name;
  }
  EXPECT_EQ(MakeMethod("mine=ngd+offset", context)->label, "mine");
  for (const char* name : {"oracle+offset", "icl+offset", "knn+offset", "magic+offset", "offset+offset"}) {
    EXPECT_FALSE(MakeMethod(name, context).ok()) << name;
  }
  MethodContext common = context;
  common.common.set_use_offset(true);
  EXPECT_FALSE(MakeMethod("oracle", common)->optimization.use_offset());
  EXPECT_TRUE(MakeMethod("ngd", common)->optimization.use_offset());
}

TEST(RequestOptions, TheModelAloneHasNoOffsetWhateverAProfileSays) {
  Task task;
  task.collection = "mood";
  const v1::OptimizationOptions plain = RequestOptions(task, TaskItem(), *MakeMethod("none", Context()));
  EXPECT_TRUE(plain.has_use_offset() && !plain.use_offset());
  const v1::OptimizationOptions moved = RequestOptions(task, TaskItem(), *MakeMethod("offset", Context()));
  EXPECT_TRUE(moved.use_offset());
  EXPECT_EQ(moved.collection(), "mood");
  EXPECT_EQ(moved.method(), v1::METHOD_NONE);
}

TEST(MakeMethods, LabelsAndSettings) {
  const auto methods =
      MakeMethods({"none", "ngd", "long=ngd"}, {"long.steps=20", "long.gate.enabled=false"}, Context());
  ASSERT_TRUE(methods.ok()) << methods.status();
  EXPECT_EQ((*methods)[1].optimization.steps(), 4);
  EXPECT_EQ((*methods)[2].label, "long");
  EXPECT_EQ((*methods)[2].optimization.steps(), 20);
  EXPECT_THAT(std::string(MakeMethods({"ngd", "ngd"}, {}, Context()).status().message()), HasSubstr("given twice"));
  EXPECT_THAT(std::string(MakeMethods({"best"}, {}, Context()).status().message()), HasSubstr("is none of none, ngd"));
  EXPECT_THAT(std::string(MakeMethods({"ngd"}, {"x.k=1"}, Context()).status().message()), HasSubstr("label x"));
  EXPECT_THAT(std::string(MakeMethods({"ngd"}, {"ngd.k"}, Context()).status().message()),
              HasSubstr("LABEL.field=value"));
}

TEST(RequestOptions, CarryTheTasksCollectionAndLeaveTheQuestionOut) {
  Task task;
  task.collection = "science";
  TaskItem item;
  item.own_references = {"ref-9", "ref-3"};
  EvalMethod method = *MakeMethod("ngd", Context());
  method.collection_suffix = ".size20";
  const v1::OptimizationOptions options = RequestOptions(task, item, method);
  EXPECT_EQ(options.collection(), "science.size20");
  EXPECT_THAT(options.exclude_reference_ids(), ElementsAre("ref-9", "ref-3"));
  EXPECT_EQ(OptionsJson(RequestOptions(task, item, *MakeMethod("icl", Context()))),
            R"({"method":"METHOD_NONE","use_offset":false})");
}

std::vector<std::string> Labels(const AblationPlan& plan) {
  std::vector<std::string> labels;
  for (const AxisPoint& point : plan.axis.points) labels.push_back(point.label);
  return labels;
}

TEST(PlanAblation, EveryVariableHasPointsOfItsOwn) {
  const EvalMethod base = *MakeMethod("ngd", Context());
  for (const std::string& variable : AblationVariables()) {
    const auto plan = PlanAblation(variable, {}, base, Context().server, 436);
    ASSERT_TRUE(plan.ok()) << variable << ": " << plan.status();
    EXPECT_EQ(plan->methods[0].label, "none");
    EXPECT_EQ(plan->methods.size(), plan->axis.points.size() + 1);
    std::set<std::string> distinct;
    for (const EvalMethod& method : plan->methods) {
      distinct.insert(absl::StrCat(OptionsJson(method.optimization), method.collection_suffix));
    }
    EXPECT_EQ(distinct.size(), plan->methods.size()) << variable;
  }
}

TEST(PlanAblation, LayersCoreExpertsAndSizes) {
  const EvalMethod base = *MakeMethod("ngd", Context());
  const auto suffix = PlanAblation("layers-suffix", {}, base, Context().server, 0);
  ASSERT_EQ(suffix->axis.points.size(), 8);
  EXPECT_EQ(suffix->axis.points[0].label, "7");
  EXPECT_EQ(suffix->axis.points[7].label, "0-7");
  EXPECT_EQ(suffix->axis.points[7].value, "8");
  EXPECT_THAT(suffix->methods[2].optimization.critical_layers(), ElementsAre(6, 7));
  const auto single = PlanAblation("layers-single", {}, base, Context().server, 0);
  EXPECT_THAT(single->methods[4].optimization.critical_layers(), ElementsAre(3));
  const auto core = PlanAblation("core-experts", {}, base, Context().server, 0);
  EXPECT_THAT(Labels(*core), ElementsAre("4", "8", "16", "20", "32", "all"));
  EXPECT_EQ(core->axis.points.back().value, "64");
  const auto sizes = PlanAblation("reference-set-size", {}, base, Context().server, 150);
  EXPECT_THAT(Labels(*sizes), ElementsAre("20", "50", "100", "all"));
  EXPECT_THAT(sizes->sizes, ElementsAre(20, 50, 100));
  EXPECT_EQ(sizes->methods[1].collection_suffix, ".size20");
  EXPECT_EQ(sizes->methods[4].collection_suffix, "");
  EXPECT_EQ(sizes->axis.points.back().value, "150");
}

TEST(PlanAblation, OwnValuesAreChecked) {
  const EvalMethod base = *MakeMethod("ngd", Context());
  EXPECT_THAT(Labels(*PlanAblation("k", {"2", "9"}, base, Context().server, 0)), ElementsAre("2", "9"));
  EXPECT_FALSE(PlanAblation("k", {"few"}, base, Context().server, 0).ok());
  EXPECT_FALSE(PlanAblation("layers-suffix", {"9"}, base, Context().server, 0).ok());
  EXPECT_FALSE(PlanAblation("weather", {}, base, Context().server, 0).ok());
}

TEST(ReferenceSubset, SmallerIsPartOfLarger) {
  std::vector<v1::ReferenceSample> samples(30);
  for (size_t i = 0; i < samples.size(); ++i) samples[i].set_prompt(absl::StrCat(i));
  const auto small = ReferenceSubset(samples, 5, 3), large = ReferenceSubset(samples, 12, 3);
  ASSERT_EQ(large.size(), 12);
  for (size_t i = 0; i < small.size(); ++i) EXPECT_EQ(small[i].prompt(), large[i].prompt());
  EXPECT_EQ(ReferenceSubset(samples, 99, 3).size(), 30);
}

}  // namespace
}  // namespace c3po
