#include "server/rpc/settings_message.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/text_format.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include <limits>
#include <optional>
#include <set>
#include <string>
#include <type_traits>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/pipeline/optimization_settings.h"

namespace c3po {
namespace {

// Another value than the default in every field but those of a oneof's other half.
constexpr char kEveryField[] = R"(
  method: METHOD_MODE_FINDING k: 11 kernel: KERNEL_MATERN bandwidth: 0.125 steps: 12 learning_rate: 0.25
  critical_layers: [1, 3] core_experts: 13 application_rule: APPLICATION_RULE_ROUTER_SHIFT collection: "science"
  gate { enabled: false max_neighbor_distance: 1.25 max_base_confidence: 0.5 min_loss_reduction: 0.0625
         min_validation_loss_reduction: 0.375 min_optimized_confidence: 0.75 neighbor_distance_quantile: 0.625 }
  reference_selection: REFERENCE_SELECTION_ALL objective: OBJECTIVE_CHOICES step_rule: STEP_RULE_NORMALIZED
  alpha: 0.875 return_pathways: true use_prior: true validation_neighbors: 14 step_scale: 0.0125 backtrack: true
  prompt_positions: 15 patience: 16 trust: 0.3125 balance: true use_offset: true neighborhoods: 5
  neighbor_source: NEIGHBOR_SOURCE_LAST_LAYER filter { must { key: "language" in: "en" } must_not { key: "old" exists: true } })";

v1::OptimizationOptions Parsed(const std::string& text) {
  v1::OptimizationOptions options;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &options)) << text;
  return options;
}

// Field by field, by hand: the oracle of the list.
TEST(SettingsMessage, EachFieldGoesWhereItsNameSays) {
  v1::OptimizationOptions options = Parsed(kEveryField);
  options.add_exclude_reference_ids("b");
  options.add_exclude_reference_ids("a");
  const auto settings = SettingsFromProto(options, OptimizationSettings());
  ASSERT_TRUE(settings.ok()) << settings.status();
  EXPECT_EQ(settings->method, Method::kModeFinding);
  EXPECT_EQ(settings->k, 11);
  EXPECT_EQ(settings->epsilon, std::nullopt);
  EXPECT_EQ(settings->kernel, Kernel::kMatern);
  EXPECT_EQ(settings->bandwidth, 0.125);
  EXPECT_EQ(settings->steps, 12);
  EXPECT_EQ(settings->learning_rate, 0.25);
  EXPECT_EQ(settings->critical_layers, (std::vector<int>{1, 3}));
  EXPECT_EQ(settings->core_experts, 13);
  EXPECT_EQ(settings->rule, ApplicationRule::kRouterShift);
  EXPECT_EQ(settings->collection, "science");
  EXPECT_FALSE(settings->gate.enabled);
  EXPECT_EQ(settings->gate.max_neighbor_distance, 1.25);
  EXPECT_EQ(settings->gate.max_base_confidence, 0.5);
  EXPECT_EQ(settings->gate.min_loss_reduction, 0.0625);
  EXPECT_EQ(settings->gate.min_validation_loss_reduction, 0.375);
  EXPECT_EQ(settings->gate.min_optimized_confidence, 0.75);
  EXPECT_EQ(settings->gate.neighbor_distance_quantile, 0.625);
  EXPECT_EQ(settings->references, ReferenceSelection::kAll);
  EXPECT_EQ(settings->objective, SurrogateLoss::kChoices);
  EXPECT_EQ(settings->step_rule, StepRule::kNormalized);
  EXPECT_EQ(settings->alpha, 0.875);
  EXPECT_TRUE(settings->return_pathways);
  EXPECT_TRUE(settings->use_prior);
  EXPECT_EQ(settings->validation_neighbors, 14);
  EXPECT_EQ(settings->step_scale, 0.0125);
  EXPECT_TRUE(settings->backtrack);
  EXPECT_EQ(settings->prompt_positions, 15);
  EXPECT_EQ(settings->patience, 16);
  EXPECT_EQ(settings->trust, 0.3125);
  EXPECT_TRUE(settings->balance);
  EXPECT_TRUE(settings->use_offset);
  EXPECT_EQ(settings->neighborhoods, 5);
  EXPECT_EQ(settings->neighbor_source, NeighborSource::kLastLayer);
  EXPECT_EQ(settings->exclude_reference_ids, (std::vector<std::string>{"b", "a"}));
  EXPECT_EQ(FilterText(settings->filter), R"(must["language" in "en"] must_not["old" exists])");
}

