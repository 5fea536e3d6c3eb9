#include "server/metrics/metrics.h"

#include <unistd.h>

#include <atomic>
#include <ctime>
#include <limits>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/process/process_usage.h"
#include "tests/server/metrics/exposition_parser.h"

namespace c3po {
namespace {

using ::testing::HasSubstr;

constexpr size_t kSeriesMax = 800;

Exposition Parse(const Metrics& metrics) {
  const absl::StatusOr<Exposition> exposition = ParseExposition(metrics.PrometheusText());
  EXPECT_TRUE(exposition.ok()) << exposition.status();
  return exposition.value_or(Exposition());
}

void ExpectSample(const Exposition& exposition, double value, const std::string& name,
                  const std::map<std::string, std::string>& labels = {}) {
  const absl::StatusOr<double> sample = SampleValue(exposition, name, labels);
  ASSERT_TRUE(sample.ok()) << sample.status();
  EXPECT_DOUBLE_EQ(*sample, value) << name;
}

// Every method with every label value.
void TouchEverything(Metrics& metrics) {
  metrics.SetModel("sha256:1", "float32", "cpu");
  metrics.RequestStarted();
  for (int i = 0; i < 4; ++i) metrics.CountFinished(static_cast<Metrics::FinishedReason>(i));
  for (int rpc = 0; rpc < Metrics::kRpcCount; ++rpc) {
    for (int code = 0; code <= 16; ++code) {
      metrics.CountRpc(static_cast<Metrics::Rpc>(rpc), static_cast<absl::StatusCode>(code));
    }
  }
  metrics.SetRunning(3);
  metrics.SetWaiting(2);
  metrics.CountPromptTokens(10);
  metrics.CountGeneratedTokens(7);
  for (double seconds : {0.0, 0.01, 0.7, 1000.0}) {
    metrics.ObserveTimeToFirstToken(seconds);
    metrics.ObserveInterTokenLatency(seconds);
    metrics.ObserveRequestLatency(seconds);
    for (int i = 0; i < 8; ++i) metrics.ObserveStage(static_cast<Metrics::Stage>(i), seconds);
    metrics.ObserveOptimizationWait(seconds);
    metrics.ObserveCancelToRelease(seconds);
    metrics.ObserveEngineStep(seconds);
    metrics.ObserveEmbedding(seconds);
    metrics.ObserveRetrieval(seconds);
    metrics.ObserveNeighborDistance(seconds);
    for (const Term<Method>& term : TermsOf<Method>()) {
      if (term.value != Method::kNone) metrics.ObserveOptimization(term.value, seconds, 0.25);
    }
  }
  metrics.SetPendingMax(256);
  metrics.ObserveSurrogateLoss(2.0, 0.5);
  metrics.SetKvCacheUsage(0.5);
  metrics.SetKvCacheLeakedBlocks(9);
  metrics.CountPrefixCache(90, 64);
  metrics.CountPreemption();
  for (int i = 0; i < 3; ++i) metrics.CountEngineStep(static_cast<Metrics::Work>(i));
  metrics.CountOptimizationSteps(10);
  for (const Term<GateDecision>& term : TermsOf<GateDecision>()) metrics.CountGate(term.value);
  metrics.SetReferences(2369);
  metrics.SetIndexGeneration(4);
  metrics.WatchFollower([] { return Metrics::FollowerFigures{3, 1.5}; });
  for (int i = 0; i < 4; ++i) metrics.CountReferenceVerdict(static_cast<Metrics::Verdict>(i));
  metrics.SetRecallAtK(0.99);
  metrics.CountNeighborCacheHit();
  metrics.CountNeighborCacheMiss();
  metrics.SetNeighborCacheBytes(int64_t{5} << 30);
  metrics.SetWorkMemory(int64_t{3} << 28);
  metrics.SetReferencesUsable(7);
  metrics.SetConnections(Metrics::Port::kGrpc, 3);
  metrics.SetConnections(Metrics::Port::kHttp, 4);
  for (int i = 0; i < 3; ++i) metrics.CountRefusedConnection(static_cast<Metrics::RefusedConnection>(i));
  for (int i = 0; i < 3; ++i) metrics.CountRefusedCall(static_cast<Metrics::RefusedCall>(i));
  metrics.SetHealthWatches(2);
  for (int i = 0; i < 2; ++i) metrics.CountRefusedWatch(static_cast<Metrics::RefusedWatch>(i));
  for (int i = 0; i < 3; ++i) metrics.SetLearnedIgnored(static_cast<Metrics::Learned>(i), i);
  for (int i = 0; i < 7; ++i) metrics.SetMemoryPlanned(static_cast<Metrics::MemoryPart>(i), int64_t{1} << (20 + i));
  metrics.SetMemoryLimit(int64_t{1} << 34);
  for (int i = 0; i < 7; ++i) metrics.SetGpuMemoryPlanned(static_cast<Metrics::MemoryPart>(i), int64_t{1} << (21 + i));
  metrics.SetGpuMemoryLimit(int64_t{1} << 36);
  metrics.SetStoreLost(true);
  for (int i = 0; i < 2; ++i) metrics.SetDamagedRows(static_cast<Metrics::StoredRow>(i), 3 + i);
  metrics.SetCertificateExpiry(1.8e9);
  for (int i = 0; i < 2; ++i) {
    metrics.CountReload(static_cast<Metrics::WatchedFile>(i), i == 0);
    metrics.SetReloadFailed(static_cast<Metrics::WatchedFile>(i), i == 1);
  }
}

TEST(Metrics, ExposesEveryFamilyOfTheContractWithItsTypeFromTheStart) {
  const std::map<std::string, std::string> contract = {
      {"c3po_build_info", "gauge"},
      {"c3po_call_stage_seconds_total", "counter"},
      {"c3po_cancel_to_release_seconds", "histogram"},
      {"c3po_embedding_seconds", "histogram"},
      {"c3po_call_message_bytes", "gauge"},
      {"c3po_connections", "gauge"},
      {"c3po_connections_refused_total", "counter"},
      {"c3po_calls_refused_total", "counter"},
      {"c3po_health_watches", "gauge"},
      {"c3po_health_watches_refused_total", "counter"},
      {"c3po_engine_step_seconds", "histogram"},
      {"c3po_engine_steps_total", "counter"},
      {"c3po_escaped_exceptions_total", "counter"},
      {"c3po_gate_total", "counter"},
      {"c3po_gpu_memory_limit_bytes", "gauge"},
      {"c3po_gpu_memory_planned_bytes", "gauge"},
      {"c3po_http_connections", "gauge"},
      {"c3po_import_streams", "gauge"},
      {"c3po_index_device_budget_bytes", "gauge"},
      {"c3po_index_device_bytes", "gauge"},
      {"c3po_index_device_failed", "gauge"},
      {"c3po_index_device_queries_total", "counter"},
      {"c3po_index_device_refusals_total", "counter"},
      {"c3po_index_generation", "gauge"},
      {"c3po_index_generations_behind", "gauge"},
      {"c3po_kv_cache_leaked_blocks", "gauge"},
      {"c3po_learned_ignored", "gauge"},
      {"c3po_log_lines_lost_total", "counter"},
      {"c3po_memory_limit_bytes", "gauge"},
      {"c3po_memory_planned_bytes", "gauge"},
      {"c3po_model_info", "gauge"},
      {"c3po_trace_spans_total", "counter"},
      {"c3po_neighbor_cache_bytes", "gauge"},
      {"c3po_work_memory_bytes", "gauge"},
      {"c3po_neighbor_cache_hits_total", "counter"},
      {"c3po_neighbor_cache_misses_total", "counter"},
      {"c3po_neighbor_distance", "histogram"},
      {"c3po_optimization_seconds", "histogram"},
      {"c3po_optimization_steps_total", "counter"},
      {"c3po_optimization_wait_seconds", "histogram"},
      {"c3po_pending_requests_max", "gauge"},
      {"c3po_recall_at_k", "gauge"},
      {"c3po_references", "gauge"},
      {"c3po_references_added_total", "counter"},
      {"c3po_references_usable", "gauge"},
      {"c3po_reload_failed", "gauge"},
      {"c3po_reloads_total", "counter"},
      {"c3po_requests_started_total", "counter"},
      {"c3po_retrieval_seconds", "histogram"},
      {"c3po_rpc_total", "counter"},
      {"c3po_store_damaged_rows", "gauge"},
      {"c3po_store_lost", "gauge"},
      {"c3po_store_silent_seconds", "gauge"},
      {"c3po_surrogate_loss", "histogram"},
      {"c3po_surrogate_loss_reduction", "histogram"},
      {"c3po_tls_certificate_expiry_timestamp_seconds", "gauge"},
      {"process_cpu_seconds_total", "counter"},
      {"process_max_fds", "gauge"},
      {"process_open_fds", "gauge"},
      {"process_resident_memory_bytes", "gauge"},
      {"process_start_time_seconds", "gauge"},
      {"process_threads", "gauge"},
      {"process_virtual_memory_bytes", "gauge"},
      {"vllm:e2e_request_latency_seconds", "histogram"},
      {"vllm:generation_tokens_total", "counter"},
      {"vllm:inter_token_latency_seconds", "histogram"},
      {"vllm:kv_cache_usage_perc", "gauge"},
      {"vllm:num_requests_running", "gauge"},
      {"vllm:num_requests_waiting", "gauge"},
      {"vllm:num_preemptions_total", "counter"},
      {"vllm:prefix_cache_hits_total", "counter"},
      {"vllm:prefix_cache_queries_total", "counter"},
      {"vllm:prompt_tokens_total", "counter"},
      {"vllm:request_decode_time_seconds", "histogram"},
      {"vllm:request_prefill_time_seconds", "histogram"},
      {"vllm:request_queue_time_seconds", "histogram"},
      {"vllm:request_success_total", "counter"},
      {"vllm:time_to_first_token_seconds", "histogram"},
  };
  Metrics metrics("tiny", "0.1.0");
  metrics.SetModel("sha256:1", "float32", "cpu");
  std::map<std::string, std::string> types;
  for (const auto& [name, family] : Parse(metrics)) types[name] = family.type;
  EXPECT_EQ(types, contract);
}

TEST(Metrics, SeriesAreFixedAndWithinTheBudget) {
  Metrics metrics("tiny", "0.1.0");
  metrics.SetModel("sha256:0", "bfloat16", "cpu");
  const size_t at_start = SeriesCount(Parse(metrics));
  TouchEverything(metrics);
  const size_t touched = SeriesCount(Parse(metrics));
  EXPECT_EQ(at_start, touched);
  EXPECT_LT(touched, kSeriesMax);
  RecordProperty("series", static_cast<int>(touched));
}

TEST(Metrics, EachEventMovesItsSeries) {
  Metrics metrics("tiny", "0.1.0");
  TouchEverything(metrics);
  const Exposition exposition = Parse(metrics);
  const std::map<std::string, std::string> model = {{"model_name", "tiny"}};
  ExpectSample(exposition, 1, "c3po_build_info", {{"version", "0.1.0"}});
  ExpectSample(exposition, 1, "c3po_model_info", {{"digest", "sha256:1"}, {"dtype", "float32"}, {"device", "cpu"}});
  ExpectSample(exposition, 1, "c3po_requests_started_total");
  for (const char* reason : {"stop", "length", "abort", "error"}) {
    ExpectSample(exposition, 1, "vllm:request_success_total", {{"model_name", "tiny"}, {"finished_reason", reason}});
  }
  ExpectSample(exposition, 3, "vllm:num_requests_running", model);
  ExpectSample(exposition, 2, "vllm:num_requests_waiting", model);
  ExpectSample(exposition, 10, "vllm:prompt_tokens_total", model);
  ExpectSample(exposition, 7, "vllm:generation_tokens_total", model);
  ExpectSample(exposition, 0.5, "vllm:kv_cache_usage_perc", model);
  ExpectSample(exposition, 90, "vllm:prefix_cache_queries_total", model);
  ExpectSample(exposition, 64, "vllm:prefix_cache_hits_total", model);
  ExpectSample(exposition, 1, "vllm:num_preemptions_total", model);
  for (const char* name : {"time_to_first_token", "inter_token_latency", "e2e_request_latency", "request_queue_time",
                           "request_prefill_time", "request_decode_time"}) {
    ExpectSample(exposition, 4, absl::StrCat("vllm:", name, "_seconds_count"), model);
    ExpectSample(exposition, 1000.71, absl::StrCat("vllm:", name, "_seconds_sum"), model);
  }
  for (const char* name : {"cancel_to_release_seconds", "engine_step_seconds", "embedding_seconds", "retrieval_seconds",
                           "neighbor_distance", "optimization_wait_seconds"}) {
    ExpectSample(exposition, 4, absl::StrCat("c3po_", name, "_count"));
  }
  for (const char* stage :
       {"queue", "tokenize", "embed", "retrieval", "prefill", "optimization", "optimization_wait", "decode"}) {
    ExpectSample(exposition, 1000.71, "c3po_call_stage_seconds_total", {{"stage", stage}});
  }
  for (const char* method : {"mode_finding", "kernel_regression", "neighborhood_gradient_descent", "amortized_shift",
                             "collection_prior", "oracle"}) {
    ExpectSample(exposition, 4, "c3po_optimization_seconds_count", {{"method", method}});
  }
  ExpectSample(exposition, 24, "c3po_surrogate_loss_reduction_count");
  ExpectSample(exposition, 6, "c3po_surrogate_loss_reduction_sum");
  ExpectSample(exposition, 2, "c3po_surrogate_loss_sum", {{"moment", "before"}});
  ExpectSample(exposition, 0.5, "c3po_surrogate_loss_sum", {{"moment", "after"}});
  ExpectSample(exposition, 256, "c3po_pending_requests_max");
  ExpectSample(exposition, 9, "c3po_kv_cache_leaked_blocks");
  ExpectSample(exposition, 10, "c3po_optimization_steps_total");
  for (const char* decision :
       {"applied", "not_requested", "skipped_no_neighbors", "skipped_neighbors_far", "skipped_base_confident",
        "reverted_loss_not_reduced", "reverted_validation_loss_not_reduced", "reverted_not_confident"}) {
    ExpectSample(exposition, 1, "c3po_gate_total", {{"decision", decision}});
  }
  for (const char* work : {"prefill", "decode", "optimization"}) {
    ExpectSample(exposition, 1, "c3po_engine_steps_total", {{"work", work}});
  }
  for (const char* verdict : {"successful", "failed", "malformed", "duplicate"}) {
    ExpectSample(exposition, 1, "c3po_references_added_total", {{"verdict", verdict}});
  }
  ExpectSample(exposition, 2369, "c3po_references");
  ExpectSample(exposition, 4, "c3po_index_generation");
  ExpectSample(exposition, 3, "c3po_index_generations_behind");
  ExpectSample(exposition, 1.5, "c3po_store_silent_seconds");
  ExpectSample(exposition, 0.99, "c3po_recall_at_k");
  ExpectSample(exposition, 1, "c3po_neighbor_cache_hits_total");
  ExpectSample(exposition, 1, "c3po_neighbor_cache_misses_total");
  ExpectSample(exposition, 5368709120.0, "c3po_neighbor_cache_bytes");
  ExpectSample(exposition, 805306368.0, "c3po_work_memory_bytes");
}

TEST(Metrics, EveryDocumentedRpcCodeHasALabelAndTheRestAreDefects) {
  Metrics metrics("tiny", "0.1.0");
  metrics.CountRpc(Metrics::Rpc::kReferencesSearch, absl::StatusCode::kNotFound);
  metrics.CountRpc(Metrics::Rpc::kReferencesSearch, absl::StatusCode::kDataLoss);
  metrics.CountRpc(Metrics::Rpc::kReferencesSearch, absl::StatusCode::kAlreadyExists);
  metrics.CountRpc(Metrics::Rpc::kReferencesSearch, static_cast<absl::StatusCode>(99));
  const Exposition exposition = Parse(metrics);
  std::map<std::string, std::string> labels = {
      {"service", "ReferenceService"}, {"method", "Search"}, {"code", "NOT_FOUND"}};
  ExpectSample(exposition, 1, "c3po_rpc_total", labels);
  labels["code"] = "DATA_LOSS";
  ExpectSample(exposition, 1, "c3po_rpc_total", labels);
  labels["code"] = "INTERNAL";
  ExpectSample(exposition, 2, "c3po_rpc_total", labels);
  EXPECT_EQ(Metrics::RpcCodeName(absl::StatusCode::kCancelled), "CANCELLED");
}

TEST(Metrics, BoundsAreInclusiveAndBucketsCumulative) {
  Metrics metrics("tiny", "0.1.0");
  metrics.ObserveEmbedding(0.01);
  metrics.ObserveEmbedding(0.0101);
  const Exposition exposition = Parse(metrics);
  ExpectSample(exposition, 0, "c3po_embedding_seconds_bucket", {{"le", "0.005"}});
  ExpectSample(exposition, 1, "c3po_embedding_seconds_bucket", {{"le", "0.01"}});
  ExpectSample(exposition, 2, "c3po_embedding_seconds_bucket", {{"le", "0.025"}});
  ExpectSample(exposition, 2, "c3po_embedding_seconds_bucket", {{"le", "+Inf"}});
}

TEST(Metrics, BadObservationsAreDropped) {
  Metrics metrics("tiny", "0.1.0");
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  for (double bad : {nan, inf, -inf, -1.0}) metrics.ObserveRetrieval(bad);
  for (double bad : {nan, inf}) metrics.SetKvCacheUsage(bad);
  metrics.CountGeneratedTokens(-5);
  for (double bad : {nan, inf, -1.0}) {
    metrics.ObserveSurrogateLoss(bad, 1.0);
    metrics.ObserveSurrogateLoss(1.0, bad);
  }
  metrics.ObserveOptimization(Method::kModeFinding, 0.5, nan);
  metrics.ObserveOptimization(Method::kModeFinding, 0.5, -2.0);  // A loss may rise.
  const Exposition exposition = Parse(metrics);
  ExpectSample(exposition, 0, "c3po_retrieval_seconds_count");
  ExpectSample(exposition, 0, "vllm:kv_cache_usage_perc", {{"model_name", "tiny"}});
  ExpectSample(exposition, 0, "vllm:generation_tokens_total", {{"model_name", "tiny"}});
  ExpectSample(exposition, 2, "c3po_optimization_seconds_count", {{"method", "mode_finding"}});
  ExpectSample(exposition, 0, "c3po_surrogate_loss_count", {{"moment", "before"}});
  ExpectSample(exposition, 0, "c3po_surrogate_loss_count", {{"moment", "after"}});
  ExpectSample(exposition, 1, "c3po_surrogate_loss_reduction_count");
  ExpectSample(exposition, -2, "c3po_surrogate_loss_reduction_sum");
}

TEST(Metrics, LabelValuesFromTheConfigurationAreEscaped) {
  const std::string name = "a\"b\\c\nd \xC3\xA9";
  Metrics metrics(name, "0.1.0");
  metrics.SetRunning(1);
  ExpectSample(Parse(metrics), 1, "vllm:num_requests_running", {{"model_name", name}});
}

TEST(Metrics, ALaterModelReplacesTheLabels) {
  Metrics metrics("tiny", "0.1.0");
  metrics.SetModel("one", "float32", "cpu");
  metrics.SetModel("two", "bfloat16", "cuda");
  const Exposition exposition = Parse(metrics);
  ASSERT_EQ(exposition.at("c3po_model_info").samples.size(), 1u);
  EXPECT_EQ(exposition.at("c3po_model_info").samples[0].labels.at("digest"), "two");
}

TEST(Metrics, ProcessIsReadAnewByEachExposition) {
  Metrics metrics("tiny", "0.1.0");
  const auto value = [](const Exposition& exposition, const char* name) {
    return SampleValue(exposition, name, {}).value_or(-1);
  };
  const Exposition before = Parse(metrics);
  EXPECT_GT(value(before, "process_resident_memory_bytes"), 1e6);
  EXPECT_GE(value(before, "process_virtual_memory_bytes"), value(before, "process_resident_memory_bytes"));
  EXPECT_GE(value(before, "process_max_fds"), value(before, "process_open_fds"));
  const int descriptor = dup(0);
  ASSERT_GE(descriptor, 0);
  const clock_t start = clock();
  while (clock() - start < CLOCKS_PER_SEC / 10) {
  }
  const Exposition after = Parse(metrics);
  close(descriptor);
  EXPECT_EQ(value(after, "process_open_fds"), value(before, "process_open_fds") + 1);
  const double seconds = value(after, "process_cpu_seconds_total") - value(before, "process_cpu_seconds_total");
  EXPECT_GE(seconds, 0.05);
  EXPECT_LT(seconds, 5);
}

TEST(ProcessUsage, StatIsReadAfterTheLastParenthesisOfTheCommand) {
  const std::string line =
      "17 (a (b) 1 2) S 1 17 17 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 12 0 900 4096000 300 18446744073709551615 1 1\n";
  const absl::StatusOr<ProcessUsage> usage = ParseStat(line, /*ticks_per_second=*/100, /*page_bytes=*/4096);
  ASSERT_TRUE(usage.ok()) << usage.status();
  EXPECT_DOUBLE_EQ(usage->cpu_seconds, 3.0);
  EXPECT_EQ(usage->threads, 12);
  EXPECT_EQ(usage->virtual_bytes, 4096000);
  EXPECT_EQ(usage->resident_bytes, 300 * 4096);
  for (const char* bad : {"", "17 no command", "17 (c) S 1 2 3", "17 (c) S 1 17 17 0 -1 4194304 100 0 0 0 x 50 0 0"}) {
    EXPECT_EQ(ParseStat(bad, 100, 4096).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

TEST(Metrics, CountsAreExactAndScrapesWholeWhileThreadsCount) {
  Metrics metrics("tiny", "0.1.0");
  constexpr int kThreads = 4, kRounds = 5000;
  std::atomic<int> running{kThreads};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < kRounds; ++i) {
        metrics.CountGeneratedTokens(1);
        metrics.ObserveInterTokenLatency(0.001 * (i % 50));
        metrics.CountRpc(Metrics::Rpc::kGenerate, absl::StatusCode::kOk);
        if (i % 1000 == 0) metrics.SetModel("digest", "float32", "cpu");
      }
      --running;
    });
  }
  do {
    Parse(metrics);
  } while (running > 0);
  for (std::thread& thread : threads) thread.join();
  const Exposition exposition = Parse(metrics);
  ExpectSample(exposition, kThreads * kRounds, "vllm:generation_tokens_total", {{"model_name", "tiny"}});
  ExpectSample(exposition, kThreads * kRounds, "vllm:inter_token_latency_seconds_count", {{"model_name", "tiny"}});
}

TEST(ExpositionParser, RejectsWhatAStrictReaderMust) {
  const std::string head = "# HELP a_total h\n# TYPE a_total counter\n";
  const std::string histogram = "# HELP h x\n# TYPE h histogram\n";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {head + "a_total 1", "no newline"},
      {"a_total 1\n", "before its TYPE"},
      {head + "b_total 1\n", "another family"},
      {head + "a_total -1\n", "negative counter"},
      {head + "a_total 1\na_total 1\n", "series twice"},
      {head + "a_total{x=\"\\t\"} 1\n", "unknown escape"},
      {head + "a_total{1x=\"v\"} 1\n", "bad label name"},
      {head + "a_total{x=\"v\"y=\"w\"} 1\n", "no comma"},
      {head + "a_total nan\n", "bad value"},
      {head + "a_total 1\n" + head + "a_total 1\n", "family twice"},
      {head, "without samples"},
      {histogram + "h_bucket{le=\"1\"} 2\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\n", "not cumulative"},
      {histogram + "h_bucket{le=\"1\"} 1\nh_sum 1\nh_count 1\n", "no +Inf"},
      {histogram + "h_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 2\n", "not the count"},
      {histogram + "h_bucket{le=\"2\"} 1\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\n",
       "ascend"},
      {histogram + "h_bucket{le=\"+Inf\"} 1\nh_count 1\n", "one _sum"},
  };
  for (const auto& [text, why] : cases) {
    EXPECT_THAT(std::string(ParseExposition(text).status().message()), HasSubstr(why)) << text;
  }
  EXPECT_TRUE(ParseExposition(head + "a_total{x=\"v\",y=\"\"} 1\n").ok());
}

// Times of a stage are of its own work or of its waiting, and of one call or of one step: HELP says which.
TEST(Metrics, HelpSaysWhatATimeIsOf) {
  const Metrics metrics("tiny", "0.1.0");
  const std::string text = metrics.PrometheusText();
  const std::pair<const char*, const char*> expected[] = {
      {"c3po_optimization_seconds", "own work, its waiting for turns left out"},
      {"c3po_optimization_wait_seconds", "waiting for its turns, between its steps"},
      {"c3po_call_stage_seconds_total", "the stages of a call add up to its whole time"},
      {"c3po_engine_step_seconds", "one engine step"},
  };
  for (const auto& [name, words] : expected) {
    const size_t begin = text.find(std::string("# HELP ") + name + " ");
    ASSERT_NE(begin, std::string::npos) << name;
    const std::string help = text.substr(begin, text.find('\n', begin) - begin);
    EXPECT_NE(help.find(words), std::string::npos) << help;
  }
}

}  // namespace
}  // namespace c3po
