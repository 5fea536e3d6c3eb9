// Metrics on prometheus-cpp's registry and text serializer. Long because every series is declared, set and read by the
// only file that knows prometheus types. The library's own HTTP exposer is not used: its small-stack threads cannot
// start in a process that links CUDA libraries (http_server.h serves).
#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <utility>

#include "absl/synchronization/mutex.h"
#include "index/base/escaped_exception.h"
#include "prometheus/counter.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"
#include "prometheus/text_serializer.h"
#include "server/metrics/logging.h"
#include "server/metrics/metrics.h"
#include "server/process/process_usage.h"

namespace c3po {
namespace {

using ::prometheus::Counter;
using ::prometheus::Family;
using ::prometheus::Gauge;
using ::prometheus::Histogram;
using ::prometheus::Labels;
using ::prometheus::Registry;
using Buckets = Histogram::BucketBoundaries;

template <size_t N>
using CounterArray = std::array<Counter*, N>;

// The names of a choice's rows from the row `first` on.
template <typename Value, size_t N>
constexpr std::array<const char*, N> NamesFrom(size_t first) {
  std::array<const char*, N> names = {};
  for (size_t i = 0; i < N; ++i) names[i] = TermsOf<Value>()[first + i].name;
  return names;
}
static_assert(TermIndex(Method::kNone) == 0, "the first row optimizes nothing, and has no series");
constexpr std::array kMethods = NamesFrom<Method, TermsOf<Method>().size() - 1>(1);
constexpr std::array kGates = NamesFrom<GateDecision, TermsOf<GateDecision>().size()>(0);
// In the order of the enums of Metrics.
constexpr std::array<const char*, 4> kFinishedReasons = {"stop", "length", "abort", "error"};
constexpr std::array<const char*, 8> kStages = {"queue",        "tokenize",          "embed", "retrieval", "prefill",
                                                "optimization", "optimization_wait", "decode"};
constexpr std::array<const char*, 3> kWorks = {"prefill", "decode", "optimization"};
constexpr std::array<const char*, 2> kMoments = {"before", "after"};
constexpr std::array<const char*, 4> kVerdicts = {"successful", "failed", "malformed", "duplicate"};
constexpr std::array<const char*, 7> kMemoryParts = {"weights", "kv_cache", "neighbor_cache", "work",
                                                     "encoder", "index",    "other"};
constexpr std::array<const char*, 2> kIndexPlaces = {"device", "host"};
constexpr std::array<const char*, 3> kRefusedConnections = {"all", "address", "descriptors"};
constexpr std::array<const char*, 3> kRefusedCalls = {"calls_at_once", "calls_per_minute", "tokens_per_minute"};
constexpr std::array<const char*, 2> kRefusedWatches = {"all", "address"};
constexpr std::array<const char*, 2> kWatchedFiles = {"tls", "tokens"};
constexpr std::array<const char*, 2> kReloadResults = {"loaded", "refused"};
constexpr std::array<const char*, 2> kTraceResults = {"exported", "dropped"};
constexpr std::array<const char*, 2> kStoredRows = {"reference", "artifact"};
constexpr std::array<const char*, 4> kLearned = {"profile", "prior", "shift", "offset"};
struct NamedRpc {
  const char* name;                  // service/method, in the log
  const char* counted_as = nullptr;  // in its series; null: as `name`
  std::string series() const { return counted_as == nullptr ? name : counted_as; }
  std::string service() const { return series().substr(0, series().find('/')); }
  std::string method() const { return series().substr(series().find('/') + 1); }
};
constexpr std::array<NamedRpc, Metrics::kRpcCount> kRpcs = {{
    {"GenerationService/Generate"},
    {"GenerationService/Score"},
    {"GenerationService/Tokenize"},
    {"GenerationService/Detokenize"},
    {"ReferenceService/Add"},
    {"ReferenceService/Search"},
    {"ReferenceService/Get"},
    {"ReferenceService/List"},
    {"ReferenceService/Delete"},
    {"ReferenceService/GetStats"},
    {"ReferenceService/GetCollection"},
    {"ReferenceService/SetProfile"},
    {"ReferenceService/TunePrior"},
    {"ReferenceService/AmortizeShifts"},
    {"ReferenceService/TuneOffset"},
    {"ReferenceService/BackupStore"},
    {"ServerService/GetServerInfo"},
    {"VllmEngine/Generate"},
    {"VllmEngine/Embed"},
    {"VllmEngine/Abort"},
    {"VllmEngine/GetModelInfo"},
    {"VllmEngine/GetServerInfo"},
    {"VllmEngine/GetLoads"},
    {"VllmEngine/GetTokenizer"},
    {"GRPCInferenceService/ModelInfer"},
    {"GRPCInferenceService/ModelStreamInfer"},
    {"GRPCInferenceService/ServerMetadata"},
    {"GRPCInferenceService/ModelMetadata"},
    {"OpenAI/ChatCompletions", "OpenAI/Completions"},
    {"OpenAI/Completions"},
    {"OpenAI/Embeddings", "OpenAI/Other"},
    {"OpenAI/Models", "OpenAI/Other"},
}};
struct CodeName {
  absl::StatusCode code;
  const char* name;
};
// The codes that clients are told (server/rpc/grpc_status.h), no others: these times the methods is the
// largest family of the exposition, and the series budget is fixed.
constexpr std::array<CodeName, 12> kCodes = {{
    {absl::StatusCode::kOk, "OK"},
    {absl::StatusCode::kCancelled, "CANCELLED"},
    {absl::StatusCode::kInvalidArgument, "INVALID_ARGUMENT"},
    {absl::StatusCode::kDeadlineExceeded, "DEADLINE_EXCEEDED"},
    {absl::StatusCode::kNotFound, "NOT_FOUND"},
    {absl::StatusCode::kPermissionDenied, "PERMISSION_DENIED"},
    {absl::StatusCode::kResourceExhausted, "RESOURCE_EXHAUSTED"},
    {absl::StatusCode::kFailedPrecondition, "FAILED_PRECONDITION"},
    {absl::StatusCode::kInternal, "INTERNAL"},
    {absl::StatusCode::kUnavailable, "UNAVAILABLE"},
    {absl::StatusCode::kUnauthenticated, "UNAUTHENTICATED"},
    {absl::StatusCode::kDataLoss, "DATA_LOSS"},
}};

size_t CodeIndex(absl::StatusCode code) {
  const auto index_of = [](absl::StatusCode wanted) {
    return static_cast<size_t>(
        std::find_if(kCodes.begin(), kCodes.end(), [&](const CodeName& each) { return each.code == wanted; }) -
        kCodes.begin());
  };
  if (code == absl::StatusCode::kOutOfRange) code = absl::StatusCode::kInvalidArgument;
  const size_t index = index_of(code);
  return index < kCodes.size() ? index : index_of(absl::StatusCode::kInternal);
}

// Bucket bounds. Few on purpose: each costs a series per label value.
const Buckets& RequestSeconds() {
  static const Buckets bounds = {0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300};
  return bounds;
}
const Buckets& FirstTokenSeconds() {
  static const Buckets bounds = {0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30};
  return bounds;
}
const Buckets& TokenSeconds() {
  static const Buckets bounds = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 5};
  return bounds;
}
const Buckets& StageSeconds() {
  static const Buckets bounds = {1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.1, 1};
  return bounds;
}
const Buckets& OptimizationSeconds() {
  static const Buckets bounds = {0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30};
  return bounds;
}
const Buckets& ReleaseSeconds() {
  static const Buckets bounds = {1e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5};
  return bounds;
}
const Buckets& Distances() {
  static const Buckets bounds = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.5};
  return bounds;
}
const Buckets& Losses() {
  static const Buckets bounds = {0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 10};
  return bounds;
}
const Buckets& LossReductions() {
  static const Buckets bounds = {-0.1, 0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9};
  return bounds;
}

