#include <CLI/CLI.hpp>
#include <cstdio>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/cli/argument_check.h"
#include "client/cli/commands.h"
#include "client/cli/json_output.h"
#include "client/cli/request_flags.h"
#include "client/cli/sample_file.h"
#include "client/cli/terminal.h"
#include "client/load/load_generator.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr int kConcurrency = 8;
constexpr double kDurationSeconds = 30;
constexpr char kLengths[] = "; N, FROM-TO, lognormal:MEDIAN:SIGMA:LARGEST, or several by commas, each with @WEIGHT";

struct BenchFlags {
  std::optional<int> concurrency;
  std::optional<double> rate;
  std::optional<double> duration_seconds;
  std::optional<uint64_t> requests;
  double warmup_seconds = 2;
  double cancel_after_seconds = 1;
  double slow_read_pause_seconds = 0.2;
  std::optional<double> refused_pause_seconds;
  std::string prompts;
  std::string prompt_tokens = "32-128";
  std::string output_tokens = "16-64";
  LoadOptions load;
  bool json = false;
  bool strict = false;
};

absl::StatusOr<LengthDistribution> LengthsOf(const char* flag, const std::string& text) {
  absl::StatusOr<LengthDistribution> lengths = LengthDistribution::Parse(text);
  if (!lengths.ok()) return absl::InvalidArgumentError(absl::StrCat(flag, ": ", lengths.status().message()));
  return lengths;
}

absl::StatusOr<LoadOptions> OptionsFrom(Session& session, const BenchFlags& flags) {
  LoadOptions options = flags.load;
  if (flags.rate) {
    options.rate_per_second = *flags.rate;
  } else {
    options.concurrency = flags.concurrency.value_or(kConcurrency);
  }
  options.calls_max = flags.requests;
  if (flags.duration_seconds || !flags.requests) {
    options.duration = absl::Seconds(flags.duration_seconds.value_or(kDurationSeconds));
  }
  options.warmup = absl::Seconds(flags.warmup_seconds);
  options.cancel_after_max = absl::Seconds(flags.cancel_after_seconds);
  options.slow_read_pause = absl::Seconds(flags.slow_read_pause_seconds);
  if (flags.refused_pause_seconds) options.refused_pause = absl::Seconds(*flags.refused_pause_seconds);
  options.call_timeout = session.call_options().timeout;
  C3PO_ASSIGN_OR_RETURN(options.prompt_tokens, LengthsOf("--prompt-tokens", flags.prompt_tokens));
  C3PO_ASSIGN_OR_RETURN(options.output_tokens, LengthsOf("--output-tokens", flags.output_tokens));
  if (options.sampling.has_max_tokens()) {
    if (options.sampling.max_tokens() == 0) return absl::InvalidArgumentError("--max-tokens: must be at least 1");
    options.output_tokens = LengthDistribution::Constant(options.sampling.max_tokens());
  }
  // Answers to made prompts are to be as long as was asked for.
  if (flags.prompts.empty() && !options.sampling.has_ignore_eos()) options.sampling.set_ignore_eos(true);
  C3PO_RETURN_IF_ERROR(options.Validate());
  return options;
}

absl::StatusOr<PromptSource> PromptsFrom(Session& session, const BenchFlags& flags, const LoadOptions& options,
                                         const v1::GetServerInfoResponse& server) {
  if (!flags.prompts.empty()) return PromptSource::FromFile(flags.prompts);
  const uint32_t window = server.model().context_window();
  if (window > 0 && options.prompt_tokens.max() >= window) {
    return absl::InvalidArgumentError(absl::StrCat("--prompt-tokens: up to ", options.prompt_tokens.max(),
                                                   ", and the model's context window is ", window));
  }
  return PromptSource::FromWords(*session.client, options.seed, options.prompt_tokens.max(), session.call_options());
}

std::string Milliseconds(double seconds) { return absl::StrFormat("%.1f", seconds * 1e3); }

Table LatencyTable(const LoadReport& report, bool open_loop) {
  Table table("lrrrrrrr");
  table.AddRow({"milliseconds", "count", "mean", "p50", "p90", "p95", "p99", "max"});
  const auto add = [&table](const char* name, const LatencySummary& of) {
    if (of.count == 0) return;
    table.AddRow({name, absl::StrCat(of.count), Milliseconds(of.mean), Milliseconds(of.p50), Milliseconds(of.p90),
                  Milliseconds(of.p95), Milliseconds(of.p99), Milliseconds(of.max)});
  };
  add("time to first token", report.time_to_first_token);
  add("between tokens", report.inter_token);
  add("end to end", report.end_to_end);
  add("in the queue", report.queue);
  add("prefill", report.prefill);
  add("optimization", report.optimization);
  add("waiting for turns of it", report.optimization_wait);
  if (open_loop) add("sent late by", report.send_delay);
  return table;
}

