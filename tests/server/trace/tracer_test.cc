#include "server/trace/tracer.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <set>
#include <utility>

#include "index/base/steady_time.h"

namespace c3po {
namespace {

class TracerTest : public testing::Test {
 protected:
  Tracer Of(double ratio) {
    return Tracer(ratio, [this](std::vector<Span> spans) {
      for (Span& span : spans) spans_.push_back(std::move(span));
    });
  }
  std::vector<Span> spans_;
};

TraceContext Parent(uint8_t flags) {
  TraceContext parent;
  parent.trace_id = NewTraceId();
  parent.span_id = NewSpanId();
  parent.flags = flags;
  parent.state = "a=1";
  return parent;
}

TEST_F(TracerTest, ACallersDecisionIsKeptWhateverTheRatio) {
  for (const double ratio : {0.0, 0.5, 1.0}) {
    EXPECT_NE(Of(ratio).Begin(Parent(1), "call", SteadyNow()), nullptr) << ratio;
    EXPECT_EQ(Of(ratio).Begin(Parent(0), "call", SteadyNow()), nullptr) << ratio;
    EXPECT_EQ(Of(ratio).Begin(Parent(2), "call", SteadyNow()), nullptr) << ratio;
  }
}

TEST_F(TracerTest, TheSpanOfACallersTraceIsUnderTheCallers) {
  const TraceContext parent = Parent(3);
  Of(1).Begin(parent, "call", SteadyNow())->End(SteadyNow(), false, "");
  ASSERT_EQ(spans_.size(), 1u);
  EXPECT_EQ(spans_[0].trace_id, parent.trace_id);
  EXPECT_EQ(spans_[0].parent_id, parent.span_id);
  EXPECT_NE(spans_[0].span_id, parent.span_id);
  EXPECT_EQ(spans_[0].trace_state, "a=1");
  EXPECT_EQ(spans_[0].flags, 0x303u);
  EXPECT_EQ(spans_[0].kind, Span::Kind::kServer);
}

TEST_F(TracerTest, WithoutACallersTraceOneBeginsHere) {
  const Tracer tracer = Of(1);
  for (int i = 0; i < 2; ++i) tracer.Begin(std::nullopt, "call", SteadyNow())->End(SteadyNow(), false, "");
  ASSERT_EQ(spans_.size(), 2u);
  EXPECT_EQ(spans_[0].parent_id, SpanId());
  EXPECT_EQ(spans_[0].flags, 0x103u);
  EXPECT_NE(spans_[0].trace_id, spans_[1].trace_id);
}

TEST_F(TracerTest, TheRatioIsOfCallsWithoutATrace) {
  const std::pair<double, std::pair<int, int>> expected[] = {
      {0, {0, 0}}, {0.25, {400, 600}}, {0.5, {880, 1120}}, {1, {2000, 2000}}};
  for (const auto& [ratio, bounds] : expected) {
    const Tracer tracer = Of(ratio);
    int recorded = 0;
    for (int i = 0; i < 2000; ++i) recorded += tracer.Begin(std::nullopt, "call", SteadyNow()) != nullptr;
    EXPECT_GE(recorded, bounds.first) << ratio;  // Five standard deviations.
    EXPECT_LE(recorded, bounds.second) << ratio;
  }
}

// R >= (1 - ratio) 2^56, of the last 56 bits.
TEST(SampledByRatio, IsDecidedByTheLastSevenBytesOfTheTraceId) {
  const auto with = [](uint64_t random) {
    TraceId id;
    id.fill(0xff);
    for (size_t i = 15; i >= 9; --i) {
      id[i] = static_cast<uint8_t>(random);
      random >>= 8;
    }
    return id;
  };
  const uint64_t half = uint64_t{1} << 55, last = (uint64_t{1} << 56) - 1;
  EXPECT_TRUE(SampledByRatio(with(half), 0.5));
  EXPECT_FALSE(SampledByRatio(with(half - 1), 0.5));
  EXPECT_TRUE(SampledByRatio(with(half + half / 2), 0.25));
  EXPECT_FALSE(SampledByRatio(with(half + half / 2 - 1), 0.25));
  EXPECT_TRUE(SampledByRatio(with(0), 1));
  EXPECT_TRUE(SampledByRatio(with(last), 1e-9));
  EXPECT_FALSE(SampledByRatio(with(last), 0));
  for (int i = 0; i < 1000; ++i) {  // Who is in a smaller share is in each larger one.
    const TraceId id = NewTraceId();
    EXPECT_TRUE(!SampledByRatio(id, 0.1) || SampledByRatio(id, 0.3));
    EXPECT_EQ(SampledByRatio(id, 0.3), SampledByRatio(id, 0.3));
  }
}

TEST(NewTraceId, DoesNotRepeat) {
  std::set<TraceId> traces;
  std::set<SpanId> spans;
  for (int i = 0; i < 1000; ++i) {
    traces.insert(NewTraceId());
    spans.insert(NewSpanId());
  }
  EXPECT_EQ(traces.size(), 1000u);
  EXPECT_EQ(spans.size(), 1000u);
}

}  // namespace
}  // namespace c3po
