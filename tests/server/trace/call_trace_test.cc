#include "server/trace/call_trace.h"

#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/steady_time.h"
#include "index/base/utf8.h"

namespace c3po {
namespace {

constexpr int64_t kUnix = 1'700'000'000'000'000'000;

class CallTraceTest : public testing::Test {
 protected:
  std::shared_ptr<CallTrace> Begin() {
    Span call;
    call.trace_id.fill(1);
    call.span_id.fill(2);
    call.parent_id.fill(3);
    call.flags = 0x301;
    call.trace_state = "a=1";
    call.name = "call";
    call.kind = Span::Kind::kServer;
    const auto next = [this] {
      SpanId id = {};
      id[7] = ++ids_;
      return id;
    };
    return std::make_shared<CallTrace>(std::move(call), begin_, kUnix, next,
                                       [this](std::vector<Span> spans) { delivered_.push_back(std::move(spans)); });
  }
  absl::Time At(double milliseconds) const { return begin_ + absl::Milliseconds(milliseconds); }
  static int64_t Unix(int milliseconds) { return kUnix + int64_t{milliseconds} * 1'000'000; }

  const absl::Time begin_ = absl::UnixEpoch() + absl::Hours(7);  // Of a steady clock: no time of day.
  uint8_t ids_ = 0;
  std::vector<std::vector<Span>> delivered_;
};

TEST_F(CallTraceTest, ItsSpansAreDeliveredTogetherAtTheEnd) {
  const auto trace = Begin();
  trace->AddStage("queue", At(0), At(2));
  trace->AddStage("prefill", At(2), At(7), {{"tokens", int64_t{5}}});
  trace->AddEvent("first", At(6));
  trace->Set("model", std::string("tiny"));
  EXPECT_TRUE(delivered_.empty());
  trace->End(At(9), true, "it broke");
  ASSERT_EQ(delivered_.size(), 1u);
  const std::vector<Span>& spans = delivered_[0];
  ASSERT_EQ(spans.size(), 3u);
  EXPECT_EQ(spans[0].begin_unix_nanoseconds, Unix(0));
  EXPECT_EQ(spans[0].end_unix_nanoseconds, Unix(9));
  EXPECT_TRUE(spans[0].failed);
  EXPECT_EQ(spans[0].failure, "it broke");
  EXPECT_EQ(std::get<std::string>(spans[0].attributes.at(0).value), "tiny");
  EXPECT_EQ(spans[0].flags, 0x301u);
  for (size_t i = 1; i < 3; ++i) {
    EXPECT_EQ(spans[i].trace_id, spans[0].trace_id);
    EXPECT_EQ(spans[i].parent_id, spans[0].span_id);
    EXPECT_EQ(spans[i].trace_state, "a=1");
    EXPECT_EQ(spans[i].flags, 0x101u);  // Their parent is of this process.
    EXPECT_EQ(spans[i].kind, Span::Kind::kInternal);
    EXPECT_FALSE(spans[i].failed);
  }
  EXPECT_NE(spans[1].span_id, spans[2].span_id);
  EXPECT_EQ(spans[2].begin_unix_nanoseconds, Unix(2));
  EXPECT_EQ(spans[2].end_unix_nanoseconds, Unix(7));
  ASSERT_EQ(spans[2].events.size(), 1u);
  EXPECT_EQ(spans[2].events[0].unix_nanoseconds, Unix(6));
}

TEST_F(CallTraceTest, WhatComesAfterTheEndChangesNothing) {
  const auto trace = Begin();
  trace->End(At(1), false, "ignored");
  trace->AddStage("late", At(1), At(2));
  trace->ExtendStage("late", At(1), At(2));
  trace->AddEvent("late", At(2));
  trace->Set("late", true);
  trace->End(At(5), true, "late");
  ASSERT_EQ(delivered_.size(), 1u);
  ASSERT_EQ(delivered_[0].size(), 1u);
  EXPECT_EQ(delivered_[0][0].end_unix_nanoseconds, Unix(1));
  EXPECT_FALSE(delivered_[0][0].failed);
  EXPECT_EQ(delivered_[0][0].failure, "");
  EXPECT_TRUE(delivered_[0][0].attributes.empty());
}

TEST_F(CallTraceTest, ACallThatNobodyEndedIsDeliveredAsAFailure) {
  auto trace = Begin();
  trace->AddStage("queue", At(0), At(4));
  trace.reset();
  ASSERT_EQ(delivered_.size(), 1u);
  EXPECT_TRUE(delivered_[0][0].failed);
  EXPECT_EQ(delivered_[0][0].failure, "the call was lost");
  EXPECT_EQ(delivered_[0][0].end_unix_nanoseconds, Unix(4));
}

TEST_F(CallTraceTest, WorkInSlicesIsOneStage) {
  const auto trace = Begin();
  EXPECT_EQ(trace->StagesEnd(), At(0));
  trace->ExtendStage("tokenize", At(1), At(2));
  EXPECT_TRUE(trace->HasStage("tokenize"));
  EXPECT_FALSE(trace->HasStage("call"));  // The call itself is none.
  trace->ExtendStage("tokenize", At(5), At(8));
  EXPECT_EQ(trace->StagesEnd(), At(8));
  trace->End(At(9), false, "");
  ASSERT_EQ(delivered_[0].size(), 2u);
  EXPECT_EQ(delivered_[0][1].begin_unix_nanoseconds, Unix(1));
  EXPECT_EQ(delivered_[0][1].end_unix_nanoseconds, Unix(8));
}

TEST_F(CallTraceTest, AValueIsReplacedAndNothingEndsBeforeItBegins) {
  const auto trace = Begin();
  trace->Set("key", int64_t{1});
  trace->Set("key", int64_t{2});
  trace->AddStage("backward", At(5), At(3));
  trace->End(At(-1), false, "");
  ASSERT_EQ(delivered_[0][0].attributes.size(), 1u);
  EXPECT_EQ(std::get<int64_t>(delivered_[0][0].attributes[0].value), 2);
  EXPECT_EQ(delivered_[0][1].end_unix_nanoseconds, Unix(5));
  EXPECT_EQ(delivered_[0][0].end_unix_nanoseconds, Unix(0));
}

TEST_F(CallTraceTest, ClientsCannotMakeItLargeNorLessThanUtf8) {
  const auto trace = Begin();
  std::vector<std::string> keys;
  for (size_t i = 0; i < 2 * CallTrace::kAttributesMax; ++i) keys.push_back(absl::StrCat("key", i));
  for (const std::string& key : keys) trace->Set(key, std::string(100'000, 'x'));
  trace->Set("key0", std::string("caf\xe9 \xff"));
  trace->Set("key1", std::string(2000, 'a') + "\xff");
  trace->Set("key2", std::vector<std::string>(1000, std::string(5000, 'y')));
  for (size_t i = 0; i < 2 * CallTrace::kSpansMax; ++i) trace->AddStage("stage", At(0), At(1));
  for (size_t i = 0; i < 1000; ++i) trace->AddEvent("event", At(1));
  trace->End(At(1), true, std::string(5000, 'z') + "\xff");
  const std::vector<Span>& spans = delivered_[0];
  EXPECT_EQ(spans.size(), CallTrace::kSpansMax + 1);
  EXPECT_EQ(spans[0].attributes.size(), CallTrace::kAttributesMax);
  EXPECT_EQ(std::get<std::string>(spans[0].attributes[0].value), "caf? ?");
  EXPECT_EQ(std::get<std::string>(spans[0].attributes[1].value).size(), CallTrace::kValueBytesMax);
  EXPECT_EQ(std::get<std::vector<std::string>>(spans[0].attributes[2].value).size(), CallTrace::kAttributesMax);
  EXPECT_EQ(std::get<std::string>(spans[0].attributes[9].value).size(), CallTrace::kValueBytesMax);
  EXPECT_EQ(spans[0].failure.size(), CallTrace::kValueBytesMax);
  EXPECT_TRUE(IsValidUtf8(spans[0].failure));
  EXPECT_LE(spans.back().events.size(), CallTrace::kAttributesMax);
}

TEST_F(CallTraceTest, ARequestOfACallHasASpanAndStagesOfItsOwn) {
  const auto trace = Begin();
  const auto request = trace->BeginRequest("request", At(10));
  request->AddStage("decode", At(11), At(12));
  request->End(At(13), false, "");
  trace->End(At(20), false, "");
  ASSERT_EQ(delivered_.size(), 2u);
  ASSERT_EQ(delivered_[0].size(), 2u);
  EXPECT_EQ(delivered_[0][0].name, "request");
  EXPECT_EQ(delivered_[0][0].parent_id, delivered_[1][0].span_id);
  EXPECT_EQ(delivered_[0][0].begin_unix_nanoseconds, Unix(10));
  EXPECT_EQ(delivered_[0][1].parent_id, delivered_[0][0].span_id);
  EXPECT_EQ(delivered_[0][1].begin_unix_nanoseconds, Unix(11));
  EXPECT_EQ(delivered_[0][1].trace_id, delivered_[1][0].trace_id);
}

TEST_F(CallTraceTest, MayBeToldByAnyThread) {
  const auto trace = Begin();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 10; ++i) {
        trace->AddStage("stage", At(i), At(i + 1));
        trace->Set("key", int64_t{i});
        trace->AddEvent("event", trace->StagesEnd());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  trace->End(At(99), false, "");
  EXPECT_EQ(delivered_[0].size(), 41u);
}

}  // namespace
}  // namespace c3po
