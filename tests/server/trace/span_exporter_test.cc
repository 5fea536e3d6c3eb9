#include "server/trace/span_exporter.h"

#include <gtest/gtest.h>

#include <condition_variable>
#include <functional>
#include <mutex>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "index/base/steady_time.h"
#include "server/metrics/logging.h"

namespace c3po {
namespace {

// What a collector does, and what it got. Outlives the exporter, which owns the sender.
struct Collector {
  std::mutex mutex;
  std::condition_variable changed;
  SendOutcome answer;  // to each attempt
  bool hangs = false;  // until Cancel
  bool cancelled = false;
  bool throws = false;
  int attempts = 0;
  std::vector<std::string> taken;  // names of spans, in order
  std::vector<size_t> batches;
  absl::Duration limit;

  void Set(const std::function<void()>& change) {
    const std::lock_guard<std::mutex> lock(mutex);
    change();
  }
  // False: it did not come to that within a minute.
  bool Await(const std::function<bool()>& holds) {
    std::unique_lock<std::mutex> lock(mutex);
    return changed.wait_for(lock, std::chrono::minutes(1), holds);
  }
};

class FakeSender final : public SpanSender {
 public:
  explicit FakeSender(Collector* collector) : collector_(*collector) {}
  SendOutcome Send(const std::vector<Span>& batch, absl::Duration limit) override {
    std::unique_lock<std::mutex> lock(collector_.mutex);
    ++collector_.attempts;
    collector_.limit = limit;
    collector_.changed.notify_all();
    if (collector_.throws) throw std::bad_alloc();
    if (collector_.hangs) {
      collector_.changed.wait(lock, [this] { return collector_.cancelled; });
      return {absl::CancelledError("cancelled"), /*retry=*/true};
    }
    if (collector_.answer.status.ok()) {
      collector_.batches.push_back(batch.size());
      for (const Span& span : batch) collector_.taken.push_back(span.name);
    }
    collector_.changed.notify_all();
    return collector_.answer;
  }
  void Cancel() override {
    const std::lock_guard<std::mutex> lock(collector_.mutex);
    collector_.cancelled = true;
    collector_.changed.notify_all();
  }

 private:
  Collector& collector_;
};

class SpanExporterTest : public testing::Test {
 protected:
  void SetUp() override { SetLogStream(&log_); }
  void TearDown() override { SetLogStream(nullptr); }

  // Sends at once.
  static ExportLimits Limits() {
    ExportLimits limits;
    limits.queued_spans_max = 20;
    limits.batch_spans = 5;
    limits.batch_wait_max = absl::Milliseconds(1);
    limits.first_pause = limits.pause_max = absl::Milliseconds(1);
    return limits;
  }
  std::unique_ptr<SpanExporter> Start(const ExportLimits& limits = Limits()) {
    return std::make_unique<SpanExporter>(std::make_unique<FakeSender>(&collector_), "http://here:4317", limits,
                                          &metrics_);
  }
  static std::vector<Span> Call(const std::string& name, size_t spans = 1) {
    std::vector<Span> call(spans);
    for (Span& span : call) span.name = name;
    return call;
  }
  int64_t Counted(const std::string& result) const {
    const std::string series = absl::StrCat("\nc3po_trace_spans_total{result=\"", result, "\"} ");
    const std::string text = metrics_.PrometheusText();
    const size_t at = text.find(series);
    EXPECT_NE(at, std::string::npos);
    double value = -1;
    EXPECT_TRUE(
        absl::SimpleAtod(text.substr(at + series.size(), text.find('\n', at + 1) - at - series.size()), &value));
    return static_cast<int64_t>(value);
  }
  // The lines of the log with this event.
  std::vector<nlohmann::json> Told(const std::string& event) const {
    std::vector<nlohmann::json> lines;
    std::istringstream text(log_.str());
    for (std::string line; std::getline(text, line);) {
      nlohmann::json read = nlohmann::json::parse(line);
      if (read.at("event") == event) lines.push_back(std::move(read));
    }
    return lines;
  }

