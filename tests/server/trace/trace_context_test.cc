#include "server/trace/trace_context.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace c3po {
namespace {

constexpr char kTraceId[] = "0af7651916cd43dd8448eb211c80319c", kSpanId[] = "b7ad6b7169203331";

std::string Header(const std::string& version = "00", const std::string& trace = kTraceId,
                   const std::string& span = kSpanId, const std::string& flags = "01") {
  return absl::StrCat(version, "-", trace, "-", span, "-", flags);
}

std::string StateOf(const std::string& tracestate) {
  const auto context = ParseTraceContext(Header(), tracestate);
  return context ? context->state : "no context";
}

TEST(TraceContext, OfVersionZeroAllFieldsAreRead) {
  const auto context = ParseTraceContext(Header(), "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7");
  ASSERT_TRUE(context.has_value());
  EXPECT_EQ(TraceHex(context->trace_id), kTraceId);
  EXPECT_EQ(TraceHex(context->span_id), kSpanId);
  EXPECT_TRUE(context->sampled());
  EXPECT_EQ(context->state, "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7");
}

TEST(TraceContext, OnlyTheFlagsThatAreKnownAreKept) {
  const std::pair<const char*, int> flags[] = {{"00", 0}, {"01", 1}, {"02", 2}, {"03", 3}, {"fe", 2}, {"ff", 3}};
  for (const auto& [text, kept] : flags) {
    const auto context = ParseTraceContext(Header("00", kTraceId, kSpanId, text), "");
    ASSERT_TRUE(context.has_value()) << text;
    EXPECT_EQ(context->flags, kept) << text;
    EXPECT_EQ(context->sampled(), (kept & 1) != 0) << text;
  }
}

TEST(TraceContext, ALaterVersionMayHaveMoreFields) {
  EXPECT_TRUE(ParseTraceContext(Header("cc"), "").has_value());
  EXPECT_TRUE(ParseTraceContext(Header("cc") + "-what-the-future-will-be-like", "").has_value());
  EXPECT_TRUE(ParseTraceContext(Header("01") + "-", "").has_value());
  EXPECT_FALSE(ParseTraceContext(Header("cc") + ".what", "").has_value());
  EXPECT_FALSE(ParseTraceContext(Header("cc") + "0", "").has_value());
}

TEST(TraceContext, WhatIsNotValidIsNoParent) {
  const std::vector<std::string> wrong = {
      "",
      "00",
      Header("ff"),
      Header("0G"),
      Header("00") + "-",
      Header("00") + " ",
      " " + Header(),
      Header("00").substr(0, 54),
      Header("00", std::string(32, '0')),
      Header("00", kTraceId, std::string(16, '0')),
      Header("00", "0AF7651916CD43DD8448EB211C80319C"),
      Header("00", kTraceId, "B7AD6B7169203331"),
      Header("00", kTraceId, kSpanId, "0"),
      Header("00", kTraceId, kSpanId, "0G"),
      Header("00", kTraceId, kSpanId, ".1"),
      Header("00", std::string(kTraceId).substr(1)),
      Header("00", std::string("g") + std::string(kTraceId).substr(1)),
      absl::StrCat("00_", kTraceId, "-", kSpanId, "-01"),
      absl::StrCat("00-", kTraceId, "_", kSpanId, "-01"),
      absl::StrCat("00-", kTraceId, "-", kSpanId, "_01"),
      Header() + "," + Header(),
  };
  for (const std::string& header : wrong) EXPECT_FALSE(ParseTraceContext(header, "a=1").has_value()) << header;
}

TEST(TraceContext, AStateIsPassedOnWithoutBlanksBetweenItsMembers) {
  EXPECT_EQ(StateOf(""), "");
  EXPECT_EQ(StateOf("a=1"), "a=1");
  EXPECT_EQ(StateOf(" a=1 ,\tb=2\t"), "a=1,b=2");
  EXPECT_EQ(StateOf("a=1,,b=2, "), "a=1,b=2");
  EXPECT_EQ(StateOf("fw529a3039@dt=FfAzNjM"), "fw529a3039@dt=FfAzNjM");
  EXPECT_EQ(StateOf("0a_-*/=b c"), "0a_-*/=b c");
}

TEST(TraceContext, AStateThatIsNotValidIsLeftOutAndTheTraceGoesOn) {
  const std::vector<std::string> wrong = {"a",
                                          "=1",
                                          "a=",
                                          "A=1",
                                          "a =1",
                                          "a=1=2",
                                          "a=1,a=2",
                                          "-a=1",
                                          "a=\x01",
                                          "a=\xc3\xa9",
                                          "@a=1",
                                          "a=1,b=\"\x7f\"",
                                          absl::StrCat(std::string(257, 'k'), "=1"),
                                          absl::StrCat("a=", std::string(257, 'v'))};
  for (const std::string& state : wrong) EXPECT_EQ(StateOf(state), "") << state;
  std::vector<std::string> members;
  for (int i = 0; i < 32; ++i) members.push_back(absl::StrCat("k", i, "=v"));
  EXPECT_EQ(StateOf(absl::StrJoin(members, ",")), absl::StrJoin(members, ","));
  members.push_back("k32=v");
  EXPECT_EQ(StateOf(absl::StrJoin(members, ",")), "");
}

TEST(TraceContext, OfALongStateLongMembersGoFirstThenTheLastOnes) {
  const std::string longest = absl::StrCat("x=", std::string(200, 'v'));
  std::vector<std::string> members;
  for (int i = 0; i < 5; ++i) members.push_back(absl::StrCat("k", i, "=", std::string(90, 'v')));
  const std::string kept = absl::StrJoin(members, ",");
  EXPECT_EQ(StateOf(absl::StrCat("a=1,", longest, ",", kept)), "a=1," + kept);
  members.push_back(absl::StrCat("k5=", std::string(90, 'v')));
  EXPECT_EQ(StateOf(absl::StrJoin(members, ",")), kept);
  EXPECT_LE(StateOf(absl::StrJoin(members, ",")).size(), kTraceStateBytesMax);
}

}  // namespace
}  // namespace c3po