Counter& AddCounter(Registry& registry, const char* name, const char* help, const Labels& labels = {}) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(registry).Add(labels);
}

Gauge& AddGauge(Registry& registry, const char* name, const char* help, const Labels& labels = {}) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(registry).Add(labels);
}

Histogram& AddHistogram(Registry& registry, const char* name, const char* help, const Buckets& buckets,
                        const Labels& labels = {}) {
  return prometheus::BuildHistogram().Name(name).Help(help).Register(registry).Add(labels, buckets);
}

template <size_t N>
CounterArray<N> AddCounters(Registry& registry, const char* name, const char* help, const char* label,
                            const std::array<const char*, N>& values, const Labels& constant = {}) {
  CounterArray<N> counters;
  for (size_t i = 0; i < N; ++i) {
    Labels labels = constant;
    labels[label] = values[i];
    counters[i] = &AddCounter(registry, name, help, labels);
  }
  return counters;
}

template <size_t N>
std::array<Gauge*, N> AddGauges(Registry& registry, const char* name, const char* help, const char* label,
                                const std::array<const char*, N>& values) {
  std::array<Gauge*, N> gauges;
  for (size_t i = 0; i < N; ++i) gauges[i] = &AddGauge(registry, name, help, {{label, values[i]}});
  return gauges;
}

