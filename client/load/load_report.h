#ifndef C3PO_CLIENT_LOAD_LOAD_REPORT_H_
#define C3PO_CLIENT_LOAD_LOAD_REPORT_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "client/load/latency_values.h"
#include "client/load/load_plan.h"

namespace c3po {

// One call that has ended. Moments since the beginning of the load, on a clock that only runs forward.
struct CallOutcome {
  PlannedCall plan;
  absl::Status status;
  bool retry_advice = false;  // A refusal told when to come back: RetryInfo or grpc-retry-pushback-ms.
  absl::Duration begin;       // Open loop: when it was to arrive. Closed loop: when it was sent.
  absl::Duration sent;        // Never before `begin`.
  absl::Duration end;
  std::optional<absl::Duration> first_token;
  std::vector<double> inter_token_seconds;
  // As the server's last message tells it; not set when that did not come.
  struct Served {
    uint32_t prompt_tokens = 0;
    uint32_t output_tokens = 0;
    double queue_seconds = 0;
    double prefill_seconds = 0;
    // Of calls whose pathway was optimized: its own work, and the wait for its turns while others had theirs.
    std::optional<double> optimization_seconds, optimization_wait_seconds;
  };
  std::optional<Served> served;
};

struct StatusCount {
  uint64_t calls = 0;
  uint64_t as_planned = 0;         // OK; CANCELLED of calls that were to be cancelled
  uint64_t with_retry_advice = 0;  // see CallOutcome
  std::string first_message;
};

// What a load came to. All but `warmup_calls` and `interrupted_calls` is of the recorded calls.
struct LoadReport {
  absl::Duration elapsed;  // From the end of the warm-up to the end of the last recorded call.
  uint64_t calls = 0;
  uint64_t warmup_calls = 0;       // ended well or not
  uint64_t interrupted_calls = 0;  // ended by Ctrl-C
  uint64_t cancelling_calls = 0;   // were to be cancelled; some had ended before
  uint64_t slow_calls = 0;         // read slowly
  int in_flight_max = 0;           // most at once, warm-up included
  std::map<absl::StatusCode, StatusCount> statuses;

  // Tokens of calls that ended well, whoever read them.
  uint64_t prompt_tokens = 0;
  uint64_t output_tokens = 0;
  double requests_per_second = 0;  // that ended well
  double prompt_tokens_per_second = 0;
  double output_tokens_per_second = 0;

  // Of calls that ended well and were read at once. What begins before a call is sent counts from CallOutcome::begin,
  // so that a stalled server is not spared what it kept from being sent ("coordinated omission").
  LatencySummary time_to_first_token;
  LatencySummary inter_token;  // between messages of the stream, divided by the tokens that they bring
  LatencySummary end_to_end;
  LatencySummary queue;  // the server's figures
  LatencySummary prefill;
  LatencySummary optimization;       // only calls whose pathway was optimized
  LatencySummary optimization_wait;  // likewise; for turns of it
  LatencySummary send_delay;         // how much later than planned this client sent: its own trouble, not the server's

  // Calls that ended neither well, nor refused (RESOURCE_EXHAUSTED), nor by their planned cancellation.
  uint64_t unexpected() const;
};

// Gathers outcomes. Thread-safe.
class LoadRecorder {
 public:
  // Calls that begin before `warmup` are counted, no more.
  explicit LoadRecorder(absl::Duration warmup) : warmup_(warmup) {}

  void Add(const CallOutcome& outcome);
  void AddInterrupted();
  // Any number of times; what is running is not in it.
  LoadReport Report() const;

  // For a line of progress: calls, refused calls and other failures so far, tokens read, all of warm-up too.
  struct Glance {
    uint64_t ended = 0, refused = 0, unexpected = 0;
    uint64_t output_tokens = 0;
  };
  Glance glance() const;

 private:
  void AddLatencies(const CallOutcome& outcome) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const absl::Duration warmup_;
  mutable absl::Mutex mu_;
  Glance glance_ ABSL_GUARDED_BY(mu_);
  LoadReport counts_ ABSL_GUARDED_BY(mu_);  // without rates and summaries
  absl::Duration last_end_ ABSL_GUARDED_BY(mu_);
  LatencyValues time_to_first_token_ ABSL_GUARDED_BY(mu_);
  LatencyValues inter_token_ ABSL_GUARDED_BY(mu_);
  LatencyValues end_to_end_ ABSL_GUARDED_BY(mu_);
  LatencyValues queue_ ABSL_GUARDED_BY(mu_);
  LatencyValues prefill_ ABSL_GUARDED_BY(mu_);
  LatencyValues optimization_wait_ ABSL_GUARDED_BY(mu_);
  LatencyValues optimization_ ABSL_GUARDED_BY(mu_);
  LatencyValues send_delay_ ABSL_GUARDED_BY(mu_);
};

// The report as one line of JSON: {"calls", "statuses": {"OK": {"calls", ...}}, "latency_seconds":
// {"time_to_first_token":
// {"count", "mean", "p50", ...}}, ...}, with the options under "options" and `server` (a JSON document, or empty) under
// "server".
std::string LoadReportJson(const LoadReport& report, const LoadOptions& options, const std::string& server);

}  // namespace c3po

#endif  // C3PO_CLIENT_LOAD_LOAD_REPORT_H_