Table StatusTable(const LoadReport& report) {
  Table table("lrl");
  table.AddRow({"status", "calls", ""});
  for (const auto& [code, status] : report.statuses) {
    std::vector<std::string> notes;
    if (code == absl::StatusCode::kCancelled) notes.push_back(absl::StrCat(status.as_planned, " as planned"));
    if (code == absl::StatusCode::kResourceExhausted || status.with_retry_advice > 0) {
      notes.push_back(absl::StrCat(status.with_retry_advice, " told when to come back"));
    }
    if (!status.first_message.empty() && status.as_planned < status.calls) {
      notes.push_back(Snippet(status.first_message, 80));
    }
    table.AddRow({absl::StatusCodeToString(code), absl::StrCat(status.calls), absl::StrJoin(notes, "; ")});
  }
  return table;
}

void PrintReport(const Terminal& terminal, const LoadReport& report, const LoadOptions& options) {
  const std::string loop = options.concurrency > 0
                               ? absl::StrCat("closed loop, ", options.concurrency, " callers")
                               : absl::StrFormat("open loop, %g calls/s planned", options.rate_per_second);
  absl::PrintF("%s%s\n%s\n  %.2f requests/s, %.1f prompt tokens/s, %.1f output tokens/s over %.1f s (%s)\n",
               StatusTable(report).Render(terminal), report.end_to_end.count > 0 ? "" : "  no call ended well",
               LatencyTable(report, options.concurrency == 0).Render(terminal), report.requests_per_second,
               report.prompt_tokens_per_second, report.output_tokens_per_second, absl::ToDoubleSeconds(report.elapsed),
               loop);
  absl::PrintF("  at most %d at once; %d calls to warm up, %d to be cancelled, %d read slowly, %d interrupted\n",
               report.in_flight_max, report.warmup_calls, report.cancelling_calls, report.slow_calls,
               report.interrupted_calls);
}

// What the exit code says.
absl::Status Outcome(Session& session, const LoadReport& report, bool strict) {
  if (session.cancellation.cancelled()) return absl::CancelledError("interrupted; the figures are of what had ended");
  if (strict && report.unexpected() > 0) {
    return absl::InternalError(absl::StrCat(report.unexpected(), " calls ended as they should not (--strict)"));
  }
  if (report.calls == 0 || report.statuses.count(absl::StatusCode::kOk) > 0) return absl::OkStatus();
  const auto& [code, status] = *report.statuses.begin();
  if (status.as_planned == status.calls) return absl::OkStatus();
  return absl::Status(code, absl::StrCat("no call ended well; the first: ", status.first_message));
}

absl::Status Bench(Session& session, const BenchFlags& flags) {
  C3PO_ASSIGN_OR_RETURN(const LoadOptions options, OptionsFrom(session, flags));
  C3PO_ASSIGN_OR_RETURN(const v1::GetServerInfoResponse server, session.client->GetServerInfo(session.call_options()));
  C3PO_ASSIGN_OR_RETURN(const PromptSource prompts, PromptsFrom(session, flags, options, server));
  ProgressLine line(session.terminal, "calls", options.calls_max.value_or(0));
  const auto show = [&](const LoadProgress& now) {
    const double seconds = absl::ToDoubleSeconds(now.elapsed);
    const std::string of = options.duration < absl::InfiniteDuration()
                               ? absl::StrFormat(" of %g", absl::ToDoubleSeconds(options.warmup + options.duration))
                               : "";
    line.Update(now.so_far.ended,
                absl::StrFormat("%.0f%s s%s, %d in flight, %.1f calls/s, %.1f tokens/s, %d refused, %d failed", seconds,
                                of, now.elapsed < options.warmup ? " (warm-up)" : "", now.in_flight,
                                static_cast<double>(now.so_far.ended) / seconds,
                                static_cast<double>(now.so_far.output_tokens) / seconds, now.so_far.refused,
                                now.so_far.unexpected));
  };
  C3PO_ASSIGN_OR_RETURN(const LoadReport report,
                        RunLoad(*session.client, prompts, options, session.cancellation, show));
  line.Clear();
  if (flags.json) {
    C3PO_ASSIGN_OR_RETURN(const std::string server_json, ToJsonLine(server));
    if (std::puts(LoadReportJson(report, options, server_json).c_str()) < 0 || std::fflush(stdout) != 0) {
      return absl::DataLossError("stdout cannot be written");
    }
  } else {
    PrintReport(session.terminal, report, options);
  }
  return Outcome(session, report, flags.strict);
}

