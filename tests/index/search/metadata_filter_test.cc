#include "index/types/metadata_filter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/index/search/random_filter.h"

namespace c3po {
namespace {

MetadataCondition Equals(const std::string& key, const std::string& value) {
  MetadataCondition condition;
  condition.key = key;
  condition.equals = value;
  return condition;
}

MetadataCondition In(const std::string& key, std::vector<std::string> values) {
  MetadataCondition condition;
  condition.key = key;
  condition.in = std::move(values);
  return condition;
}

MetadataCondition Within(const std::string& key, const MetadataRange& range) {
  MetadataCondition condition;
  condition.key = key;
  condition.range = range;
  return condition;
}

MetadataCondition Exists(const std::string& key, bool exists) {
  MetadataCondition condition;
  condition.key = key;
  condition.exists = exists;
  return condition;
}

MetadataCondition Nested(const MetadataFilter& filter) {
  MetadataCondition condition;
  condition.filter.push_back(filter);
  return condition;
}

MetadataFilter Must(std::vector<MetadataCondition> conditions) { return {std::move(conditions), {}, {}}; }

// Filters within each other.
MetadataFilter Deep(size_t depth) {
  MetadataFilter filter = Must({Equals("a", "b")});
  for (size_t i = 1; i < depth; ++i) filter = Must({Nested(filter)});
  return filter;
}

TEST(DecimalNumber, ReadsDecimalsAndNothingElse) {
  const std::pair<const char*, double> numbers[] = {
      {"0", 0},       {"-3", -3},
      {"+0.50", 0.5}, {".5", 0.5},
      {"5.", 5},      {"007", 7},
      {"2e3", 2000},  {"1E-2", 0.01},
      {"-0", 0},      {"1.7976931348623157e308", std::numeric_limits<double>::max()}};
  for (const auto& [text, number] : numbers) EXPECT_EQ(DecimalNumber(text), number) << text;
  for (const char* text : {"",  " 1", "1 ",  "1,5",   "0x10",  "nan", "inf", "-inf", "1e",    "e1",
                           ".", "-",  "+-1", "1e999", "1_000", "١",   "1f",  "1e+",  "1.2.3", "true"}) {
    EXPECT_EQ(DecimalNumber(text), std::nullopt) << text;
  }
  EXPECT_EQ(DecimalNumber(absl::string_view("1\0", 2)), std::nullopt);
}

// The oracle's own oracle: what each kind of condition says, by hand.
TEST(Matches, HoldsAsEachConditionIsTold) {
  const std::map<std::string, std::string> metadata = {{"language", "en"}, {"year", "2024"}, {"empty", ""}};
  MetadataRange from_2024, after_2024, before_2024, until_2024, decade;
  from_2024.gte = after_2024.gt = before_2024.lt = until_2024.lte = 2024;
  decade.gte = 2020;
  decade.lt = 2030;
  const std::pair<MetadataCondition, bool> conditions[] = {
      {Equals("language", "en"), true},
      {Equals("language", "EN"), false},
      {Equals("year", "2024.0"), false},  // A text, not a number.
      {Equals("empty", ""), true},
      {Equals("missing", ""), false},
      {In("language", {"de", "en"}), true},
      {In("language", {"de", "fr"}), false},
      {In("missing", {""}), false},
      {Within("year", from_2024), true},
      {Within("year", after_2024), false},
      {Within("year", before_2024), false},
      {Within("year", until_2024), true},
      {Within("year", decade), true},
      {Within("language", from_2024), false},
      {Within("empty", until_2024), false},
      {Within("missing", until_2024), false},
      {Exists("empty", true), true},
      {Exists("empty", false), false},
      {Exists("missing", true), false},
      {Exists("missing", false), true},
      {Nested(Must({Equals("language", "en"), Exists("year", true)})), true},
      {Nested(Must({Equals("language", "en"), Exists("year", false)})), false},
      {Nested({}), true},
  };
  for (const auto& [condition, holds] : conditions) {
    SCOPED_TRACE(FilterText(Must({condition})));
    EXPECT_EQ(Matches({{condition}, {}, {}}, metadata), holds);
    EXPECT_EQ(Matches({{}, {condition}, {}}, metadata), holds);
    EXPECT_EQ(Matches({{}, {}, {condition}}, metadata), !holds);
  }
  const MetadataCondition yes = Equals("language", "en"), no = Equals("language", "de");
  EXPECT_TRUE(Matches({}, metadata));
  EXPECT_TRUE(Matches({}, {}));
  EXPECT_FALSE(Matches({{yes, no}, {}, {}}, metadata));
  EXPECT_TRUE(Matches({{}, {no, yes}, {}}, metadata));
  EXPECT_FALSE(Matches({{}, {no, no}, {}}, metadata));
  EXPECT_FALSE(Matches({{}, {}, {no, yes}}, metadata));
  EXPECT_FALSE(Matches({{yes}, {no}, {}}, metadata));
  EXPECT_TRUE(Matches({{yes}, {yes, no}, {no}}, metadata));
}

std::string Refusal(const MetadataFilter& filter) { return std::string(ValidateFilter("filter", filter).message()); }

TEST(ValidateFilter, NamesTheConditionThatIsWrong) {
  EXPECT_EQ(Refusal({}), "");
  MetadataCondition nothing, both = Equals("a", "b"), keyed = Nested(Deep(1)), range = Within("a", {});
  nothing.key = "a";
  both.exists = true;
  keyed.key = "a";
  EXPECT_EQ(Refusal(Must({Equals("a", "b"), nothing})),
            "filter.must[1]: sets none of equals, in, range, exists and filter");
  EXPECT_EQ(Refusal({{}, {both}, {}}), "filter.should[0]: sets equals and exists, of which one may be set");
  EXPECT_EQ(Refusal({{}, {}, {Exists("", true)}}), "filter.must_not[0].key: must not be empty");
  EXPECT_EQ(Refusal(Must({keyed})),
            "filter.must[0].key: must not be set beside filter, whose conditions have their own");
  EXPECT_EQ(Refusal({{}, {}, {Nested(Must({range}))}}),
            "filter.must_not[0].filter.must[0].range: sets none of gt, gte, lt and lte");
  range.range->lt = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(Refusal(Must({range})), "filter.must[0].range.lt: nan, must be finite");
  range.range->lt = 1;
  range.range->gte = std::numeric_limits<double>::infinity();
  EXPECT_EQ(Refusal(Must({range})), "filter.must[0].range.gte: inf, must be finite");
}

TEST(ValidateFilter, HoldsEachLimitAndNotOneMore) {
  EXPECT_EQ(Refusal(Deep(kFilterDepthMax)), "");
  EXPECT_THAT(Refusal(Deep(kFilterDepthMax + 1)),
              testing::EndsWith(".filter: filters lie within each other more than 8 deep"));
  // Those within other filters count.
  MetadataFilter many =
      Must({Nested(Must(std::vector<MetadataCondition>(kFilterConditionsMax - 2, Exists("a", true))))});
  many.must_not.push_back(Exists("a", true));
  EXPECT_EQ(Refusal(many), "");
  many.must_not.push_back(Exists("a", true));
  EXPECT_EQ(Refusal(many), "filter.must_not[1]: the filter has more than 64 conditions");
  MetadataFilter values = Must({In("a", std::vector<std::string>(kFilterValuesMax - 1, "b")), In("a", {"b"})});
  EXPECT_EQ(Refusal(values), "");
  values.must[1].in.emplace_back("b");
  EXPECT_EQ(Refusal(values), "filter.must[1].in: the filter's lists have more than 4096 values");
  MetadataFilter bytes = Must({Equals("a", std::string(kFilterBytesMax - 2, 'b')), Exists("c", true)});
  EXPECT_EQ(Refusal(bytes), "");
  bytes.must[1].key = "cc";
  EXPECT_EQ(Refusal(bytes), "filter.must[1]: the filter's keys and values have more than 65536 bytes");
}

TEST(FilterText, IsTheSameForTheSameFilterAndForNoOther) {
  EXPECT_EQ(FilterText({}), "");
  MetadataRange range;
  range.gte = 0.1;
  range.lt = 3;
  EXPECT_EQ(FilterText({{Equals("a\"", "b")}, {In("k", {"x", "y"}), Exists("z", false)}, {Within("n", range)}}),
            R"(must["a\""="b"] should["k" in "x"|"y", "z" is missing] must_not["n">=0.1<3])");
  std::mt19937 random(3);
  std::map<std::string, MetadataFilter> filters;
  size_t repeated = 0;
  for (int i = 0; i < 3000; ++i) {
    const MetadataFilter filter = RandomFilter(random, 2);
    ASSERT_EQ(Refusal(filter), "");
    const auto [known, is_new] = filters.emplace(FilterText(filter), filter);
    EXPECT_TRUE(known->second == filter) << known->first;
    repeated += is_new ? 0 : 1;
  }
  EXPECT_GT(repeated, 50u);
  EXPECT_GT(filters.size(), 1000u);
}

}  // namespace
}  // namespace c3po
