#include "client/load/load_generator.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <deque>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "client/load/delayed_cancels.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr absl::Duration kProgressInterval = absl::Milliseconds(100);

// What the messages of one stream tell, and when they came.
class StreamTrace {
 public:
  void See(const v1::GenerateResponse& event, absl::Duration now, CallOutcome* outcome) {
    if (event.has_delta() && event.delta().token_ids_size() > 0) {
      const int tokens = event.delta().token_ids_size();
      if (!outcome->first_token) {
        outcome->first_token = now;
      } else {
        const double seconds = absl::ToDoubleSeconds(now - last_token_) / tokens;
        outcome->inter_token_seconds.insert(outcome->inter_token_seconds.end(), tokens, seconds);
      }
      last_token_ = now;
    } else if (event.has_optimization()) {
      const v1::GateDecision gate = event.optimization().gate();
      applied_ = gate == v1::GATE_DECISION_APPLIED || event.optimization().losses_size() > 0;
    } else if (event.has_summary()) {
      const v1::GenerationSummary& summary = event.summary();
      CallOutcome::Served served;
      served.prompt_tokens = summary.usage().prompt_tokens();
      served.output_tokens = summary.usage().completion_tokens();
      served.queue_seconds = summary.timings().queue_seconds();
      served.prefill_seconds = summary.timings().prefill_seconds();
      if (applied_) {
        served.optimization_seconds = summary.timings().optimization_seconds();
        served.optimization_wait_seconds = summary.timings().optimization_wait_seconds();
      }
      outcome->served = served;
    }
  }

 private:
  absl::Duration last_token_;
  bool applied_ = false;
};

class LoadRun {
 public:
  LoadRun(Client& client, const PromptSource& prompts, const LoadOptions& options, Cancellation& interrupt)
      : client_(client),
        prompts_(prompts),
        options_(options),
        interrupt_(interrupt),
        end_(options.warmup + options.duration),
        recorder_(options.warmup),
        cancels_(interrupt) {}

  LoadReport Run(absl::FunctionRef<void(const LoadProgress&)> on_progress) {
    if (options_.concurrency > 0) {
      for (int i = 0; i < options_.concurrency; ++i) threads_.emplace_back([this] { AskAgainAndAgain(); });
      while (!AllEndedWithin(kProgressInterval)) on_progress(Progress());
    } else {
      SendArrivals(on_progress);
      while (!AllEndedWithin(kProgressInterval)) on_progress(Progress());
    }
    for (std::thread& thread : threads_) thread.join();
    LoadReport report = recorder_.Report();
    absl::MutexLock lock(&mu_);
    report.in_flight_max = in_flight_max_;
    return report;
  }

 private:
  struct Arrival {
    PlannedCall plan;
    absl::Duration moment;
  };

  absl::Duration Now() const { return absl::FromChrono(std::chrono::steady_clock::now() - start_); }

  LoadProgress Progress() {
    LoadProgress progress;
    progress.elapsed = Now();
    progress.so_far = recorder_.glance();
    absl::MutexLock lock(&mu_);
    progress.in_flight = in_flight_;
    return progress;
  }

  bool AllEndedWithin(absl::Duration duration) {
    absl::MutexLock lock(&mu_);
    return mu_.AwaitWithTimeout(absl::Condition(
                                    +[](LoadRun* run) ABSL_EXCLUSIVE_LOCKS_REQUIRED(run->mu_) {
                                      return run->ended_threads_ == run->threads_.size();
                                    },
                                    this),
                                duration);
  }

  void CountEndedThread() {
    absl::MutexLock lock(&mu_);
    ++ended_threads_;
  }

  // Whether a call that begins at `moment` is still part of the load, and its index.
  std::optional<uint64_t> TakeIndex(absl::Duration moment) {
    absl::MutexLock lock(&mu_);
    if (moment >= end_ || interrupt_.cancelled()) return std::nullopt;
    if (moment >= options_.warmup) {
      if (options_.calls_max && recorded_begun_ >= *options_.calls_max) return std::nullopt;
      ++recorded_begun_;
    }
    return next_index_++;
  }

  // One caller of the closed loop.
  void AskAgainAndAgain() {
    while (true) {
      const absl::Duration begin = Now();
      const std::optional<uint64_t> index = TakeIndex(begin);
      if (!index) break;
      const absl::Duration pause = Ask(PlanCall(options_, *index), begin);
      if (pause > absl::ZeroDuration())
        interrupt_.WaitFor(std::min(pause, std::max(end_ - Now(), absl::ZeroDuration())));
    }
    CountEndedThread();
  }

