#include "server/rpc/filter_message.h"

#include <google/protobuf/util/json_util.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include <random>
#include <string>

#include "tests/index/search/random_filter.h"

namespace c3po {
namespace {

v1::Filter FromJson(const std::string& json) {
  v1::Filter filter;
  EXPECT_TRUE(google::protobuf::util::JsonStringToMessage(json, &filter).ok()) << json;
  return filter;
}

TEST(FilterMessage, EachFieldGoesWhereItsNameSays) {
  const MetadataFilter filter = FilterFromProto(FromJson(R"({
      "must": [{"key": "a", "equals": ""}, {"key": "b", "in": ["x", "y"]}],
      "should": [{"key": "c", "range": {"gt": 1, "gte": 2, "lt": 3, "lte": 4}}, {"key": "d", "exists": false}],
      "must_not": [{"filter": {"must": [{"key": "e", "exists": true}]}}]})"));
  EXPECT_EQ(FilterText(filter),
            R"(must["a"="", "b" in "x"|"y"] should["c">1>=2<3<=4, "d" is missing] must_not[(must["e" exists])])");
  EXPECT_EQ(ValidateFilter("filter", filter).message(), "");
}

TEST(FilterMessage, WhatIsNotSetStaysSo) {
  const MetadataFilter filter = FilterFromProto(FromJson(R"({"must": [{"key": "a"}, {}]})"));
  EXPECT_EQ(filter.must[0].key, "a");
  EXPECT_EQ(ValidateFilter("filter", filter).message(),
            "filter.must[0]: sets none of equals, in, range, exists and filter");
  EXPECT_TRUE(FilterFromProto(v1::Filter()).empty());
}

TEST(FilterMessage, GoesBackToTheMessageThatItCameFrom) {
  std::mt19937 random(5);
  for (int i = 0; i < 500; ++i) {
    const MetadataFilter filter = RandomFilter(random, 4);
    const v1::Filter proto = FilterToProto(filter);
    EXPECT_TRUE(FilterFromProto(proto) == filter) << proto.ShortDebugString();
    EXPECT_TRUE(google::protobuf::util::MessageDifferencer::Equals(FilterToProto(FilterFromProto(proto)), proto));
  }
}

}  // namespace
}  // namespace c3po
