#ifndef C3PO_CLIENT_LOAD_LOAD_PLAN_H_
#define C3PO_CLIENT_LOAD_LOAD_PLAN_H_

#include <cstdint>
#include <optional>
#include <random>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "c3po/v1/generation.pb.h"
#include "client/load/length_distribution.h"

namespace c3po {

// What load is put on a server. Shares are parts of all calls, in [0, 1].
struct LoadOptions {
  // Exactly one of the two is above 0.
  int concurrency = 0;         // Closed loop: so many callers, each asks again once it has its answer.
  double rate_per_second = 0;  // Open loop: Poisson arrivals, whatever the server does.

  absl::Duration warmup = absl::ZeroDuration();  // Calls planned to begin before are sent and not recorded.
  // The load ends with the first of these that is reached; at least one is finite. What runs then is awaited.
  absl::Duration duration = absl::InfiniteDuration();  // after the warm-up
  std::optional<uint64_t> calls_max;                   // recorded ones, at least 1

  int in_flight_max = 1024;  // Open loop: calls at once; later ones wait, and their wait counts as latency.
  uint64_t seed = 1;
  LengthDistribution prompt_tokens = LengthDistribution::Constant(64);  // of made prompts
  LengthDistribution output_tokens = LengthDistribution::Constant(64);  // max_tokens, where a prompt file has none

  double cancelled_share = 0;                          // Calls that are cancelled while they run.
  absl::Duration cancel_after_max = absl::Seconds(1);  // At a moment even in [0, this].
  double slow_reader_share = 0;                        // Calls that pause after each message of the stream.
  absl::Duration slow_read_pause = absl::Milliseconds(200);
  double unoptimized_share = 0;  // Calls with METHOD_NONE, whatever `optimization` says.

  absl::Duration call_timeout = absl::InfiniteDuration();
  // Closed loop: how long a caller that was refused (RESOURCE_EXHAUSTED, UNAVAILABLE) waits before its next call. Not
  // set: as long as the server asks for, kRefusedPause where it says nothing.
  std::optional<absl::Duration> refused_pause;

  v1::SamplingOptions sampling;          // without max_tokens
  v1::OptimizationOptions optimization;  // What is not set is the server's to choose.

  // InvalidArgument names the field.
  absl::Status Validate() const;
};

inline constexpr absl::Duration kRefusedPause = absl::Milliseconds(100);

enum class Behavior { kReads, kCancels, kReadsSlowly };

// One call, fixed before it is sent.
struct PlannedCall {
  uint64_t index = 0;
  Behavior behavior = Behavior::kReads;
  bool optimized = true;
  uint32_t prompt_tokens = 1;
  uint32_t output_tokens = 1;
  uint64_t prompt_draw = 0;  // Even over 64 bits: which prompt.
  absl::Duration cancel_after = absl::InfiniteDuration();
};

// Call `index` of the load: a function of the seed and the index alone, so that two runs with the same options send the
// same calls, whichever caller takes which. `options` are valid. Thread-safe.
PlannedCall PlanCall(const LoadOptions& options, uint64_t index);

// Arrival times of a Poisson process: sums of gaps -ln(1 - U) / rate. One thread; equal by seed.
class PoissonArrivals {
 public:
  // rate > 0, per second.
  PoissonArrivals(double rate, uint64_t seed);
  // Since the beginning of the load; each at or after the one before.
  absl::Duration Next();

 private:
  const double rate_;
  std::mt19937_64 random_;
  double seconds_ = 0;  // Kept as a number: rounding each gap to a clock tick would drift.
};

}  // namespace c3po

#endif  // C3PO_CLIENT_LOAD_LOAD_PLAN_H_
