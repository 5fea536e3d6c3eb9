#include "client/load/load_report.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace c3po {
namespace {

enum class Fate { kWell, kPlannedCancel, kRefused, kUnexpected };

Fate FateOf(const CallOutcome& outcome) {
  switch (outcome.status.code()) {
    case absl::StatusCode::kOk:
      return Fate::kWell;
    case absl::StatusCode::kResourceExhausted:
      return Fate::kRefused;
    case absl::StatusCode::kCancelled:
      return outcome.plan.behavior == Behavior::kCancels ? Fate::kPlannedCancel : Fate::kUnexpected;
    default:
      return Fate::kUnexpected;
  }
}

nlohmann::json ToJson(const LatencySummary& summary) {
  return {{"count", summary.count}, {"mean", summary.mean}, {"p50", summary.p50}, {"p90", summary.p90},
          {"p95", summary.p95},     {"p99", summary.p99},   {"max", summary.max}};
}

nlohmann::json ToJson(const LoadOptions& options) {
  nlohmann::json json = {{"seed", options.seed},
                         {"warmup_seconds", absl::ToDoubleSeconds(options.warmup)},
                         {"cancelled_share", options.cancelled_share},
                         {"slow_reader_share", options.slow_reader_share},
                         {"unoptimized_share", options.unoptimized_share}};
  if (options.concurrency > 0) {
    json["concurrency"] = options.concurrency;
  } else {
    json["rate_per_second"] = options.rate_per_second;
  }
  if (options.duration < absl::InfiniteDuration()) json["duration_seconds"] = absl::ToDoubleSeconds(options.duration);
  if (options.calls_max) json["requests"] = *options.calls_max;
  return json;
}

}  // namespace

uint64_t LoadReport::unexpected() const {
  uint64_t count = 0;
  for (const auto& [code, status] : statuses) {
    if (code != absl::StatusCode::kResourceExhausted) count += status.calls - status.as_planned;
  }
  return count;
}

void LoadRecorder::Add(const CallOutcome& outcome) {
  absl::MutexLock lock(&mu_);
  const Fate fate = FateOf(outcome);
  ++glance_.ended;
  glance_.refused += fate == Fate::kRefused ? 1 : 0;
  glance_.unexpected += fate == Fate::kUnexpected ? 1 : 0;
  if (outcome.served) glance_.output_tokens += outcome.served->output_tokens;
  if (outcome.begin < warmup_) {
    ++counts_.warmup_calls;
    return;
  }
  ++counts_.calls;
  last_end_ = std::max(last_end_, outcome.end);
  counts_.cancelling_calls += outcome.plan.behavior == Behavior::kCancels ? 1 : 0;
  counts_.slow_calls += outcome.plan.behavior == Behavior::kReadsSlowly ? 1 : 0;
  StatusCount& status = counts_.statuses[outcome.status.code()];
  ++status.calls;
  status.as_planned += fate == Fate::kWell || fate == Fate::kPlannedCancel ? 1 : 0;
  status.with_retry_advice += outcome.retry_advice ? 1 : 0;
  if (status.first_message.empty()) status.first_message = std::string(outcome.status.message());
  send_delay_.Add(absl::ToDoubleSeconds(outcome.sent - outcome.begin));
  if (fate != Fate::kWell) return;
  if (outcome.served) {
    counts_.prompt_tokens += outcome.served->prompt_tokens;
    counts_.output_tokens += outcome.served->output_tokens;
  }
  if (outcome.plan.behavior != Behavior::kReadsSlowly) AddLatencies(outcome);
}

void LoadRecorder::AddLatencies(const CallOutcome& outcome) {
  end_to_end_.Add(absl::ToDoubleSeconds(outcome.end - outcome.begin));
  if (outcome.first_token) time_to_first_token_.Add(absl::ToDoubleSeconds(*outcome.first_token - outcome.begin));
  for (const double seconds : outcome.inter_token_seconds) inter_token_.Add(seconds);
  if (!outcome.served) return;
  queue_.Add(outcome.served->queue_seconds);
  prefill_.Add(outcome.served->prefill_seconds);
  if (outcome.served->optimization_seconds) optimization_.Add(*outcome.served->optimization_seconds);
  if (outcome.served->optimization_wait_seconds) optimization_wait_.Add(*outcome.served->optimization_wait_seconds);
}

void LoadRecorder::AddInterrupted() {
  absl::MutexLock lock(&mu_);
  ++counts_.interrupted_calls;
}

LoadReport LoadRecorder::Report() const {
  absl::MutexLock lock(&mu_);
  LoadReport report = counts_;
  report.elapsed = std::max(last_end_ - warmup_, absl::ZeroDuration());
  const double seconds = absl::ToDoubleSeconds(report.elapsed);
  if (seconds > 0) {
    const auto well = report.statuses.find(absl::StatusCode::kOk);
    if (well != report.statuses.end()) {
      report.requests_per_second = static_cast<double>(well->second.calls) / seconds;
    }
    report.prompt_tokens_per_second = static_cast<double>(report.prompt_tokens) / seconds;
    report.output_tokens_per_second = static_cast<double>(report.output_tokens) / seconds;
  }
  report.time_to_first_token = time_to_first_token_.Summarize();
  report.inter_token = inter_token_.Summarize();
  report.end_to_end = end_to_end_.Summarize();
  report.queue = queue_.Summarize();
  report.prefill = prefill_.Summarize();
  report.optimization = optimization_.Summarize();
  report.optimization_wait = optimization_wait_.Summarize();
  report.send_delay = send_delay_.Summarize();
  return report;
}

LoadRecorder::Glance LoadRecorder::glance() const {
  absl::MutexLock lock(&mu_);
  return glance_;
}

std::string LoadReportJson(const LoadReport& report, const LoadOptions& options, const std::string& server) {
  nlohmann::json statuses = nlohmann::json::object();
  for (const auto& [code, status] : report.statuses) {
    statuses[absl::StatusCodeToString(code)] = {{"calls", status.calls},
                                                {"as_planned", status.as_planned},
                                                {"with_retry_advice", status.with_retry_advice},
                                                {"first_message", status.first_message}};
  }
  nlohmann::json json = {{"options", ToJson(options)},
                         {"elapsed_seconds", absl::ToDoubleSeconds(report.elapsed)},
                         {"calls", report.calls},
                         {"warmup_calls", report.warmup_calls},
                         {"interrupted_calls", report.interrupted_calls},
                         {"cancelling_calls", report.cancelling_calls},
                         {"slow_calls", report.slow_calls},
                         {"in_flight_max", report.in_flight_max},
                         {"unexpected", report.unexpected()},
                         {"statuses", statuses},
                         {"prompt_tokens", report.prompt_tokens},
                         {"output_tokens", report.output_tokens},
                         {"throughput",
                          {{"requests_per_second", report.requests_per_second},
                           {"prompt_tokens_per_second", report.prompt_tokens_per_second},
                           {"output_tokens_per_second", report.output_tokens_per_second}}},
                         {"latency_seconds",
                          {{"time_to_first_token", ToJson(report.time_to_first_token)},
                           {"inter_token", ToJson(report.inter_token)},
                           {"end_to_end", ToJson(report.end_to_end)},
                           {"queue", ToJson(report.queue)},
                           {"prefill", ToJson(report.prefill)},
                           {"optimization", ToJson(report.optimization)},
                           {"optimization_wait", ToJson(report.optimization_wait)},
                           {"send_delay", ToJson(report.send_delay)}}}};
  if (!server.empty()) json["server"] = nlohmann::json::parse(server, nullptr, /*allow_exceptions=*/false);
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace c3po