  // The open loop: hands each arrival, at its moment, to a thread that has nothing to do, or to a new one.
  void SendArrivals(absl::FunctionRef<void(const LoadProgress&)> on_progress) {
    PoissonArrivals arrivals(options_.rate_per_second, options_.seed);
    while (true) {
      const absl::Duration moment = arrivals.Next();
      const std::optional<uint64_t> index = TakeIndex(moment);
      if (!index) break;
      for (absl::Duration left = moment - Now(); left > absl::ZeroDuration(); left = moment - Now()) {
        if (interrupt_.WaitFor(std::min(left, kProgressInterval))) break;
        on_progress(Progress());
      }
      if (interrupt_.cancelled()) break;
      absl::MutexLock lock(&mu_);
      arrived_.push_back({PlanCall(options_, *index), moment});
      if (idle_ < arrived_.size() && threads_.size() < static_cast<size_t>(options_.in_flight_max)) {
        threads_.emplace_back([this] { TakeArrivals(); });
      }
    }
    absl::MutexLock lock(&mu_);
    no_more_arrivals_ = true;
  }

  void TakeArrivals() {
    while (true) {
      Arrival arrival;
      {
        absl::MutexLock lock(&mu_);
        ++idle_;
        mu_.Await(absl::Condition(
            +[](LoadRun* run)
                 ABSL_EXCLUSIVE_LOCKS_REQUIRED(run->mu_) { return !run->arrived_.empty() || run->no_more_arrivals_; },
            this));
        --idle_;
        if (arrived_.empty()) break;
        arrival = std::move(arrived_.front());
        arrived_.pop_front();
      }
      Ask(arrival.plan, arrival.moment);
    }
    CountEndedThread();
  }

  // Makes the call and records it. The pause that a caller should make after it.
  absl::Duration Ask(const PlannedCall& plan, absl::Duration begin) {
    v1::GenerateRequest request;
    *request.mutable_sampling() = options_.sampling;
    *request.mutable_optimization() = options_.optimization;
    if (!plan.optimized) request.mutable_optimization()->set_method(v1::METHOD_NONE);
    prompts_.Fill(plan, &request);

    Cancellation own;
    std::optional<DelayedCancels::Entry> entry;
    ServerAdvice advice;
    CallOptions call;
    call.timeout = options_.call_timeout;
    call.attempts_max = 1;
    call.advice = &advice;
    call.cancellation = &interrupt_;
    if (plan.behavior == Behavior::kCancels) {
      entry.emplace(cancels_, plan.cancel_after, own);
      call.cancellation = &own;
    }
    CallOutcome outcome;
    outcome.plan = plan;
    outcome.begin = begin;
    outcome.sent = std::max(Now(), begin);
    CountInFlight(1);
    StreamTrace trace;
    outcome.status = client_.Generate(
        request,
        [&](const v1::GenerateResponse& event) {
          trace.See(event, Now(), &outcome);
          if (plan.behavior == Behavior::kReadsSlowly) interrupt_.WaitFor(options_.slow_read_pause);
          return true;
        },
        call);
    outcome.end = Now();
    CountInFlight(-1);
    entry.reset();
    if (interrupt_.cancelled() && outcome.status.code() == absl::StatusCode::kCancelled) {
      recorder_.AddInterrupted();
      return absl::ZeroDuration();
    }
    outcome.retry_advice = advice.pushback.has_value() || advice.retry_delay.has_value();
    recorder_.Add(outcome);
    return PauseAfter(outcome.status, advice);
  }

  absl::Duration PauseAfter(const absl::Status& status, const ServerAdvice& advice) const {
    if (status.code() != absl::StatusCode::kResourceExhausted && status.code() != absl::StatusCode::kUnavailable) {
      return absl::ZeroDuration();
    }
    if (options_.refused_pause) return *options_.refused_pause;
    if (advice.pushback) return *advice.pushback;
    return advice.retry_delay.value_or(kRefusedPause);
  }

  void CountInFlight(int change) {
    absl::MutexLock lock(&mu_);
    in_flight_ += change;
    in_flight_max_ = std::max(in_flight_max_, in_flight_);
  }

  Client& client_;
  const PromptSource& prompts_;
  const LoadOptions& options_;
  Cancellation& interrupt_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  const absl::Duration end_;
  LoadRecorder recorder_;
  DelayedCancels cancels_;
  absl::Mutex mu_;
  uint64_t next_index_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t recorded_begun_ ABSL_GUARDED_BY(mu_) = 0;
  int in_flight_ ABSL_GUARDED_BY(mu_) = 0;
  int in_flight_max_ ABSL_GUARDED_BY(mu_) = 0;
  std::deque<Arrival> arrived_ ABSL_GUARDED_BY(mu_);
  size_t idle_ ABSL_GUARDED_BY(mu_) = 0;
  bool no_more_arrivals_ ABSL_GUARDED_BY(mu_) = false;
  size_t ended_threads_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<std::thread> threads_;  // Of the thread that runs the load; it alone makes them.
};

}  // namespace

absl::StatusOr<LoadReport> RunLoad(Client& client, const PromptSource& prompts, const LoadOptions& options,
                                   Cancellation& interrupt, absl::FunctionRef<void(const LoadProgress&)> on_progress) {
  C3PO_RETURN_IF_ERROR(options.Validate());
  LoadRun run(client, prompts, options, interrupt);
  return run.Run(on_progress);
}

}  // namespace c3po