template <size_t N>
std::array<Histogram*, N> AddHistograms(Registry& registry, const char* name, const char* help, const Buckets& buckets,
                                        const char* label, const std::array<const char*, N>& values) {
  std::array<Histogram*, N> histograms;
  for (size_t i = 0; i < N; ++i) {
    histograms[i] = &AddHistogram(registry, name, help, buckets, {{label, values[i]}});
  }
  return histograms;
}

std::array<CounterArray<kCodes.size()>, kRpcs.size()> AddRpcs(Registry& registry) {
  std::array<CounterArray<kCodes.size()>, kRpcs.size()> counters;
  for (size_t rpc = 0; rpc < kRpcs.size(); ++rpc) {
    for (size_t code = 0; code < kCodes.size(); ++code) {
      counters[rpc][code] = &AddCounter(
          registry, "c3po_rpc_total", "Calls answered, by gRPC status",
          {{"service", kRpcs[rpc].service()}, {"method", kRpcs[rpc].method()}, {"code", kCodes[code].name}});
    }
  }
  return counters;
}

std::array<CounterArray<kReloadResults.size()>, kWatchedFiles.size()> AddReloads(Registry& registry) {
  std::array<CounterArray<kReloadResults.size()>, kWatchedFiles.size()> counters;
  for (size_t i = 0; i < kWatchedFiles.size(); ++i) {
    counters[i] = AddCounters(registry, "c3po_reloads_total", "Files replaced while serving, by what came of it",
                              "result", kReloadResults, {{"files", kWatchedFiles[i]}});
  }
  return counters;
}

double UnixSeconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

void ObserveNonNegative(Histogram& histogram, double value) {
  if (std::isfinite(value) && value >= 0) histogram.Observe(value);
}

void SetFinite(Gauge& gauge, double value) {
  if (std::isfinite(value)) gauge.Set(value);
}

void Add(Counter& counter, int64_t count) {
  if (count > 0) counter.Increment(static_cast<double>(count));
}

}  // namespace

// References into `registry`, which owns the series. Declaration order is initialization order: registry and labels
// first.
struct Metrics::Series {
  Series(absl::string_view model_name, absl::string_view version)
      : model{{"model_name", std::string(model_name)}}, model_infos(MakeModelInfos()) {
    AddGauge(registry, "c3po_build_info", "1, with the server's version as label", {{"version", std::string(version)}})
        .Set(1);
    AddGauge(registry, "process_start_time_seconds", "Start of the server, seconds since 1970").Set(UnixSeconds());
  }

  Family<Gauge>& MakeModelInfos() {
    return prometheus::BuildGauge()
        .Name("c3po_model_info")
        .Help("1, with the loaded model as labels")
        .Register(registry);
  }

  Registry registry;
  const Labels model;

  absl::Mutex model_info_mu;
  Family<Gauge>& model_infos;
  Gauge* model_info ABSL_GUARDED_BY(model_info_mu) = nullptr;

  Counter& requests_started =
      AddCounter(registry, "c3po_requests_started_total", "Generate and Score calls let in: valid, and given a place");
  CounterArray<kFinishedReasons.size()> finished =
      AddCounters(registry, "vllm:request_success_total",
                  "Calls let in that have ended, each once: stop, length (answered), abort (cancelled, late), error",
                  "finished_reason", kFinishedReasons, model);
  std::array<CounterArray<kCodes.size()>, kRpcs.size()> rpcs = AddRpcs(registry);
  Gauge& running =
      AddGauge(registry, "vllm:num_requests_running", "Sequences in the engine's batch, those of imports too", model);
  Gauge& waiting =
      AddGauge(registry, "vllm:num_requests_waiting", "Sequences that wait for a place in the engine's batch", model);
  Gauge& pending_max =
      AddGauge(registry, "c3po_pending_requests_max", "Requests running or waiting beyond which new ones are refused");
  Counter& prompt_tokens =
      AddCounter(registry, "vllm:prompt_tokens_total", "Prompt tokens prefilled, those of imports too", model);
  Counter& generated_tokens = AddCounter(registry, "vllm:generation_tokens_total", "Tokens generated", model);

