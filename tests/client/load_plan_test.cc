// What a load is made of, without a server: lengths, arrivals, plans, percentiles, the book of outcomes.

#include "client/load/load_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "client/load/latency_values.h"
#include "client/load/length_distribution.h"
#include "client/load/load_report.h"

namespace c3po {
namespace {

using ::testing::HasSubstr;

LengthDistribution Lengths(absl::string_view text) {
  absl::StatusOr<LengthDistribution> parsed = LengthDistribution::Parse(text);
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  return parsed.ok() ? *parsed : LengthDistribution::Constant(1);
}

TEST(LengthDistribution, EvenLengthsReachBothEnds) {
  std::mt19937_64 random(5);
  std::map<uint32_t, int> seen;
  for (int i = 0; i < 40000; ++i) ++seen[Lengths("3-6").Draw(random)];
  ASSERT_EQ(seen.size(), 4);
  for (const auto& [length, count] : seen) EXPECT_NEAR(count, 10000, 500) << length;
  EXPECT_EQ(seen.begin()->first, 3);
  EXPECT_EQ(seen.rbegin()->first, 6);
  EXPECT_EQ(Lengths("17").Draw(random), 17);
}

TEST(LengthDistribution, LogNormalHasItsMedianAndItsCut) {
  std::mt19937_64 random(6);
  const LengthDistribution lengths = Lengths("lognormal:100:0.5:300");
  std::vector<uint32_t> drawn;
  for (int i = 0; i < 40001; ++i) drawn.push_back(lengths.Draw(random));
  std::sort(drawn.begin(), drawn.end());
  EXPECT_NEAR(drawn[20000], 100, 2);
  EXPECT_NEAR(std::log(drawn[33652] / 100.0), 0.5, 0.03);  // One sigma above: rank 0.8413.
  EXPECT_EQ(drawn.back(), 300);
  EXPECT_GE(drawn.front(), 1);
  EXPECT_EQ(lengths.max(), 300);
}

TEST(LengthDistribution, AMixtureHasItsWeights) {
  std::mt19937_64 random(7);
  const LengthDistribution lengths = Lengths("10@0.9,1000-2000@0.1");
  int longer = 0;
  for (int i = 0; i < 40000; ++i) longer += lengths.Draw(random) > 10 ? 1 : 0;
  EXPECT_NEAR(longer, 4000, 250);
  EXPECT_EQ(lengths.max(), 2000);
}

TEST(LengthDistribution, WhatIsWrongIsNamed) {
  for (const char* wrong :
       {"", "0", "5-", "9-3", "1-2-3", "lognormal:5:1", "lognormal:0:1:9", "5@0", "5@1@2", "5,,6", "x"}) {
    const absl::StatusOr<LengthDistribution> parsed = LengthDistribution::Parse(wrong);
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << wrong;
    EXPECT_THAT(std::string(parsed.status().message()), HasSubstr("lengths: ")) << wrong;
  }
}

TEST(PoissonArrivals, AreEqualBySeedAndRiseAlways) {
  PoissonArrivals one(20, 3), same(20, 3), other(20, 4);
  absl::Duration before = absl::ZeroDuration();
  int differing = 0;
  for (int i = 0; i < 1000; ++i) {
    const absl::Duration moment = one.Next();
    EXPECT_EQ(moment, same.Next());
    EXPECT_GE(moment, before);
    differing += moment != other.Next() ? 1 : 0;
    before = moment;
  }
  EXPECT_GT(differing, 990);
}

// Gaps are exponential: mean and deviation 1 / rate, and exp(-1) of them are longer than the mean. Counts per second
// are Poisson: their variance is their mean.
TEST(PoissonArrivals, GapsAreExponentialAndCountsArePoisson) {
  constexpr int kArrivals = 200000;
  constexpr double kRate = 40;
  for (const uint64_t seed : {1, 2, 12345}) {
    PoissonArrivals arrivals(kRate, seed);
    double before = 0, sum = 0, squares = 0;
    int longer = 0;
    std::map<int64_t, double> per_second;
    for (int i = 0; i < kArrivals; ++i) {
      const double moment = absl::ToDoubleSeconds(arrivals.Next());
      const double gap = moment - before;
      before = moment;
      sum += gap;
      squares += gap * gap;
      longer += gap > 1 / kRate ? 1 : 0;
      per_second[static_cast<int64_t>(moment)] += 1;
    }
    const double mean = sum / kArrivals;
    EXPECT_NEAR(mean * kRate, 1, 0.01) << seed;
    EXPECT_NEAR(std::sqrt(squares / kArrivals - mean * mean) * kRate, 1, 0.02) << seed;
    EXPECT_NEAR(static_cast<double>(longer) / kArrivals, std::exp(-1.0), 0.005) << seed;
    double count_squares = 0;
    const int seconds = static_cast<int>(before);  // whole ones
    for (int second = 0; second < seconds; ++second) count_squares += std::pow(per_second[second] - kRate, 2);
    EXPECT_NEAR(count_squares / seconds / kRate, 1, 0.1) << seed;
  }
}

LoadOptions MixedOptions() {
  LoadOptions options;
  options.concurrency = 2;
  options.calls_max = 10;
  options.prompt_tokens = Lengths("10-20");
  options.output_tokens = Lengths("30-40");
  options.cancelled_share = 0.25;
  options.slow_reader_share = 0.1;
  options.unoptimized_share = 0.5;
  return options;
}

TEST(PlanCall, IsAFunctionOfSeedAndIndexAlone) {
  const LoadOptions options = MixedOptions();
  LoadOptions reseeded = options;
  reseeded.seed = 2;
  int differing = 0;
  for (uint64_t index = 100; index-- > 0;) {
    const PlannedCall call = PlanCall(options, index), again = PlanCall(options, index);
    EXPECT_EQ(call.index, index);
    EXPECT_EQ(call.prompt_draw, again.prompt_draw);
    EXPECT_EQ(call.prompt_tokens, again.prompt_tokens);
    EXPECT_EQ(call.cancel_after, again.cancel_after);
    differing += call.prompt_draw != PlanCall(reseeded, index).prompt_draw ? 1 : 0;
  }
  EXPECT_EQ(differing, 100);
}

TEST(PlanCall, SharesAndLengthsAreThoseAskedFor) {
  const LoadOptions options = MixedOptions();
  constexpr int kCalls = 40000;
  int cancels = 0, slow = 0, unoptimized = 0;
  double prompt_tokens = 0, output_tokens = 0, cancel_after = 0;
  for (int index = 0; index < kCalls; ++index) {
    const PlannedCall call = PlanCall(options, index);
    cancels += call.behavior == Behavior::kCancels ? 1 : 0;
    slow += call.behavior == Behavior::kReadsSlowly ? 1 : 0;
    unoptimized += call.optimized ? 0 : 1;
    prompt_tokens += call.prompt_tokens;
    output_tokens += call.output_tokens;
    if (call.behavior == Behavior::kCancels) {
      EXPECT_LE(call.cancel_after, options.cancel_after_max);
      cancel_after += absl::ToDoubleSeconds(call.cancel_after);
    } else {
      EXPECT_EQ(call.cancel_after, absl::InfiniteDuration());
    }
  }
  EXPECT_NEAR(cancels, 0.25 * kCalls, 500);
  EXPECT_NEAR(slow, 0.1 * kCalls, 400);
  EXPECT_NEAR(unoptimized, 0.5 * kCalls, 600);
  EXPECT_NEAR(prompt_tokens / kCalls, 15, 0.1);
  EXPECT_NEAR(output_tokens / kCalls, 35, 0.1);
  EXPECT_NEAR(cancel_after / cancels, 0.5, 0.02);
}

TEST(LoadOptions, WhatIsWrongIsNamed) {
  EXPECT_TRUE(MixedOptions().Validate().ok());
  const auto fails = [](const char* named, auto change) {
    LoadOptions options = MixedOptions();
    change(options);
    const absl::Status status = options.Validate();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << named;
    EXPECT_THAT(std::string(status.message()), HasSubstr(named));
  };
  fails("concurrency, rate", [](LoadOptions& options) { options.concurrency = 0; });
  fails("concurrency, rate", [](LoadOptions& options) { options.rate_per_second = 1; });
  fails("concurrency: 20000", [](LoadOptions& options) { options.concurrency = 20000; });
  fails("duration, requests", [](LoadOptions& options) { options.calls_max.reset(); });
  fails("duration: ", [](LoadOptions& options) { options.duration = absl::ZeroDuration(); });
  fails("requests: ", [](LoadOptions& options) { options.calls_max = 0; });
  fails("warmup: ", [](LoadOptions& options) { options.warmup = absl::Seconds(-1); });
  fails("cancelled: 2", [](LoadOptions& options) { options.cancelled_share = 2; });
  fails("unoptimized: -1", [](LoadOptions& options) { options.unoptimized_share = -1; });
  fails("cancelled + slow-readers", [](LoadOptions& options) { options.slow_reader_share = 0.9; });
  fails("in-flight-max: 0", [](LoadOptions& options) { options.in_flight_max = 0; });
}

TEST(LatencyValues, PercentilesAreThoseOfTheSortedValues) {
  std::mt19937_64 random(11);
  for (const size_t count : {1, 2, 3, 7, 10, 100, 101, 1000, 4567}) {
    LatencyValues values;
    std::vector<double> sorted;
    for (size_t i = 0; i < count; ++i) {
      sorted.push_back(std::floor(DrawUniform(random) * 500) / 100);  // with ties
      values.Add(sorted.back());
    }
    std::sort(sorted.begin(), sorted.end());
    for (const int percent : {1, 50, 90, 95, 99, 100}) {
      // The least value that at least so many percent of the values do not exceed.
      size_t rank = 1;
      while (rank * 100 < percent * count) ++rank;
      EXPECT_EQ(values.Percentile(percent / 100.0), sorted[rank - 1]) << percent << " % of " << count;
    }
    const LatencySummary summary = values.Summarize();
    EXPECT_EQ(summary.count, count);
    EXPECT_EQ(summary.p50, values.Percentile(0.5));
    EXPECT_EQ(summary.p90, values.Percentile(0.9));
    EXPECT_EQ(summary.p95, values.Percentile(0.95));
    EXPECT_EQ(summary.p99, values.Percentile(0.99));
    EXPECT_EQ(summary.max, sorted.back());
  }
  EXPECT_EQ(LatencyValues().Percentile(0.5), 0);
  EXPECT_EQ(LatencyValues().Summarize().count, 0);
}

CallOutcome Outcome(double begin, double sent, double end, absl::Status status = absl::OkStatus(),
                    Behavior behavior = Behavior::kReads) {
  CallOutcome outcome;
  outcome.plan.behavior = behavior;
  outcome.begin = absl::Seconds(begin);
  outcome.sent = absl::Seconds(sent);
  outcome.end = absl::Seconds(end);
  outcome.status = std::move(status);
  if (outcome.status.ok()) {
    outcome.first_token = absl::Seconds(sent + 0.25);
    outcome.inter_token_seconds = {0.125, 0.125};
    outcome.served.emplace();
    outcome.served->prompt_tokens = 10;
    outcome.served->output_tokens = 3;
    outcome.served->queue_seconds = 0.0625;
  }
  return outcome;
}

TEST(LoadRecorder, CountsLatenciesFromThePlannedMoment) {
  LoadRecorder recorder(absl::ZeroDuration());
  recorder.Add(Outcome(1, 3, 4));
  const LoadReport report = recorder.Report();
  EXPECT_EQ(report.end_to_end.max, 3);
  EXPECT_EQ(report.time_to_first_token.max, 2.25);
  EXPECT_EQ(report.send_delay.max, 2);
  EXPECT_EQ(report.queue.max, 0.0625);
  EXPECT_EQ(report.inter_token.count, 2);
  EXPECT_EQ(report.optimization.count, 0);
  EXPECT_EQ(report.optimization_wait.count, 0);
  CallOutcome optimized = Outcome(5, 5, 6);
  optimized.served->optimization_seconds = 0.25;
  optimized.served->optimization_wait_seconds = 0.5;
  recorder.Add(optimized);
  EXPECT_EQ(recorder.Report().optimization.max, 0.25);
  EXPECT_EQ(recorder.Report().optimization_wait.max, 0.5);
}

TEST(LoadRecorder, KeepsWarmUpCancelsSlowReadersAndFailuresApart) {
  LoadRecorder recorder(absl::Seconds(10));
  recorder.Add(Outcome(9, 9, 50));  // Begun in the warm-up.
  recorder.Add(Outcome(10, 10, 11));
  recorder.Add(Outcome(11, 11, 13, absl::OkStatus(), Behavior::kReadsSlowly));
  recorder.Add(Outcome(12, 12, 14, absl::CancelledError("by us"), Behavior::kCancels));
  recorder.Add(Outcome(12, 12, 14, absl::CancelledError("by them")));
  CallOutcome refused = Outcome(13, 13, 15, absl::ResourceExhaustedError("full"));
  refused.retry_advice = true;
  recorder.Add(refused);
  recorder.Add(Outcome(13, 13, 14, absl::InternalError("a defect")));
  recorder.AddInterrupted();
  const LoadReport report = recorder.Report();
  EXPECT_EQ(report.calls, 6);
  EXPECT_EQ(report.warmup_calls, 1);
  EXPECT_EQ(report.interrupted_calls, 1);
  EXPECT_EQ(report.cancelling_calls, 1);
  EXPECT_EQ(report.slow_calls, 1);
  EXPECT_EQ(report.unexpected(), 2);  // The cancellation that nobody planned, and the defect.
  EXPECT_EQ(report.statuses.at(absl::StatusCode::kOk).calls, 2);
  EXPECT_EQ(report.statuses.at(absl::StatusCode::kCancelled).calls, 2);
  EXPECT_EQ(report.statuses.at(absl::StatusCode::kCancelled).as_planned, 1);
  EXPECT_EQ(report.statuses.at(absl::StatusCode::kResourceExhausted).with_retry_advice, 1);
  EXPECT_EQ(report.statuses.at(absl::StatusCode::kInternal).first_message, "a defect");
  EXPECT_EQ(report.end_to_end.count, 1);  // Neither slow nor ended badly.
  EXPECT_EQ(report.end_to_end.max, 1);
  EXPECT_EQ(report.elapsed, absl::Seconds(5));  // From 10 to 15.
  EXPECT_EQ(report.output_tokens, 6);
  EXPECT_EQ(report.output_tokens_per_second, 6.0 / 5);
  EXPECT_EQ(report.requests_per_second, 2.0 / 5);
}

TEST(LoadRecorder, ReportsAsJson) {
  LoadRecorder recorder(absl::ZeroDuration());
  recorder.Add(Outcome(0, 0, 2));
  recorder.Add(Outcome(0, 0, 1, absl::ResourceExhaustedError("full")));
  const auto json = nlohmann::json::parse(LoadReportJson(recorder.Report(), MixedOptions(), R"({"version": "1"})"));
  EXPECT_EQ(json["calls"], 2);
  EXPECT_EQ(json["unexpected"], 0);
  EXPECT_EQ(json["statuses"]["RESOURCE_EXHAUSTED"]["calls"], 1);
  EXPECT_EQ(json["latency_seconds"]["end_to_end"]["p99"], 2);
  EXPECT_EQ(json["throughput"]["requests_per_second"], 0.5);
  EXPECT_EQ(json["options"]["concurrency"], 2);
  EXPECT_EQ(json["options"]["requests"], 10);
  EXPECT_EQ(json["server"]["version"], "1");
}

}  // namespace
}  // namespace c3po