  std::ostringstream log_;
  Metrics metrics_{"tiny", "0"};
  Collector collector_;
};

TEST_F(SpanExporterTest, WhatIsAddedArrivesInOrderAndIsCounted) {
  const auto exporter = Start();
  for (int i = 0; i < 12; ++i) exporter->Add(Call(absl::StrCat(i)));
  EXPECT_TRUE(collector_.Await([&] { return collector_.taken.size() == 12; }));
  exporter->Stop();
  for (size_t i = 0; i < 12; ++i) EXPECT_EQ(collector_.taken[i], absl::StrCat(i));
  for (const size_t batch : collector_.batches) EXPECT_LE(batch, 5u);
  EXPECT_EQ(Counted("exported"), 12);
  EXPECT_EQ(Counted("dropped"), 0);
  EXPECT_EQ(log_.str(), "");
}

TEST_F(SpanExporterTest, ABatchWaitsForItsTimeUnlessItIsFull) {
  ExportLimits limits = Limits();
  limits.batch_wait_max = absl::Hours(1);
  const auto exporter = Start(limits);
  exporter->Add(Call("a", 4));
  EXPECT_EQ(collector_.attempts, 0);
  exporter->Add(Call("b", 1));
  EXPECT_TRUE(collector_.Await([&] { return collector_.taken.size() == 5; }));
  EXPECT_EQ(collector_.batches, std::vector<size_t>{5});
}

TEST_F(SpanExporterTest, WhileTheCollectorIsAwaySpansWaitThenDropAndNobodyWaits) {
  collector_.answer = {absl::UnavailableError("connection refused"), /*retry=*/true};
  const auto exporter = Start();
  for (int i = 0; i < 1000; ++i) exporter->Add(Call("x", 4));
  EXPECT_TRUE(collector_.Await([&] { return collector_.attempts > 3; }));
  EXPECT_EQ(Counted("dropped"), 4000 - 20);
  EXPECT_EQ(Counted("exported"), 0);
  collector_.Set([&] { collector_.answer = SendOutcome(); });
  EXPECT_TRUE(collector_.Await([&] { return collector_.taken.size() == 20; }));
  exporter->Stop();
  EXPECT_EQ(Counted("exported"), 20);
  ASSERT_EQ(Told("traces_not_sent").size(), 1u) << log_.str();
  EXPECT_EQ(Told("traces_not_sent")[0].at("reason"), "connection refused");
  EXPECT_EQ(Told("traces_not_sent")[0].at("endpoint"), "http://here:4317");
  ASSERT_EQ(Told("traces_sent").size(), 1u);
  EXPECT_LE(Told("trace_spans_dropped").size(), 1u);
}

TEST_F(SpanExporterTest, WhatMayNotBeSentAgainIsDropped) {
  collector_.answer = {absl::InvalidArgumentError("no"), /*retry=*/false};
  const auto exporter = Start();
  exporter->Add(Call("x", 3));
  EXPECT_TRUE(collector_.Await([&] { return collector_.attempts == 1; }));
  collector_.Set([&] { collector_.answer = SendOutcome(); });
  exporter->Add(Call("y", 2));
  EXPECT_TRUE(collector_.Await([&] { return collector_.taken.size() == 2; }));
  exporter->Stop();
  EXPECT_EQ(collector_.taken, (std::vector<std::string>{"y", "y"}));
  EXPECT_EQ(Counted("dropped"), 3);
  EXPECT_EQ(Counted("exported"), 2);
}

TEST_F(SpanExporterTest, SpansThatTheCollectorRejectsAreDropped) {
  collector_.answer.rejected = 2;
  const auto exporter = Start();
  exporter->Add(Call("x", 3));
  EXPECT_TRUE(collector_.Await([&] { return collector_.taken.size() == 3; }));
  exporter->Stop();
  EXPECT_EQ(Counted("exported"), 1);
  EXPECT_EQ(Counted("dropped"), 2);
  ASSERT_EQ(Told("trace_spans_dropped").size(), 1u);
  EXPECT_EQ(Told("trace_spans_dropped")[0].at("spans"), 2);
}

TEST_F(SpanExporterTest, AnExceptionCostsItsBatch) {
  collector_.throws = true;
  const auto exporter = Start();
  exporter->Add(Call("x", 3));
  EXPECT_TRUE(collector_.Await([&] { return collector_.attempts == 1; }));
  collector_.Set([&] { collector_.throws = false; });
  exporter->Add(Call("y"));
  EXPECT_TRUE(collector_.Await([&] { return collector_.taken.size() == 1; }));
  exporter->Stop();
  EXPECT_EQ(Counted("dropped"), 3);
}

TEST_F(SpanExporterTest, StoppingSendsWhatWaits) {
  ExportLimits limits = Limits();
  limits.batch_wait_max = absl::Hours(1);
  const auto exporter = Start(limits);
  for (int i = 0; i < 4; ++i) exporter->Add(Call(absl::StrCat(i)));
  exporter->Stop();
  EXPECT_EQ(collector_.taken.size(), 4u);
  exporter->Add(Call("late"));
  EXPECT_EQ(collector_.taken.size(), 4u);
  EXPECT_EQ(Counted("dropped"), 1);
  exporter->Stop();  // Again: nothing.
}

TEST_F(SpanExporterTest, StoppingEndsAnAttemptThatHangs) {
  ExportLimits limits = Limits();
  limits.flush_max = absl::Milliseconds(50);
  collector_.hangs = true;
  const auto exporter = Start(limits);
  exporter->Add(Call("x", 7));
  EXPECT_TRUE(collector_.Await([&] { return collector_.attempts == 1; }));
  EXPECT_EQ(collector_.limit, limits.send_max);
  const absl::Time start = SteadyNow();
  exporter->Stop();
  EXPECT_GE(SteadyNow() - start, absl::Milliseconds(50));
  EXPECT_EQ(collector_.attempts, 1);
  EXPECT_EQ(Counted("dropped"), 7);
}

TEST_F(SpanExporterTest, StoppingTriesOnceWhereTheCollectorIsAway) {
  ExportLimits limits = Limits();
  limits.batch_wait_max = absl::Hours(1);
  limits.first_pause = limits.pause_max = absl::Hours(1);
  limits.flush_max = absl::Minutes(1);
  collector_.answer = {absl::UnavailableError("refused"), /*retry=*/true};
  const auto exporter = Start(limits);
  for (int i = 0; i < 3; ++i) exporter->Add(Call("x", 5));
  EXPECT_TRUE(collector_.Await([&] { return collector_.attempts == 1; }));
  exporter->Stop();
  EXPECT_LE(collector_.attempts, 2);
  EXPECT_LE(collector_.limit, limits.flush_max);
  EXPECT_EQ(Counted("dropped"), 15);
}

TEST_F(SpanExporterTest, CallsOfManyThreadsAllArrive) {
  ExportLimits limits = Limits();
  limits.queued_spans_max = 100'000;
  const auto exporter = Start(limits);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i) exporter->Add(Call("x", 2));
    });
  }
  for (std::thread& thread : threads) thread.join();
  exporter->Stop();
  EXPECT_EQ(collector_.taken.size(), 1600u);
  EXPECT_EQ(Counted("exported"), 1600);
}

}  // namespace
}  // namespace c3po