  Histogram& first_token =
      AddHistogram(registry, "vllm:time_to_first_token_seconds",
                   "From a call's arrival to the first token of each of its answers", FirstTokenSeconds(), model);
  Histogram& inter_token = AddHistogram(registry, "vllm:inter_token_latency_seconds",
                                        "Between consecutive tokens of one answer", TokenSeconds(), model);
  Histogram& request_latency =
      AddHistogram(registry, "vllm:e2e_request_latency_seconds",
                   "From arrival to the end of a call let in, however it ended", RequestSeconds(), model);
  Histogram& queue_time = AddHistogram(registry, "vllm:request_queue_time_seconds",
                                       "Answered calls: waiting for a worker and for a place in the engine's batch",
                                       RequestSeconds(), model);
  Histogram& prefill_time =
      AddHistogram(registry, "vllm:request_prefill_time_seconds",
                   "Answered calls: from a place in the batch to the prompt's last token", RequestSeconds(), model);
  Histogram& decode_time =
      AddHistogram(registry, "vllm:request_decode_time_seconds",
                   "Answered calls: from the pathway that stands to the end, all tokens", RequestSeconds(), model);
  CounterArray<kStages.size()> stage_seconds =
      AddCounters(registry, "c3po_call_stage_seconds_total",
                  "Answered calls: seconds by stage; the stages of a call add up to its whole time", "stage", kStages);
  Histogram& cancel_to_release = AddHistogram(registry, "c3po_cancel_to_release_seconds",
                                              "From a cancellation to its KV blocks being free", ReleaseSeconds());

  Gauge& connections = AddGauge(registry, "c3po_connections", "Open connections to the gRPC port");
  Gauge& http_connections =
      AddGauge(registry, "c3po_http_connections", "Open connections to the HTTP port (--http-listen)");
  CounterArray<kRefusedConnections.size()> refused_connections =
      AddCounters(registry, "c3po_connections_refused_total", "Connections closed at once, by the limit that they met",
                  "limit", kRefusedConnections);
  CounterArray<kRefusedCalls.size()> refused_calls = AddCounters(
      registry, "c3po_calls_refused_total", "Calls refused for a limit of their caller's", "limit", kRefusedCalls);
  Gauge& health_watches = AddGauge(registry, "c3po_health_watches", "Open Watch streams of grpc.health.v1");
  CounterArray<kRefusedWatches.size()> refused_watches =
      AddCounters(registry, "c3po_health_watches_refused_total", "Watch streams refused, by the limit that they met",
                  "limit", kRefusedWatches);
  Gauge& message_bytes = AddGauge(registry, "c3po_call_message_bytes",
                                  "Bytes of requests and answers that calls hold, beyond the first 64 KiB of each");
  Gauge& import_streams = AddGauge(registry, "c3po_import_streams", "Open Add streams");
  std::array<CounterArray<kReloadResults.size()>, kWatchedFiles.size()> reloads = AddReloads(registry);
  std::array<Gauge*, kWatchedFiles.size()> reload_failed =
      AddGauges(registry, "c3po_reload_failed", "1 while replaced files are refused and the old ones in force", "files",
                kWatchedFiles);
  Gauge& certificate_expiry = AddGauge(registry, "c3po_tls_certificate_expiry_timestamp_seconds",
                                       "When the certificate in force expires, seconds since 1970; 0: none");

  CounterArray<kTraceResults.size()> trace_spans =
      AddCounters(registry, "c3po_trace_spans_total", "Spans of traces, by whether the collector took them", "result",
                  kTraceResults);

  Counter& prefix_queries =
      AddCounter(registry, "vllm:prefix_cache_queries_total", "Prompt positions looked up in the KV cache", model);
  Counter& prefix_hits =
      AddCounter(registry, "vllm:prefix_cache_hits_total", "Prompt positions found in the KV cache", model);
  Counter& preemptions =
      AddCounter(registry, "vllm:num_preemptions_total", "Sequences that gave their KV blocks back", model);
  Gauge& kv_cache_usage = AddGauge(registry, "vllm:kv_cache_usage_perc", "Share of KV blocks in use, 1 is full", model);
  Gauge& kv_cache_leaked = AddGauge(registry, "c3po_kv_cache_leaked_blocks", "KV blocks held while no request runs");
  Histogram& engine_step =
      AddHistogram(registry, "c3po_engine_step_seconds", "Time of one engine step", TokenSeconds());
  CounterArray<kWorks.size()> engine_steps =
      AddCounters(registry, "c3po_engine_steps_total", "Engine steps that held this kind of work", "work", kWorks);