void AddLoadFlags(CLI::App& command, BenchFlags* flags) {
  constexpr char kGroup[] = "Load";
  CLI::Option* concurrency =
      command.add_option("--concurrency", flags->concurrency, "Closed loop of so many callers (default 8)")
          ->group(kGroup);
  command.add_option("--rate", flags->rate, "Open loop: calls per second, Poisson arrivals")
      ->excludes(concurrency)
      ->group(kGroup);
  command
      .add_option("--duration", flags->duration_seconds, "Seconds after the warm-up (default 30, none with --requests)")
      ->group(kGroup);
  command.add_option("--requests", flags->requests, "End after so many calls")->group(kGroup);
  command.add_option("--warmup", flags->warmup_seconds, "Seconds of load before anything is recorded")
      ->check(NumberIn(0, std::numeric_limits<double>::infinity()))
      ->capture_default_str()
      ->group(kGroup);
  command.add_option("--load-seed", flags->load.seed, "Makes arrivals, lengths and prompts repeatable")
      ->capture_default_str()
      ->group(kGroup);
  command.add_option("--in-flight-max", flags->load.in_flight_max, "Open loop: calls at once; later ones wait")
      ->capture_default_str()
      ->group(kGroup);
  command
      .add_option("--refused-pause", flags->refused_pause_seconds,
                  "Seconds that a refused caller of the closed loop waits (default: as the server says, or 0.1)")
      ->group(kGroup);
  command.add_option("--cancelled", flags->load.cancelled_share, "Share of calls that are cancelled")->group(kGroup);
  command.add_option("--cancel-after", flags->cancel_after_seconds, "Within so many seconds, evenly")
      ->capture_default_str()
      ->group(kGroup);
  command.add_option("--slow-readers", flags->load.slow_reader_share, "Share of calls that are read slowly")
      ->group(kGroup);
  command.add_option("--slow-read-pause", flags->slow_read_pause_seconds, "Seconds that they wait after each message")
      ->capture_default_str()
      ->group(kGroup);
}

void AddPromptFlags(CLI::App& command, BenchFlags* flags) {
  constexpr char kGroup[] = "Prompts";
  CLI::Option* prompt_tokens =
      command.add_option("--prompt-tokens", flags->prompt_tokens, absl::StrCat("Tokens of made prompts", kLengths))
          ->capture_default_str()
          ->group(kGroup);
  command
      .add_option("--prompts", flags->prompts,
                  "JSONL of {\"prompt\", optional \"max_tokens\"} to ask instead of made prompts")
      ->check(CLI::ExistingFile)
      ->excludes(prompt_tokens)
      ->group(kGroup);
  command
      .add_option(
          "--output-tokens", flags->output_tokens,
          "Tokens of answers, likewise; --max-tokens N: all the same. Made prompts go on after the end of sequence")
      ->capture_default_str()
      ->group(kGroup);
  command.add_option("--unoptimized", flags->load.unoptimized_share, "Share of calls with --method none")
      ->group(kGroup);
}

}  // namespace

void AddBenchCommand(CLI::App& app, Session* session) {
  CLI::App* command = app.add_subcommand(
      "bench", "Puts load on the server; latencies by percentile, throughput, statuses. A call is tried once");
  const auto flags = std::make_shared<BenchFlags>();
  AddLoadFlags(*command, flags.get());
  AddPromptFlags(*command, flags.get());
  command->add_flag("--json", flags->json, "Print the figures as one line of JSON");
  command->add_flag("--strict", flags->strict,
                    "Fail when a call ended neither well, nor refused (RESOURCE_EXHAUSTED), nor cancelled as planned");
  AddOptimizationFlags(*command, &flags->load.optimization);
  AddSamplingFlags(*command, &flags->load.sampling);
  command->callback(
      [session, flags] { session->command = [flags](Session& chosen) { return Bench(chosen, *flags); }; });
}

}  // namespace c3po
