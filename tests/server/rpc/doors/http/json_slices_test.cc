#include "server/rpc/doors/http/json_slices.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "server/rpc/doors/http/json_fields.h"

namespace c3po {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;

std::vector<std::pair<std::string, std::string>> Members(absl::string_view object) {
  std::vector<std::pair<std::string, std::string>> members;
  VisitMembers(object, [&](absl::string_view key, absl::string_view value) {
    members.emplace_back(key, value);
    return true;
  });
  return members;
}

std::vector<std::string> Elements(absl::string_view array) {
  std::vector<std::string> elements;
  VisitElements(array, [&](absl::string_view value) {
    elements.emplace_back(value);
    return true;
  });
  return elements;
}

TEST(JsonSlices, KeepsOrderSpellingAndNestedValues) {
  EXPECT_THAT(
      Members(R"( { "z" : 1.0 , "a":[1,{"b":"},]"}], "z":{"x":"\"}"} } )"),
      ElementsAre(Pair(R"("z")", "1.0"), Pair(R"("a")", R"([1,{"b":"},]"}])"), Pair(R"("z")", R"({"x":"\"}"})")));
  EXPECT_THAT(Elements(R"([ 1e5 ,"a,b",[],{},null ])"), ElementsAre("1e5", R"("a,b")", "[]", "{}", "null"));
}

TEST(JsonSlices, EmptyOnesHaveNothing) {
  EXPECT_THAT(Members("{}"), IsEmpty());
  EXPECT_THAT(Members(" { } "), IsEmpty());
  EXPECT_THAT(Elements("[ ]"), IsEmpty());
  EXPECT_THAT(Members("[1]"), IsEmpty());
  EXPECT_THAT(Elements("{}"), IsEmpty());
  EXPECT_THAT(Members(""), IsEmpty());
}

TEST(JsonSlices, WhatIsNoJsonStaysWithinTheText) {
  for (const char* text :
       {"{", "{\"", "{\"a", "{\"a\":", "{\"a\":\"", "{\"a\":\"\\", "{\"a\":[", "{,", "{:", "[", "[\"\\", "[[["}) {
    (void)Members(text);
    (void)Elements(text);
  }
}

TEST(JsonSlices, EndsWhenTheVisitorSaysSo) {
  int seen = 0;
  VisitElements("[1,2,3]", [&](absl::string_view) { return ++seen < 2; });
  EXPECT_EQ(seen, 2);
}

TEST(JsonFields, TheLastOfTwoCountsAndNullIsLeftOut) {
  const auto fields = JsonFields::Parse(R"({"a":1,"a":2,"b":null,"\u0063":"d"})");
  ASSERT_TRUE(fields.ok()) << fields.status();
  EXPECT_EQ(fields->Find("a"), "2");
  EXPECT_FALSE(fields->Has("b"));
  EXPECT_EQ(fields->Find("c"), R"("d")");
}

TEST(JsonFields, RefusesWhatIsNoObjectByName) {
  const std::string deep = std::string(100, '[') + std::string(100, ']');
  std::string many = "{";
  for (int i = 0; i < 5000; ++i) many += (i > 0 ? ",\"" : "\"") + std::to_string(i) + "\":1";
  many += "}";
  for (const std::string& text :
       {std::string(), std::string("{"), std::string("[]"), std::string("\"a\""), std::string("{\"a\":\"\xff\"}"),
        std::string("{\"a\":NaN}"), "{\"a\":" + deep + "}", many}) {
    const auto fields = JsonFields::Parse(text);
    ASSERT_EQ(fields.status().code(), absl::StatusCode::kInvalidArgument) << text.substr(0, 20);
    EXPECT_EQ(fields.status().message().substr(0, 9), "request: ") << fields.status();
  }
  EXPECT_EQ(JsonFields::Parse("1", "c3po.").status().message(), "c3po: is no JSON object");
}

TEST(JsonFields, WholeNumbersMayBeWrittenAsPythonDoes) {
  EXPECT_EQ(*WholeNumberOf("x", "5"), 5);
  EXPECT_EQ(*WholeNumberOf("x", "5.0"), 5);
  EXPECT_EQ(*WholeNumberOf("x", "-9223372036854775808"), INT64_MIN);
  for (const char* wrong : {"5.5", "1e300", "\"5\"", "true", "null", "[]", "9223372036854775808"})
    EXPECT_EQ(WholeNumberOf("x", wrong).status().message(), "x: must be a whole number") << wrong;
}

TEST(JsonFields, QuotesWhateverATextHas) { EXPECT_EQ(QuotedJson("a\"\n\xff"), "\"a\\\"\\n\xef\xbf\xbd\""); }

}  // namespace
}  // namespace c3po
