#ifndef C3PO_SERVER_METRICS_METRICS_H_
#define C3PO_SERVER_METRICS_METRICS_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "index/types/optimization_terms.h"

namespace c3po {

// What the server counts about itself, for Prometheus. One object lives as long as the server.
//
// Methods are named after events; the comment of each gives the series it moves. Names with the prefix `vllm:` are
// those that dashboards of language-model servers already know, and carry the label model_name; ours start with `c3po_`
// and end in their unit. Every label value comes from an enum below, from optimization_terms.h or from the server's own
// configuration, never from a request, and every series exists from the start (at zero): the exposition has the same
// number of series, fewer than 800, for the life of the process.
//
// Thread-safe. A call takes an atomic addition (counters, gauges) or a short uncontended lock (histograms): well under
// a microsecond, no allocation. Observations that are not finite, and negative ones of quantities that cannot be
// negative, are dropped: one bad value would spoil a histogram's sum until the next restart.
class Metrics {
 public:
  enum class FinishedReason { kStop, kLength, kAbort, kError };  // kAbort: cancelled or past its deadline.
  // What an answered call spent its time in, one after the other: StageTimings (generation.proto) says what each is.
  enum class Stage { kQueue, kTokenize, kEmbed, kRetrieval, kPrefill, kOptimization, kOptimizationWait, kDecode };
  enum class Work { kPrefill, kDecode, kOptimization };  // What an engine step ran.
  enum class Verdict { kSuccessful, kFailed, kMalformed, kDuplicate };
  enum class Learned { kProfile, kPrior, kShift, kOffset };  // Kept beside a collection's references.
  enum class MemoryPart { kWeights, kKvCache, kNeighborCache, kWork, kEncoder, kIndex, kOther };
  enum class Port { kGrpc, kHttp };                                            // Where calls come in.
  enum class RefusedConnection { kAll, kAddress, kDescriptors };               // Which limit it met.
  enum class RefusedCall { kCallsAtOnce, kCallsPerMinute, kTokensPerMinute };  // Which limit of its caller's.
  enum class RefusedWatch { kAll, kAddress };                                  // Health's Watch streams: which limit.
  enum class StoredRow { kReference, kArtifact };                              // Kinds of rows of the store.
  enum class WatchedFile { kTls, kTokens };  // What is read again when it has changed.
  enum class Rpc {
    kGenerate,
    kScore,
    kTokenize,
    kDetokenize,
    kReferencesAdd,
    kReferencesSearch,
    kReferencesGet,
    kReferencesList,
    kReferencesDelete,
    kReferencesGetStats,
    kReferencesGetCollection,
    kReferencesSetProfile,
    kReferencesTunePrior,
    kReferencesAmortizeShifts,
    kReferencesTuneOffset,
    kReferencesBackupStore,
    kGetServerInfo,
    kVllmGenerate,
    kVllmEmbed,
    kVllmAbort,
    kVllmGetModelInfo,
    kVllmGetServerInfo,
    kVllmGetLoads,
    kVllmGetTokenizer,
    kKserveModelInfer,
    kKserveModelStreamInfer,
    kKserveServerMetadata,
    kKserveModelMetadata,
    kOpenAiChatCompletions,
    kOpenAiCompletions,
    kOpenAiEmbeddings,
    kOpenAiModels
  };
  static constexpr int kRpcCount = static_cast<int>(Rpc::kOpenAiModels) + 1;

  // Both UTF-8, from the configuration. `version` is the server's own.
  Metrics(absl::string_view model_name, absl::string_view version);
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  // c3po_model_info{digest,dtype,device} 1. Call when the model is loaded; a later call replaces the labels.
  void SetModel(absl::string_view digest, absl::string_view dtype, absl::string_view device);

  // --- Requests: Generate and Score calls that were let in (valid, and given a place) ---
  void RequestStarted();                      // c3po_requests_started_total
  void CountFinished(FinishedReason reason);  // vllm:request_success_total{finished_reason}: each call, once
  // c3po_rpc_total{service,method,code}; see RpcCodeName for `code`. OpenAI's chat completions count as its
  // Completions, its embeddings and models as Other.
  void CountRpc(Rpc rpc, absl::StatusCode code);
  void SetRunning(int64_t requests);          // vllm:num_requests_running: in the engine's batch, imports too
  void SetWaiting(int64_t requests);          // vllm:num_requests_waiting: for a place there
  void SetPendingMax(int64_t requests);       // c3po_pending_requests_max: running and waiting, beyond: refused
  void CountPromptTokens(int64_t tokens);     // vllm:prompt_tokens_total
  void CountGeneratedTokens(int64_t tokens);  // vllm:generation_tokens_total