  Histogram& embedding =
      AddHistogram(registry, "c3po_embedding_seconds", "Time to embed the text of one call", StageSeconds());
  Histogram& retrieval =
      AddHistogram(registry, "c3po_retrieval_seconds", "Time to find the neighbors of one call", StageSeconds());
  Histogram& neighbor_distance =
      AddHistogram(registry, "c3po_neighbor_distance", "Embedding distance of the nearest neighbor", Distances());
  std::array<Histogram*, kMethods.size()> optimization = AddHistograms(
      registry, "c3po_optimization_seconds", "One optimization's own work, its waiting for turns left out",
      OptimizationSeconds(), "method", kMethods);
  Histogram& optimization_wait =
      AddHistogram(registry, "c3po_optimization_wait_seconds",
                   "One optimization's waiting for its turns, between its steps", OptimizationSeconds());
  std::array<Histogram*, kMoments.size()> losses =
      AddHistograms(registry, "c3po_surrogate_loss", "Loss of the neighbors, in nats per token, around optimization",
                    Losses(), "moment", kMoments);
  Histogram& loss_reduction = AddHistogram(registry, "c3po_surrogate_loss_reduction",
                                           "Share of the neighbors' loss that optimization removed", LossReductions());
  Counter& optimization_steps = AddCounter(registry, "c3po_optimization_steps_total", "Gradient steps taken");
  CounterArray<kGates.size()> gates =
      AddCounters(registry, "c3po_gate_total", "Decisions on using an optimized pathway", "decision", kGates);

  Gauge& references = AddGauge(registry, "c3po_references", "Reference samples stored, all collections");
  Gauge& references_usable = AddGauge(registry, "c3po_references_usable",
                                      "Reference samples made with this server's model and embedder, all collections");
  std::array<Gauge*, kLearned.size()> learned_ignored =
      AddGauges(registry, "c3po_learned_ignored",
                "Profiles, priors, shifts and offsets stored and made for another model", "kind", kLearned);
  Gauge& store_lost = AddGauge(registry, "c3po_store_lost", "1 while the store's file is deleted, replaced or cut");
  std::array<Gauge*, kStoredRows.size()> damaged_rows =
      AddGauges(registry, "c3po_store_damaged_rows", "Rows of the store that do not match their checksum, left out",
                "kind", kStoredRows);
  Gauge& index_generation = AddGauge(registry, "c3po_index_generation", "Generation of the neighbor index in use");
  CounterArray<kVerdicts.size()> verdicts =
      AddCounters(registry, "c3po_references_added_total", "Samples offered, by verdict", "verdict", kVerdicts);
  Gauge& recall_at_k =
      AddGauge(registry, "c3po_recall_at_k", "Share of the exact neighbors that graph search found, last check");
  Counter& cache_hits = AddCounter(registry, "c3po_neighbor_cache_hits_total", "Neighbor states found in memory");
  Counter& cache_misses = AddCounter(registry, "c3po_neighbor_cache_misses_total", "Neighbor states computed anew");
  Gauge& cache_bytes = AddGauge(registry, "c3po_neighbor_cache_bytes", "Memory of the kept neighbor states");
  Gauge& work_memory = AddGauge(registry, "c3po_work_memory_bytes",
                                "Memory that the optimizations which run take at most, as estimated");

  std::array<Gauge*, kMemoryParts.size()> memory_planned =
      AddGauges(registry, "c3po_memory_planned_bytes", "Memory planned at the start, by part; caches when full", "part",
                kMemoryParts);
  std::array<Gauge*, kMemoryParts.size()> gpu_memory_planned = AddGauges(
      registry, "c3po_gpu_memory_planned_bytes",
      "Memory of a GPU planned at the start, by part; parts that grow with their limits", "part", kMemoryParts);
  Gauge& gpu_memory_limit =
      AddGauge(registry, "c3po_gpu_memory_limit_bytes", "Memory of a GPU that the server plans with");
  Gauge& memory_limit = AddGauge(registry, "c3po_memory_limit_bytes",
                                 "Memory that the process may take: its control group's, or the machine's");

  // Set by each exposition.
  absl::Mutex process_mu;
  double cpu_seconds_exported ABSL_GUARDED_BY(process_mu) = 0;
  Counter& cpu_seconds = AddCounter(registry, "process_cpu_seconds_total", "User and system time of the process");
  Gauge& resident_bytes = AddGauge(registry, "process_resident_memory_bytes", "Physical memory of the process");
  Gauge& virtual_bytes = AddGauge(registry, "process_virtual_memory_bytes", "Address space of the process");
  Gauge& threads = AddGauge(registry, "process_threads", "Threads of the process");
  Gauge& open_files = AddGauge(registry, "process_open_fds", "Open file descriptors");
  Gauge& open_files_max = AddGauge(registry, "process_max_fds", "Most file descriptors that may be open");
  CounterArray<kThreadKindNames.size()> escaped_exceptions =
      AddCounters(registry, "c3po_escaped_exceptions_total",
                  "Exceptions that left a call's code and were caught at the top of a thread, by what it runs",
                  "thread", kThreadKindNames);
  std::array<double, kThreadKindNames.size()> escaped_exported ABSL_GUARDED_BY(process_mu) = {};
  double log_lines_lost_exported ABSL_GUARDED_BY(process_mu) = 0;
  Counter& log_lines_lost =
      AddCounter(registry, "c3po_log_lines_lost_total", "Log lines that gave way because their reader did not keep up");

