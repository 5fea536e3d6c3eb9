#include "client/load/load_plan.h"

#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "index/base/number_text.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr int kCallersMax = 10000;
constexpr double kRateMax = 1e6;

// SplitMix64 (Steele, Lea and Flood 2014): seeds that differ in one bit give engines that have nothing in common.
uint64_t Mix(uint64_t value) {
  value += 0x9e3779b97f4a7c15;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
  value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
  return value ^ (value >> 31);
}

absl::Status CheckShare(absl::string_view name, double share) {
  if (share >= 0 && share <= 1) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, ": ", NumberText(share), " is not in [0, 1]"));
}

absl::Status CheckNotNegative(absl::string_view name, absl::Duration duration) {
  if (duration >= absl::ZeroDuration()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, ": is negative"));
}

}  // namespace

absl::Status LoadOptions::Validate() const {
  if ((concurrency > 0) == (rate_per_second > 0)) {
    return absl::InvalidArgumentError("concurrency, rate: exactly one of the two is needed");
  }
  if (concurrency < 0 || concurrency > kCallersMax) {
    return absl::InvalidArgumentError(absl::StrCat("concurrency: ", concurrency, " is not in [1, ", kCallersMax, "]"));
  }
  if (!(rate_per_second >= 0 && rate_per_second <= kRateMax)) {
    return absl::InvalidArgumentError(
        absl::StrCat("rate: ", NumberText(rate_per_second), " is not in (0, ", kRateMax, "]"));
  }
  if (in_flight_max < 1 || in_flight_max > kCallersMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("in-flight-max: ", in_flight_max, " is not in [1, ", kCallersMax, "]"));
  }
  if (duration == absl::InfiniteDuration() && !calls_max) {
    return absl::InvalidArgumentError("duration, requests: one of the two is needed, or the load has no end");
  }
  if (calls_max && *calls_max < 1) return absl::InvalidArgumentError("requests: must be at least 1");
  if (duration <= absl::ZeroDuration()) return absl::InvalidArgumentError("duration: must be above 0");
  if (warmup == absl::InfiniteDuration()) return absl::InvalidArgumentError("warmup: has no end");
  C3PO_RETURN_IF_ERROR(CheckNotNegative("warmup", warmup));
  C3PO_RETURN_IF_ERROR(CheckNotNegative("cancel-after", cancel_after_max));
  C3PO_RETURN_IF_ERROR(CheckNotNegative("slow-read-pause", slow_read_pause));
  if (refused_pause) C3PO_RETURN_IF_ERROR(CheckNotNegative("refused-pause", *refused_pause));
  C3PO_RETURN_IF_ERROR(CheckShare("cancelled", cancelled_share));
  C3PO_RETURN_IF_ERROR(CheckShare("slow-readers", slow_reader_share));
  C3PO_RETURN_IF_ERROR(CheckShare("unoptimized", unoptimized_share));
  return CheckShare("cancelled + slow-readers", cancelled_share + slow_reader_share);
}

PlannedCall PlanCall(const LoadOptions& options, uint64_t index) {
  std::mt19937_64 random(Mix(Mix(options.seed) + index));
  PlannedCall call;
  call.index = index;
  call.prompt_draw = random();
  call.prompt_tokens = options.prompt_tokens.Draw(random);
  call.output_tokens = options.output_tokens.Draw(random);
  call.optimized = DrawUniform(random) >= options.unoptimized_share;
  const double behavior = DrawUniform(random);
  const double moment = DrawUniform(random);
  if (behavior < options.cancelled_share) {
    call.behavior = Behavior::kCancels;
    call.cancel_after = moment * options.cancel_after_max;
  } else if (behavior < options.cancelled_share + options.slow_reader_share) {
    call.behavior = Behavior::kReadsSlowly;
  }
  return call;
}

PoissonArrivals::PoissonArrivals(double rate, uint64_t seed) : rate_(rate), random_(Mix(~seed)) {}

absl::Duration PoissonArrivals::Next() {
  seconds_ += -std::log1p(-DrawUniform(random_)) / rate_;
  return absl::Seconds(seconds_);
}

}  // namespace c3po
