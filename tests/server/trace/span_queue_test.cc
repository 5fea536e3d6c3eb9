#include "server/trace/span_queue.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>

namespace c3po {
namespace {

class SpanQueueTest : public testing::Test {
 protected:
  static ExportLimits Limits() {
    ExportLimits limits;
    limits.queued_spans_max = 10;
    limits.batch_spans = 4;
    limits.batch_wait_max = absl::Seconds(2);
    limits.first_pause = absl::Seconds(1);
    limits.pause_max = absl::Seconds(5);
    return limits;
  }
  // A call of so many spans, with names of the call's letter.
  static std::vector<Span> Call(const std::string& name, size_t spans) {
    std::vector<Span> call(spans);
    for (Span& span : call) span.name = name;
    return call;
  }
  static std::string Names(const std::vector<Span>& batch) {
    std::string names;
    for (const Span& span : batch) names += span.name;
    return names;
  }

  const absl::Time now_ = absl::UnixEpoch() + absl::Hours(1);
  SpanQueue queue_{Limits()};
};

TEST_F(SpanQueueTest, NothingIsDueWhereNothingWaits) {
  EXPECT_EQ(queue_.Due(), absl::InfiniteFuture());
  EXPECT_TRUE(queue_.Take().empty());
}

TEST_F(SpanQueueTest, IsDueOnceTheFirstHasWaitedItsTime) {
  EXPECT_TRUE(queue_.Add(Call("a", 1), now_));
  EXPECT_TRUE(queue_.Add(Call("b", 1), now_ + absl::Seconds(1)));
  EXPECT_EQ(queue_.Due(), now_ + absl::Seconds(2));
  EXPECT_EQ(Names(queue_.Take()), "ab");
  EXPECT_EQ(queue_.Due(), absl::InfiniteFuture());
}

TEST_F(SpanQueueTest, IsDueAtOnceWhereABatchIsFull) {
  queue_.Add(Call("a", 3), now_);
  EXPECT_EQ(queue_.Due(), now_ + absl::Seconds(2));
  queue_.Add(Call("b", 3), now_);
  EXPECT_EQ(queue_.Due(), absl::InfinitePast());
}

TEST_F(SpanQueueTest, ACallsSpansGoTogether) {
  queue_.Add(Call("a", 3), now_);
  queue_.Add(Call("b", 3), now_);
  queue_.Add(Call("c", 1), now_ + absl::Seconds(1));
  const std::vector<Span> batch = queue_.Take();
  EXPECT_EQ(Names(batch), "aaabbb");
  EXPECT_EQ(queue_.Due(), now_ + absl::Seconds(3));  // What is left waits from its own arrival on.
  queue_.Finished(batch.size());
  EXPECT_EQ(queue_.spans(), 1u);
  EXPECT_EQ(Names(queue_.Take()), "c");
}

TEST_F(SpanQueueTest, AFullQueueDropsWholeCallsAndWhatIsBeingSentCounts) {
  EXPECT_TRUE(queue_.Add(Call("a", 6), now_));
  EXPECT_FALSE(queue_.Add(Call("b", 5), now_));
  EXPECT_TRUE(queue_.Add(Call("c", 4), now_));
  EXPECT_FALSE(queue_.Add(Call("d", 1), now_));
  const std::vector<Span> batch = queue_.Take();
  EXPECT_EQ(Names(batch), "aaaaaa");
  EXPECT_FALSE(queue_.Add(Call("d", 1), now_));
  queue_.Finished(batch.size());
  EXPECT_TRUE(queue_.Add(Call("d", 6), now_));
  EXPECT_EQ(Names(queue_.Take()), "cccc");
}

TEST_F(SpanQueueTest, ABatchThatFailedIsTriedAgainFirstWithLongerAndLongerPauses) {
  queue_.Add(Call("a", 2), now_);
  std::vector<Span> batch = queue_.Take();
  for (const int seconds : {1, 2, 4, 5, 5}) {
    queue_.Retry(std::move(batch), now_, absl::ZeroDuration(), 1);
    EXPECT_EQ(queue_.Due(), now_ + absl::Seconds(seconds));
    queue_.Add(Call("b", 1), now_);
    EXPECT_EQ(queue_.Due(), now_ + absl::Seconds(seconds)) << "others do not make it sooner";
    batch = queue_.Take();
    EXPECT_EQ(Names(batch).substr(0, 2), "aa");
  }
  queue_.Finished(batch.size());
  queue_.Add(Call("z", 1), now_);
  batch = queue_.Take();
  queue_.Retry(std::move(batch), now_, absl::ZeroDuration(), 1);
  EXPECT_EQ(queue_.Due(), now_ + absl::Seconds(1));  // After a success the pauses begin anew.
}

TEST_F(SpanQueueTest, APauseIsTheReceiversWishOrJittered) {
  queue_.Add(Call("a", 1), now_);
  queue_.Retry(queue_.Take(), now_, absl::Seconds(3), 1);
  EXPECT_EQ(queue_.Due(), now_ + absl::Seconds(3));
  queue_.Retry(queue_.Take(), now_, absl::Hours(3), 1);
  EXPECT_EQ(queue_.Due(), now_ + absl::Seconds(5));
  queue_.Finished(queue_.Take().size());
  queue_.Add(Call("b", 1), now_);
  queue_.Retry(queue_.Take(), now_, absl::ZeroDuration(), 0.5);
  EXPECT_EQ(queue_.Due(), now_ + absl::Milliseconds(500));
}

TEST_F(SpanQueueTest, ManyCallsOfAnySizeAreTakenInOrderAndNoneIsLost) {
  ExportLimits limits = Limits();
  limits.queued_spans_max = 1000;
  SpanQueue queue(limits);
  std::string added, taken;
  for (int i = 0; i < 300; ++i) {
    const std::string name(1, static_cast<char>('a' + i % 26));
    const auto spans = static_cast<size_t>(i * 7 % 5 + 1);
    if (queue.Add(Call(name, spans), now_)) added += std::string(spans, name[0]);
    if (i % 3 == 0) {
      std::vector<Span> batch = queue.Take();
      if (i % 2 == 0) {
        queue.Retry(std::move(batch), now_, absl::ZeroDuration(), 1);
        batch = queue.Take();
      }
      taken += Names(batch);
      queue.Finished(batch.size());
    }
  }
  while (queue.spans() > 0) {
    const std::vector<Span> batch = queue.Take();
    ASSERT_FALSE(batch.empty());
    taken += Names(batch);
    queue.Finished(batch.size());
  }
  EXPECT_EQ(taken, added);
}

}  // namespace
}  // namespace c3po