  absl::Mutex index_device_mu;
  std::function<IndexDeviceFigures()> index_device ABSL_GUARDED_BY(index_device_mu);
  IndexDeviceFigures index_device_exported ABSL_GUARDED_BY(index_device_mu);
  Gauge& index_device_bytes = AddGauge(registry, "c3po_index_device_bytes", "Memory of a GPU that references take");
  Gauge& index_device_budget =
      AddGauge(registry, "c3po_index_device_budget_bytes", "Memory of a GPU that references may take");
  Gauge& index_device_failed = AddGauge(registry, "c3po_index_device_failed", "1 once that GPU does not answer");
  CounterArray<kIndexPlaces.size()> index_device_queries =
      AddCounters(registry, "c3po_index_device_queries_total",
                  "Queries of indexes in a GPU's memory, by where they were answered", "place", kIndexPlaces);
  Counter& index_device_refusals =
      AddCounter(registry, "c3po_index_device_refusals_total", "Allocations beyond the budget of the GPU's memory");

  void ReadIndexDevice() {
    absl::MutexLock lock(&index_device_mu);
    if (index_device == nullptr) return;
    const IndexDeviceFigures now = index_device();
    IndexDeviceFigures& before = index_device_exported;
    index_device_bytes.Set(static_cast<double>(now.bytes));
    index_device_budget.Set(static_cast<double>(now.budget_bytes));
    index_device_failed.Set(now.failed ? 1 : 0);
    Add(*index_device_queries[0], now.device_queries - before.device_queries);
    Add(*index_device_queries[1], now.host_queries - before.host_queries);
    Add(index_device_refusals, now.refusals - before.refusals);
    before = now;
  }

  absl::Mutex follower_mu;
  std::function<FollowerFigures()> follower ABSL_GUARDED_BY(follower_mu);
  Gauge& generations_behind = AddGauge(registry, "c3po_index_generations_behind",
                                       "Changes that a shared store is known to have, and this server not yet");
  Gauge& store_silent =
      AddGauge(registry, "c3po_store_silent_seconds", "Time since a shared store last answered this server");

  void ReadFollower() {
    absl::MutexLock lock(&follower_mu);
    if (follower == nullptr) return;
    const FollowerFigures now = follower();
    generations_behind.Set(static_cast<double>(now.generations_behind));
    store_silent.Set(now.silent_seconds);
  }

  void ReadProcess() {
    const absl::StatusOr<ProcessUsage> usage = ReadProcessUsage();
    absl::MutexLock lock(&process_mu);
    const double lost = static_cast<double>(LogLinesLost());
    log_lines_lost.Increment(lost - log_lines_lost_exported);
    log_lines_lost_exported = lost;
    for (size_t i = 0; i < kThreadKindNames.size(); ++i) {
      const double caught = static_cast<double>(EscapedExceptions(static_cast<ThreadKind>(i)));
      escaped_exceptions[i]->Increment(caught - escaped_exported[i]);
      escaped_exported[i] = caught;
    }
    if (!usage.ok()) return;
    if (usage->cpu_seconds > cpu_seconds_exported) {
      cpu_seconds.Increment(usage->cpu_seconds - cpu_seconds_exported);
      cpu_seconds_exported = usage->cpu_seconds;
    }
    resident_bytes.Set(static_cast<double>(usage->resident_bytes));
    virtual_bytes.Set(static_cast<double>(usage->virtual_bytes));
    threads.Set(static_cast<double>(usage->threads));
    open_files.Set(static_cast<double>(usage->open_files));
    open_files_max.Set(static_cast<double>(usage->open_files_max));
  }
};

Metrics::Metrics(absl::string_view model_name, absl::string_view version)
    : series_(std::make_unique<Series>(model_name, version)) {}
Metrics::~Metrics() = default;