  // Histograms of seconds.
  void ObserveTimeToFirstToken(double seconds);   // vllm:time_to_first_token_seconds, from arrival, per answer
  void ObserveInterTokenLatency(double seconds);  // vllm:inter_token_latency_seconds, per token after the first
  void ObserveRequestLatency(double seconds);     // vllm:e2e_request_latency_seconds, however the call ended
  // c3po_call_stage_seconds_total{stage}, of answered calls: the stages of a call add up to its whole time. Three of
  // them are histograms as well: vllm:request_queue_time_seconds, vllm:request_prefill_time_seconds and
  // vllm:request_decode_time_seconds. Their counts are the calls that the sums are of.
  void ObserveStage(Stage stage, double seconds);
  // c3po_cancel_to_release_seconds: from the client's cancel (or the deadline) to its KV blocks being free.
  void ObserveCancelToRelease(double seconds);

  // --- Connections to the ports of calls ---
  void SetConnections(Port port, int64_t connections);   // c3po_connections, c3po_http_connections: open ones
  void CountRefusedConnection(RefusedConnection limit);  // c3po_connections_refused_total{limit}
  static absl::string_view RefusedConnectionName(RefusedConnection limit);

  // --- Callers ---
  void CountRefusedCall(RefusedCall limit);    // c3po_calls_refused_total{limit}: for a limit of their caller's
  void SetHealthWatches(int64_t streams);      // c3po_health_watches: open Watch streams of grpc.health.v1
  void CountRefusedWatch(RefusedWatch limit);  // c3po_health_watches_refused_total{limit}

  // --- What calls hold ---
  void SetMessageBytes(int64_t bytes);     // c3po_call_message_bytes: of requests and answers beyond 64 KiB of a call
  void SetImportStreams(int64_t streams);  // c3po_import_streams: open Add streams

  // --- Files that may be replaced while the server runs ---
  // c3po_reloads_total{files,result}: result "loaded" or "refused"; the old contents stay in force.
  void CountReload(WatchedFile files, bool loaded);
  // c3po_reload_failed{files}: 1 while what the files hold is not what is in force.
  void SetReloadFailed(WatchedFile files, bool failed);
  // c3po_tls_certificate_expiry_timestamp_seconds: of the certificate in force, seconds since 1970; 0: there is none.
  void SetCertificateExpiry(double unix_seconds);

  // c3po_trace_spans_total{result="exported"|"dropped"}: that the collector took; that it refused, or that had no room.
  void CountTraceSpans(bool exported, int64_t spans);

  // --- Engine ---
  void SetKvCacheUsage(double fraction);  // vllm:kv_cache_usage_perc, in [0, 1] in spite of its name
  // c3po_kv_cache_leaked_blocks: KV blocks held while no request runs. Anything but 0 is a bug.
  void SetKvCacheLeakedBlocks(int64_t blocks);
  // vllm:prefix_cache_queries_total and vllm:prefix_cache_hits_total: prompt positions looked up, and found in the
  // cache.
  void CountPrefixCache(int64_t positions, int64_t found);
  void CountPreemption();  // vllm:num_preemptions_total
  // c3po_engine_step_seconds; c3po_engine_steps_total{work} for each kind of work that the step held.
  void ObserveEngineStep(double seconds);
  void CountEngineStep(Work work);

  // --- C3PO ---
  void ObserveEmbedding(double seconds);         // c3po_embedding_seconds
  void ObserveRetrieval(double seconds);         // c3po_retrieval_seconds
  void ObserveNeighborDistance(double nearest);  // c3po_neighbor_distance: Euclidean, of the nearest one, in [0, 2]
  // c3po_optimization_wait_seconds: of one optimization, while the turns of others and forward passes ran.
  void ObserveOptimizationWait(double seconds);
  // c3po_optimization_seconds{method}, its own work only; c3po_surrogate_loss_reduction: (before - after) / before of
  // the neighbors' loss, at most 1, negative when the loss rose. Pass NaN where a method has no loss: it is left out.
  // Method::kNone optimizes nothing and has no series.
  void ObserveOptimization(Method method, double seconds, double loss_reduction);
  // c3po_surrogate_loss{moment="before"|"after"}: the neighbors' kernel-weighted loss (nats per token) under the
  // query's own pathway and under the best one found. Not finite or negative, either one: both are left out.
  void ObserveSurrogateLoss(double before, double after);
  void CountOptimizationSteps(int64_t steps);  // c3po_optimization_steps_total
  void CountGate(GateDecision decision);       // c3po_gate_total{decision}