TEST(SettingsMessage, SettingsGoBackToTheMessageThatTheyCameFrom) {
  for (const char* change : {"", "epsilon: 0.5 validation_neighbors: 0", "gate { enabled: true }"}) {
    v1::OptimizationOptions options = Parsed(kEveryField);
    ASSERT_TRUE(google::protobuf::TextFormat::MergeFromString(change, &options)) << change;
    const auto settings = SettingsFromProto(options, OptimizationSettings());
    ASSERT_TRUE(settings.ok()) << settings.status();
    const v1::OptimizationOptions written = SettingsToProto(*settings);
    EXPECT_TRUE(google::protobuf::util::MessageDifferencer::Equals(written, options)) << written.ShortDebugString();
  }
  OptimizationSettings settings;
  settings.exclude_reference_ids = {"a"};  // of one request
  EXPECT_EQ(SettingsToProto(settings).exclude_reference_ids_size(), 0);
  EXPECT_FALSE(SettingsToProto(settings).has_alpha());
}

TEST(SettingsMessage, WhatIsNotSetComesFromTheDefaultsAndWhatIsRuledOutGoes) {
  OptimizationSettings defaults = *SettingsFromProto(Parsed(kEveryField), OptimizationSettings());
  defaults.exclude_reference_ids = {"a"};
  EXPECT_EQ(SettingsToProto(*SettingsFromProto({}, defaults)).SerializeAsString(),
            SettingsToProto(defaults).SerializeAsString());
  EXPECT_TRUE(SettingsFromProto({}, defaults)->exclude_reference_ids.empty());
  const OptimizationSettings within = *SettingsFromProto(Parsed("epsilon: 0.5"), defaults);
  EXPECT_EQ(within.epsilon, 0.5);
  EXPECT_EQ(within.validation_neighbors, 0);
  EXPECT_FALSE(within.balance);
  EXPECT_EQ(SettingsFromProto(Parsed("k: 2"), within)->epsilon, std::nullopt);
  OptimizationSettings calibrated;
  calibrated.gate.max_neighbor_distance = 0.5;
  calibrated.bandwidth = 0.25;
  calibrated.epsilon = 0.75;
  const OptimizationSettings elsewhere =
      *SettingsFromProto(Parsed("neighbor_source: NEIGHBOR_SOURCE_LAST_LAYER bandwidth: 2"), calibrated);
  EXPECT_EQ(elsewhere.gate.max_neighbor_distance, std::nullopt);
  EXPECT_EQ(elsewhere.epsilon, std::nullopt);
  EXPECT_EQ(elsewhere.bandwidth, 2);
  EXPECT_EQ(SettingsFromProto(Parsed("neighbor_source: NEIGHBOR_SOURCE_EMBEDDING"), calibrated)->epsilon, 0.75);
  OptimizationSettings divided;
  divided.neighborhoods = 3;
  EXPECT_EQ(SettingsFromProto(Parsed("k: 3"), divided)->neighborhoods, 3);
  EXPECT_EQ(SettingsFromProto(Parsed("k: 2"), divided)->neighborhoods, 1);
  EXPECT_EQ(SettingsFromProto(Parsed("k: 2 neighborhoods: 4"), divided)->neighborhoods, 4);
  EXPECT_EQ(SettingsFromProto(Parsed("method: METHOD_COLLECTION_PRIOR"), divided)->neighborhoods, 1);
  // A filter takes the whole place of a default's; one without conditions takes it back.
  EXPECT_EQ(FilterText(SettingsFromProto(Parsed("filter { should { key: 'a' equals: '' } }"), defaults)->filter),
            R"(should["a"=""])");
  EXPECT_TRUE(SettingsFromProto(Parsed("filter { }"), defaults)->filter.empty());
  const OptimizationSettings quantile =
      *SettingsFromProto(Parsed("gate { neighbor_distance_quantile: 0.5 }"), defaults);
  EXPECT_EQ(quantile.gate.max_neighbor_distance, std::nullopt);
  EXPECT_EQ(quantile.gate.max_base_confidence, 0.5);
}

TEST(SettingsMessage, WhatHasNoValueIsToldTheField) {
  v1::OptimizationOptions options;
  options.set_step_rule(static_cast<v1::StepRule>(9));
  EXPECT_EQ(SettingsFromProto(options, {}).status().message(),
            "optimization.step_rule: 9 is not a value of the enumeration");
  options.Clear();
  options.set_patience(3000000000U);
  EXPECT_EQ(SettingsFromProto(options, {}).status().message(), "optimization.patience: 3000000000 is too large");
  options.Clear();
  options.add_critical_layers(3000000000U);
  EXPECT_EQ(SettingsFromProto(options, {}).status().message(),
            "optimization.critical_layers[0]: 3000000000 is too large");
}

void CollectFields(const google::protobuf::Descriptor& message, const std::string& prefix,
                   std::set<std::string>& names) {
  for (int i = 0; i < message.field_count(); ++i) {
    const auto& field = *message.field(i);
    const bool is_whole = field.message_type() == v1::Filter::descriptor();  // A value, as a list is.
    if (field.message_type() != nullptr && !is_whole) {
      CollectFields(*field.message_type(), field.name() + ".", names);
    } else {
      names.insert(prefix + field.name());
    }
  }
}