void Metrics::SetModel(absl::string_view digest, absl::string_view dtype, absl::string_view device) {
  const Labels labels = {
      {"digest", std::string(digest)}, {"dtype", std::string(dtype)}, {"device", std::string(device)}};
  absl::MutexLock lock(&series_->model_info_mu);
  if (series_->model_info != nullptr) series_->model_infos.Remove(series_->model_info);
  series_->model_info = &series_->model_infos.Add(labels);
  series_->model_info->Set(1);
}

void Metrics::RequestStarted() { series_->requests_started.Increment(); }
void Metrics::CountFinished(FinishedReason reason) { series_->finished[static_cast<size_t>(reason)]->Increment(); }
void Metrics::CountRpc(Rpc rpc, absl::StatusCode code) {
  series_->rpcs[static_cast<size_t>(rpc)][CodeIndex(code)]->Increment();
}
void Metrics::SetRunning(int64_t requests) { series_->running.Set(static_cast<double>(requests)); }
void Metrics::SetWaiting(int64_t requests) { series_->waiting.Set(static_cast<double>(requests)); }
void Metrics::SetPendingMax(int64_t requests) { series_->pending_max.Set(static_cast<double>(requests)); }
void Metrics::CountPromptTokens(int64_t tokens) { Add(series_->prompt_tokens, tokens); }
void Metrics::CountGeneratedTokens(int64_t tokens) { Add(series_->generated_tokens, tokens); }

void Metrics::ObserveTimeToFirstToken(double seconds) { ObserveNonNegative(series_->first_token, seconds); }
void Metrics::ObserveInterTokenLatency(double seconds) { ObserveNonNegative(series_->inter_token, seconds); }
void Metrics::ObserveRequestLatency(double seconds) { ObserveNonNegative(series_->request_latency, seconds); }
void Metrics::ObserveStage(Stage stage, double seconds) {
  if (!(std::isfinite(seconds) && seconds >= 0)) return;
  series_->stage_seconds[static_cast<size_t>(stage)]->Increment(seconds);
  if (stage == Stage::kQueue) series_->queue_time.Observe(seconds);
  if (stage == Stage::kPrefill) series_->prefill_time.Observe(seconds);
  if (stage == Stage::kDecode) series_->decode_time.Observe(seconds);
}
void Metrics::ObserveCancelToRelease(double seconds) { ObserveNonNegative(series_->cancel_to_release, seconds); }

void Metrics::SetMessageBytes(int64_t bytes) { series_->message_bytes.Set(static_cast<double>(bytes)); }

void Metrics::SetImportStreams(int64_t streams) { series_->import_streams.Set(static_cast<double>(streams)); }

void Metrics::SetConnections(Port port, int64_t connections) {
  Gauge& gauge = port == Port::kGrpc ? series_->connections : series_->http_connections;
  gauge.Set(static_cast<double>(connections));
}
void Metrics::CountRefusedConnection(RefusedConnection limit) {
  series_->refused_connections[static_cast<size_t>(limit)]->Increment();
}
absl::string_view Metrics::RefusedConnectionName(RefusedConnection limit) {
  return kRefusedConnections[static_cast<size_t>(limit)];
}
void Metrics::CountRefusedCall(RefusedCall limit) { series_->refused_calls[static_cast<size_t>(limit)]->Increment(); }
void Metrics::SetHealthWatches(int64_t streams) { series_->health_watches.Set(static_cast<double>(streams)); }
void Metrics::CountRefusedWatch(RefusedWatch limit) {
  series_->refused_watches[static_cast<size_t>(limit)]->Increment();
}
void Metrics::CountReload(WatchedFile files, bool loaded) {
  series_->reloads[static_cast<size_t>(files)][loaded ? 0 : 1]->Increment();
}
void Metrics::SetReloadFailed(WatchedFile files, bool failed) {
  series_->reload_failed[static_cast<size_t>(files)]->Set(failed ? 1 : 0);
}
void Metrics::SetCertificateExpiry(double unix_seconds) { SetFinite(series_->certificate_expiry, unix_seconds); }

void Metrics::CountPrefixCache(int64_t positions, int64_t found) {
  Add(series_->prefix_queries, positions);
  Add(series_->prefix_hits, found);
}
void Metrics::CountPreemption() { Add(series_->preemptions, 1); }
void Metrics::SetKvCacheUsage(double fraction) { SetFinite(series_->kv_cache_usage, fraction); }
void Metrics::SetKvCacheLeakedBlocks(int64_t blocks) { series_->kv_cache_leaked.Set(static_cast<double>(blocks)); }
void Metrics::ObserveEngineStep(double seconds) { ObserveNonNegative(series_->engine_step, seconds); }
void Metrics::CountEngineStep(Work work) { series_->engine_steps[static_cast<size_t>(work)]->Increment(); }