  // --- References and their caches ---
  void SetReferences(int64_t references);  // c3po_references: of all collections together
  // c3po_references_usable: of them, those made with the model and the embedder that this server runs.
  void SetReferencesUsable(int64_t references);
  // c3po_learned_ignored{kind}: stored, and made for another model (profiles and offsets also: or another embedder).
  void SetLearnedIgnored(Learned kind, int64_t count);
  void SetIndexGeneration(int64_t generation);  // c3po_index_generation
  // c3po_index_generations_behind: changes that a store which servers share is known to have, and this one not yet;
  // c3po_store_silent_seconds: since that store last answered. 0 of a store that is nobody else's. Asked by each
  // exposition, from any thread, until it is set anew; null: nobody.
  struct FollowerFigures {
    int64_t generations_behind = 0;
    double silent_seconds = 0;
  };
  void WatchFollower(std::function<FollowerFigures()> figures);
  // c3po_store_lost: 1 while the store's file is not in its place (StoreFile::Check), so that nothing can be stored.
  void SetStoreLost(bool lost);
  // c3po_store_damaged_rows{kind}: rows that do not match their checksum, and are left out.
  void SetDamagedRows(StoredRow kind, int64_t rows);
  void CountReferenceVerdict(Verdict verdict);  // c3po_references_added_total{verdict}
  // c3po_index_device_bytes, c3po_index_device_budget_bytes: of a GPU's memory, taken and at most;
  // c3po_index_device_failed: 1 once it does not answer; c3po_index_device_queries_total{place="device"|"host"}: of
  // indexes in its memory, where they were answered; c3po_index_device_refusals_total: what had no room. 0 without one.
  struct IndexDeviceFigures {
    int64_t bytes = 0, budget_bytes = 0;
    bool failed = false;
    int64_t device_queries = 0, host_queries = 0, refusals = 0;
  };
  // Asked by each exposition, from any thread, until it is set anew; null: nobody.
  void WatchIndexDevice(std::function<IndexDeviceFigures()> figures);
  void SetRecallAtK(double fraction);         // c3po_recall_at_k: of graph search, measured at start and after imports
  void CountNeighborCacheHit();               // c3po_neighbor_cache_hits_total
  void CountNeighborCacheMiss();              // c3po_neighbor_cache_misses_total
  void SetNeighborCacheBytes(int64_t bytes);  // c3po_neighbor_cache_bytes
  // c3po_work_memory_bytes: what the optimizations that run take at most, as they were estimated.
  void SetWorkMemory(int64_t bytes);

  // --- Memory, as it is planned at the start ---
  // c3po_memory_planned_bytes{part}: what the part takes of the host's memory, caches when they are full.
  void SetMemoryPlanned(MemoryPart part, int64_t bytes);
  // c3po_memory_limit_bytes: the control group's limit, or the machine's memory.
  void SetMemoryLimit(int64_t bytes);
  // c3po_gpu_memory_planned_bytes{part}, c3po_gpu_memory_limit_bytes: the same of a GPU; parts that grow with their
  // limits, and of its memory the share that the server takes. 0 without one.
  void SetGpuMemoryPlanned(MemoryPart part, int64_t bytes);
  void SetGpuMemoryLimit(int64_t bytes);

  // The exposition: Prometheus text format 0.0.4, UTF-8. Also holds c3po_build_info{version},
  // process_start_time_seconds (of this object's construction), and from the kernel, read anew by each call:
  // process_cpu_seconds_total, process_resident_memory_bytes, process_virtual_memory_bytes, process_threads,
  // process_open_fds, process_max_fds. And c3po_log_lines_lost_total, of
  // the log (logging.h), and c3po_escaped_exceptions_total{thread} (index/base/escaped_exception.h). Where the kernel
  // cannot be asked, these keep their last values.
  std::string PrometheusText() const;

  // As label, the name of the code that a client is told for `code` (server/rpc/grpc_status.h): "OK", "CANCELLED", ...
  // OUT_OF_RANGE is told as INVALID_ARGUMENT. Codes that the service does not document are its own defects, INTERNAL:
  // UNKNOWN, ALREADY_EXISTS, ABORTED, UNIMPLEMENTED, and numbers outside the enum.
  static absl::string_view RpcCodeName(absl::StatusCode code);
  // "GenerationService/Generate", ...
  static absl::string_view RpcName(Rpc rpc);

 private:
  struct Series;
  std::unique_ptr<Series> series_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_METRICS_METRICS_H_