// A field without a row would be read by nobody. Where settings come from is no setting.
TEST(OptimizationOptions, EveryFieldOfTheProtocolHasExactlyOneRow) {
  std::set<std::string> fields;
  CollectFields(*v1::OptimizationOptions::descriptor(), "", fields);
  for (const char* source : {"preset", "use_profile", "min_index_generation"})
    EXPECT_EQ(fields.erase(source), 1U) << source;
  std::multiset<std::string> rows;
  std::set<std::string> flags;
  const OptimizationSettings settings;
  VisitOptions(settings, [&](const OptimizationOption& option, const auto&) {
    rows.insert(option.name);
    EXPECT_TRUE(flags.insert(option.flag).second) << option.flag;
  });
  EXPECT_EQ(rows, std::multiset<std::string>(fields.begin(), fields.end()));
}

// The ends of every range, and what lies beyond them, are told as the range says.
TEST(ValidateSettings, HoldsEveryOptionAgainstItsRange) {
  ModelShape shape;
  shape.moe_layers = 4;
  shape.experts = 64;
  OptimizationSettings valid;
  valid.critical_layers = {0};
  valid.core_experts = 0;
  ASSERT_TRUE(ValidateSettings(valid, shape).ok()) << ValidateSettings(valid, shape);
  int ranges = 0;
  VisitOptions(valid, [&](const OptimizationOption& option, auto& value) {
    using Value = std::decay_t<decltype(value)>;
    if constexpr (std::is_same_v<Value, int> || std::is_same_v<Value, double> ||
                  std::is_same_v<Value, std::optional<double>>) {
      if (option.range.high > 1e9) return;  // none of its own
      ++ranges;
      const Value before = value;
      const auto verdict = [&](double number) {
        value = static_cast<int>(number) == number && std::is_same_v<Value, int> ? Value(static_cast<int>(number))
                                                                                 : Value(number);
        const absl::Status status = ValidateSettings(valid, shape);
        value = before;
        return std::string(status.message());
      };
      const double step = std::is_same_v<Value, int> ? 1 : 1e-9;
      const std::string wrong = absl::StrCat("optimization.", option.name, ": is ");
      EXPECT_EQ(absl::StartsWith(verdict(option.range.low), wrong), option.range.low_is_open) << option.name;
      EXPECT_EQ(absl::StartsWith(verdict(option.range.high), wrong), option.range.high_is_open) << option.name;
      EXPECT_TRUE(absl::StartsWith(verdict(option.range.low - step), wrong)) << option.name;
      EXPECT_TRUE(absl::StartsWith(verdict(option.range.high + step), wrong)) << option.name;
      if (!std::is_same_v<Value, int>) {
        EXPECT_TRUE(absl::StartsWith(verdict(std::numeric_limits<double>::quiet_NaN()), wrong)) << option.name;
      }
    }
  });
  EXPECT_EQ(ranges, 17);
}

TEST(ValidateSettings, NamesTheConditionOfAFilterThatIsWrong) {
  ModelShape shape;
  shape.moe_layers = 4;
  shape.experts = 64;
  OptimizationSettings settings;
  settings.critical_layers = {0};
  settings.core_experts = 0;
  settings.filter =
      SettingsFromProto(Parsed("filter { must { key: 'a' exists: true } must { key: 'b' range { } } }"), {})->filter;
  EXPECT_EQ(ValidateSettings(settings, shape).message(),
            "optimization.filter.must[1].range: sets none of gt, gte, lt and lte");
}

TEST(ValidateSettings, RefusesByNameWhatBalanceAndNeighborhoodsCannotGoWith) {
  ModelShape shape;
  shape.moe_layers = 4;
  shape.experts = 64;
  OptimizationSettings settings;
  settings.critical_layers = {0};
  settings.core_experts = 0;
  settings.balance = true;
  settings.neighborhoods = 3;
  EXPECT_TRUE(ValidateSettings(settings, shape).ok());
  const auto refusal = [&](const auto& change) {
    OptimizationSettings changed = settings;
    change(changed);
    return std::string(ValidateSettings(changed, shape).message());
  };
  EXPECT_EQ(refusal([](OptimizationSettings& s) { s.epsilon = 0.5; }),
            "optimization.balance: needs k; within epsilon an answer has as many neighbors as lie there");
  EXPECT_EQ(refusal([](OptimizationSettings& s) { s.k = 2; }),
            "optimization.neighborhoods: 3 parts need a neighbor each, and k is 2");
  for (const Method method : {Method::kModeFinding, Method::kKernelRegression, Method::kOracle, Method::kNone}) {
    EXPECT_EQ(refusal([method](OptimizationSettings& s) { s.method = method; }),
              "optimization.neighborhoods: 3 parts need the method neighborhood gradient descent");
  }
}

}  // namespace
}  // namespace c3po