void Metrics::ObserveEmbedding(double seconds) { ObserveNonNegative(series_->embedding, seconds); }
void Metrics::ObserveRetrieval(double seconds) { ObserveNonNegative(series_->retrieval, seconds); }
void Metrics::ObserveNeighborDistance(double nearest) { ObserveNonNegative(series_->neighbor_distance, nearest); }
void Metrics::ObserveOptimizationWait(double seconds) { ObserveNonNegative(series_->optimization_wait, seconds); }
void Metrics::ObserveOptimization(Method method, double seconds, double loss_reduction) {
  if (method == Method::kNone) return;
  ObserveNonNegative(*series_->optimization[TermIndex(method) - 1], seconds);
  if (std::isfinite(loss_reduction)) series_->loss_reduction.Observe(loss_reduction);
}
void Metrics::ObserveSurrogateLoss(double before, double after) {
  if (!(std::isfinite(before) && std::isfinite(after) && before >= 0 && after >= 0)) return;
  series_->losses[0]->Observe(before);
  series_->losses[1]->Observe(after);
}
void Metrics::CountOptimizationSteps(int64_t steps) { Add(series_->optimization_steps, steps); }
void Metrics::CountGate(GateDecision decision) { series_->gates[TermIndex(decision)]->Increment(); }

void Metrics::SetReferences(int64_t references) { series_->references.Set(static_cast<double>(references)); }
void Metrics::SetReferencesUsable(int64_t references) {
  series_->references_usable.Set(static_cast<double>(references));
}
void Metrics::CountTraceSpans(bool exported, int64_t spans) { Add(*series_->trace_spans[exported ? 0 : 1], spans); }

void Metrics::SetStoreLost(bool lost) { series_->store_lost.Set(lost ? 1 : 0); }

void Metrics::SetDamagedRows(StoredRow kind, int64_t rows) {
  series_->damaged_rows[static_cast<size_t>(kind)]->Set(static_cast<double>(rows));
}

void Metrics::SetLearnedIgnored(Learned kind, int64_t count) {
  series_->learned_ignored[static_cast<size_t>(kind)]->Set(static_cast<double>(count));
}
void Metrics::SetIndexGeneration(int64_t generation) { series_->index_generation.Set(static_cast<double>(generation)); }
void Metrics::CountReferenceVerdict(Verdict verdict) { series_->verdicts[static_cast<size_t>(verdict)]->Increment(); }
void Metrics::WatchIndexDevice(std::function<IndexDeviceFigures()> figures) {
  absl::MutexLock lock(&series_->index_device_mu);
  series_->index_device = std::move(figures);
}
void Metrics::WatchFollower(std::function<FollowerFigures()> figures) {
  absl::MutexLock lock(&series_->follower_mu);
  series_->follower = std::move(figures);
}
void Metrics::SetRecallAtK(double fraction) { SetFinite(series_->recall_at_k, fraction); }
void Metrics::CountNeighborCacheHit() { series_->cache_hits.Increment(); }
void Metrics::CountNeighborCacheMiss() { series_->cache_misses.Increment(); }
void Metrics::SetNeighborCacheBytes(int64_t bytes) { series_->cache_bytes.Set(static_cast<double>(bytes)); }
void Metrics::SetWorkMemory(int64_t bytes) { series_->work_memory.Set(static_cast<double>(bytes)); }

void Metrics::SetMemoryPlanned(MemoryPart part, int64_t bytes) {
  series_->memory_planned[static_cast<size_t>(part)]->Set(static_cast<double>(bytes));
}
void Metrics::SetMemoryLimit(int64_t bytes) { series_->memory_limit.Set(static_cast<double>(bytes)); }
void Metrics::SetGpuMemoryPlanned(MemoryPart part, int64_t bytes) {
  series_->gpu_memory_planned[static_cast<size_t>(part)]->Set(static_cast<double>(bytes));
}
void Metrics::SetGpuMemoryLimit(int64_t bytes) { series_->gpu_memory_limit.Set(static_cast<double>(bytes)); }

std::string Metrics::PrometheusText() const {
  series_->ReadProcess();
  series_->ReadIndexDevice();
  series_->ReadFollower();
  return prometheus::TextSerializer().Serialize(series_->registry.Collect());
}

absl::string_view Metrics::RpcCodeName(absl::StatusCode code) { return kCodes[CodeIndex(code)].name; }
absl::string_view Metrics::RpcName(Rpc rpc) { return kRpcs[static_cast<size_t>(rpc)].name; }
}  // namespace c3po
