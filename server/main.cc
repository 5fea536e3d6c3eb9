// c3pod: reads its configuration, loads model, embedder and references, serves until SIGTERM or SIGINT, drains, exits
// 0. Exit codes: 0 drained; 1 could not start; 2 wrong command line; 130, 143 ended by a second SIGINT or SIGTERM while
// it drained; 3 calls were lost, and the end did not come; 4 the device that computes failed, and what was let in has
// ended. SIGHUP reads certificates and tokens again. `c3pod inspect MODEL` says what a model folder is and whether it
// would load, instead (server/inspect); `c3pod quantize IN OUT` writes one with weights of 8 or 4 bits
// (server/quantize); `c3pod prepare-store URL` makes the tables of a PostgreSQL store; `c3pod --compile-forms` is the
// process that c3pod compiles forms of answers in. Long because every part of the server is made here, in the order
// that they need each other.

#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "index/base/cgroup_limits.h"
#include "index/base/code_pages.h"
#include "index/base/device_failure.h"
#include "index/base/escaped_exception.h"
#include "index/base/standard_streams.h"
#include "index/base/status_macros.h"
#include "index/base/steady_time.h"
#include "index/base/store_away.h"
#include "index/search/reference_catalog.h"
#include "index/store/reference_store.h"
#include "index/store/store_feed.h"
#include "server/admission/admission_controller.h"
#include "server/compute/cache_fit.h"
#include "server/compute/device.h"
#include "server/compute/device_queue.h"
#include "server/config/server_config.h"
#include "server/embed/sentence_encoder.h"
#include "server/grammar/form_compiler.h"
#include "server/grammar/form_process.h"
#include "server/inspect/model_card.h"
#include "server/metrics/escaped_log.h"
#include "server/metrics/http_server.h"
#include "server/metrics/logging.h"
#include "server/metrics/metrics.h"
#include "server/model/config/generation_config.h"
#include "server/model/config/tensor_plan.h"
#include "server/model/moe_model.h"
#include "server/pipeline/collection_learning.h"
#include "server/pipeline/generation_pipeline.h"
#include "server/pipeline/index_placement.h"
#include "server/pipeline/reference_gauges.h"
#include "server/pipeline/reference_importer.h"
#include "server/pipeline/reference_state_builder.h"
#include "server/pipeline/store_follower.h"
#include "server/process/descriptor_limit.h"
#include "server/process/end_bound.h"
#include "server/process/heap_settings.h"
#include "server/process/process_signals.h"
#include "server/process/process_usage.h"
#include "server/quantize/quantize_command.h"
#include "server/rpc/doors/http/http_port.h"
#include "server/rpc/doors/http/openai_door.h"
#include "server/rpc/doors/kserve_service.h"
#include "server/rpc/doors/vllm_service.h"
#include "server/rpc/grpc_log.h"
#include "server/rpc/grpc_server.h"
#include "server/rpc/health_monitor.h"
#include "server/rpc/otlp_tracing.h"
#include "server/rpc/profiles.h"
#include "server/rpc/store_watch.h"
#include "server/scheduler/engine.h"
#include "server/scheduler/kv_block_pool.h"
#include "server/text/chat_renderer.h"
#include "server/weights/model_folder.h"

namespace c3po {
namespace {

constexpr char kVersion[] = C3PO_VERSION;
constexpr absl::Duration kDrainPoll = absl::Milliseconds(10);
constexpr absl::Duration kStorePoll = absl::Seconds(1);
constexpr absl::Duration kEndMax = absl::Seconds(20);    // for gRPC to end once the calls have
constexpr size_t kLogLinesMax = 8192;                    // that wait for their reader
constexpr absl::Duration kLastLines = absl::Seconds(1);  // that the end waits for them

// The whole server, in the order in which its parts need each other; destroyed from the last to the first.
struct Server {
  ~Server() {
    // Their threads end while all that calls hold is there.
    if (chat != nullptr) chat->Stop();
    if (forms != nullptr) forms->Stop();
  }

  ModelFolder model_folder, embedder_folder;
  std::unique_ptr<Metrics> metrics;
  std::unique_ptr<OtlpTracing> tracing;  // Null: nothing is traced. Outlives every call.
  std::unique_ptr<MoeModel> model;
  std::shared_ptr<ChatRenderer> chat;  // Null: the model has no chat template.
  std::unique_ptr<FormCompiler> forms;
  std::unique_ptr<PromptText> text;
  std::unique_ptr<QueryEmbedding> embedding;
  int64_t encoder_bytes = 0;
  std::unique_ptr<ReferenceStore> store;
  std::unique_ptr<StoreFeed> feed;
  std::unique_ptr<IndexDevice> index_device;  // Null: references are searched on the CPU.
  std::unique_ptr<ReferenceCatalog> catalog;
  std::unique_ptr<LearnedShifts> shifts;
  std::unique_ptr<LabelOffsets> offsets;
  std::unique_ptr<Profiles> profiles;
  std::unique_ptr<StoreWatch> store_watch;
  std::unique_ptr<StoreFollower> follower;
  std::unique_ptr<AdmissionController> admission;
  std::unique_ptr<Engine> engine;
  std::unique_ptr<GenerationPipeline> pipeline;
  std::unique_ptr<CollectionLearning> learning;
  std::unique_ptr<WorkerPool> workers;            // Its jobs use the two above.
  std::unique_ptr<ReferenceStateBuilder> states;  // Whoever waits for it goes on as a job of these.
  std::unique_ptr<GrpcServer> grpc;               // Listens before the rest is loaded.
  std::unique_ptr<HttpPort> openai;               // Null: no --http-listen.
  std::unique_ptr<HealthMonitor> health;
  std::unique_ptr<HeapTrim> heap_trim;
  std::atomic<const HealthMonitor*> known_health{
      nullptr};  // For the HTTP threads, which are older; null while loading.
  std::unique_ptr<HttpServer> http;
};

// What clients connect to: a socket's path as it was given, an address with the port that was chosen.
std::string AddressOf(const ServerConfig& config, const Server& server) {
  if (absl::StartsWith(config.listen, "unix:") || absl::StartsWith(config.listen, "unix-abstract:")) {
    return config.listen;
  }
  return absl::StrCat(config.listen.substr(0, config.listen.rfind(':')), ":", server.grpc->port());
}

int MetricsPortOf(const Server& server) { return server.http ? server.http->port() : -1; }

int HttpPortOf(const Server& server) { return server.openai ? server.openai->port() : -1; }

// Where model and embedder lie, before anything is opened: a name of the hub's that its cache lacks ends the start.
absl::Status FindFolders(const ServerConfig& config, Server& server) {
  C3PO_ASSIGN_OR_RETURN(server.model_folder,
                        FindModelFolder({"--model", config.model, "--revision", config.revision, true}));
  if (config.embedder == kModelAsEmbedder) return absl::OkStatus();
  C3PO_ASSIGN_OR_RETURN(server.embedder_folder, FindModelFolder({"--embedder", config.embedder, "--embedder-revision",
                                                                 config.embedder_revision}));
  return absl::OkStatus();
}

OptimizationSettings DefaultsFrom(const ServerConfig& config, const ModelShape& shape) {
  OptimizationSettings settings = DefaultSettings(shape);
  settings.method = TermOfFlag<Method>(config.method)->value;  // Validate has seen all words.
  settings.k = config.neighbors;
  settings.steps = config.steps;
  settings.learning_rate = config.learning_rate;
  settings.validation_neighbors = config.validation_neighbors;
  if (config.critical_layers > 0) settings.critical_layers = LastLayers(config.critical_layers, shape);
  settings.core_experts = std::min(config.core_experts, shape.experts);
  settings.rule = TermOfFlag<ApplicationRule>(config.application_rule)->value;
  settings.references = TermOfFlag<ReferenceSelection>(config.references)->value;
  settings.objective = TermOfFlag<SurrogateLoss>(config.objective)->value;
  settings.collection = config.collection;
  settings.gate.neighbor_distance_quantile = config.gate_distance_quantile;
  return settings;
}

// A row with twice as many experts costs at most twice as much, in time and in the memory of a pass.
int ExpertsPerTokenMax(const ServerConfig& config, const ModelShape& shape) {
  const int wanted = config.experts_per_token_max > 0 ? config.experts_per_token_max : 2 * shape.experts_per_token;
  return std::max(shape.experts_per_token, std::min(wanted, shape.experts_per_token_max));
}

RequestLimits LimitsFrom(const ServerConfig& config, const ModelShape& shape) {
  return {.prompt_tokens_max = config.prompt_tokens_max,
          .output_tokens_max = config.output_tokens_max,
          .stop_strings_max = config.stop_strings_max,
          .stop_string_bytes_max = config.stop_string_bytes_max,
          .continuations_max = config.continuations_max,
          .answers_max = config.answers_max,
          .logit_bias_max = config.logit_bias_max,
          .experts_per_token_max = ExpertsPerTokenMax(config, shape)};
}

using Chat = absl::StatusOr<std::shared_ptr<ChatRenderer>>;

// What renders the model's chat template, or why conversations are refused, which does not keep the model from serving.
// Only a --chat-template that cannot be read ends the start.
absl::Status OpenChat(const ServerConfig& config, const std::filesystem::path& folder, Chat& chat) {
  auto templates = ChatTemplates::Read(ChatTemplates::ConfigPath(folder.string()), config.chat_template);
  if (!templates.ok()) {
    if (!config.chat_template.empty()) return templates.status();
    Log(LogLevel::kInfo, "no_chat", "", {{"reason", templates.status().message()}});
    chat = absl::FailedPreconditionError(absl::StrCat("chat: ", templates.status().message()));
    return absl::OkStatus();
  }
  JinjaRenderer::Options jinja;
  jinja.python = std::filesystem::absolute(config.chat_python).string();  // Its folder is "/".
  jinja.waiting_max = static_cast<size_t>(config.pending_requests_max);
  jinja.on_killed = [](absl::string_view why) { Log(LogLevel::kWarning, "chat_process_ended", "", {{"reason", why}}); };
  const std::string origin = templates->origin;
  chat = std::make_shared<ChatRenderer>(*std::move(templates), std::move(jinja));
  if (const absl::Status status = (*chat)->Check(); !status.ok()) {
    Log(LogLevel::kWarning, "chat_unavailable", "", {{"reason", status.message()}});
  }
  Log(LogLevel::kInfo, "chat_template", "", {{"file", origin}, {"rendered_by", (*chat)->RenderedBy()}});
  return absl::OkStatus();
}

absl::Status LoadModel(const ServerConfig& config, Server& server) {
  const std::filesystem::path folder = server.model_folder.path;
  // What is quick to find out comes before the weights, the model before its tokenizer: of a folder that is not
  // supported both may be missing, and the architecture says more.
  C3PO_RETURN_IF_ERROR(CheckFolder(folder.string()));
  C3PO_ASSIGN_OR_RETURN(auto tokenizer, Tokenizer::LoadFolder(folder.string()));
  SetComputeThreads(config.threads, config.pin_threads);
  MoeModelOptions options;
  options.folder = folder.string();
  options.device = config.device;
  options.dtype = config.dtype;
  options.arithmetic = config.arithmetic;
  options.kv_cache_dtype = config.kv_cache_dtype;
  options.weights = config.weights;
  options.neighbor_cache_bytes = int64_t{config.neighbor_cache_mb} << 20;
  options.progress = [](int done, int total) {
    Log(LogLevel::kDebug, "layer_loaded", "", {{"done", done}, {"total", total}});
  };
  const absl::Time start = SteadyNow();
  C3PO_ASSIGN_OR_RETURN(server.model, MoeModel::Load(options));
  const ModelShape& shape = server.model->shape();
  C3PO_ASSIGN_OR_RETURN(const GenerationConfig generation,
                        GenerationConfig::Read(folder.string(), shape.vocabulary_size));
  Log(LogLevel::kInfo, "model_loaded", "",
      {{"name", shape.name},
       {"folder", folder.string()},
       {"architecture", shape.architecture},
       {"dtype", shape.dtype},
       {"weights", shape.weights},
       {"weight_bytes", server.model->weight_bytes()},
       {"arithmetic", shape.arithmetic},
       {"kv_cache_dtype", shape.kv_cache_dtype},
       {"device", shape.device},
       {"parameters", shape.parameters},
       {"threads", ComputeThreads()},
       {"digest", shape.digest},
       {"end_tokens", absl::StrJoin(shape.eos_token_ids, ",")},
       {"generation_config_left", absl::StrJoin(generation.left, ",")},
       {"seconds", absl::ToDoubleSeconds(SteadyNow() - start)}});
  Chat chat = std::shared_ptr<ChatRenderer>();
  C3PO_RETURN_IF_ERROR(OpenChat(config, folder, chat));
  if (chat.ok()) server.chat = *chat;
  FormCompiler::Options forms;
  forms.waiting_max = static_cast<size_t>(config.pending_requests_max);
  forms.on_killed = [](absl::string_view why) { Log(LogLevel::kWarning, "form_process_ended", "", {{"reason", why}}); };
  server.forms = std::make_unique<FormCompiler>(VocabularyOf(*tokenizer, shape.vocabulary_size, shape.eos_token_ids),
                                                std::move(forms));
  server.text =
      std::make_unique<PromptText>(std::move(tokenizer), std::move(chat), shape.context_window, shape.vocabulary_size);
  return absl::OkStatus();
}

absl::Status LoadEmbedder(const ServerConfig& config, Server& server) {
  const std::string& folder = server.embedder_folder.path;
  std::shared_ptr<Embedder> encoder;
  if (config.embedder != kModelAsEmbedder) {
    C3PO_ASSIGN_OR_RETURN(auto tokenizer, Tokenizer::Load((std::filesystem::path(folder) / "tokenizer.json").string()));
    const auto encode = [tokenizer](absl::string_view text) {
      return tokenizer->Encode(text, /*add_special_tokens=*/true);
    };
    C3PO_ASSIGN_OR_RETURN(std::unique_ptr<DeviceQueue> queue, server.model->backend().NewQueue());
    const auto weights =
        config.embedder_dtype == "bfloat16" ? SentenceEncoder::Weights::kBfloat16 : SentenceEncoder::Weights::kFloat32;
    C3PO_ASSIGN_OR_RETURN(std::unique_ptr<SentenceEncoder> loaded,
                          SentenceEncoder::Load(folder, std::move(queue), encode, weights));
    server.encoder_bytes = loaded->weight_bytes();
    encoder = std::move(loaded);
  }
  const ModelShape& shape = server.model->shape();
  server.embedding =
      std::make_unique<QueryEmbedding>(std::move(encoder), shape, DefaultsFrom(config, shape).critical_layers.front());
  Log(LogLevel::kInfo, "embedder_loaded", "",
      {{"name", server.embedding->name()}, {"dimension", server.embedding->dimension()}});
  return absl::OkStatus();
}

// A database may be started beside the server. What else is wrong with the store ends the start at once.
absl::StatusOr<std::unique_ptr<ReferenceStore>> OpenStore(const ServerConfig& config, const StoreOptions& options) {
  const absl::Time deadline = SteadyNow() + absl::Seconds(config.store_wait_seconds);
  while (true) {
    absl::StatusOr<std::unique_ptr<ReferenceStore>> store = OpenReferenceStore(config.store, options);
    if (store.ok() || !IsStoreAway(store.status())) return store;
    if (SteadyNow() >= deadline) {
      return absl::UnavailableError(absl::StrCat(store.status().message(), "; the server waited ",
                                                 config.store_wait_seconds, " seconds for it (--store-wait-seconds)"));
    }
    Log(LogLevel::kWarning, "store_awaited", "", {{"reason", store.status().message()}});
    absl::SleepFor(kStorePoll);
  }
}

absl::Status OpenReferences(const ServerConfig& config, Server& server) {
  const std::string beside = IsPostgresLocation(config.store) ? "" : config.store + ".graphs";
  const std::string graphs = config.graph_cache.empty() ? beside : config.graph_cache;
  StoreOptions store_options;
  if (!graphs.empty()) store_options.trace_folders = {graphs};
  C3PO_ASSIGN_OR_RETURN(server.store, OpenStore(config, store_options));
  server.feed = std::make_unique<StoreFeed>(server.store.get());
  if (const std::string problem = server.store->empty_problem(); !problem.empty()) {
    Log(LogLevel::kWarning, "store_empty", "", {{"store", server.store->location()}, {"reason", problem}});
  }
  const ModelShape& shape = server.model->shape();
  CatalogOptions options;
  options.model_digest = shape.digest;
  options.embedder_digest = server.embedding->digest();
  options.embedding_dimension = server.embedding->dimension();
  options.moe_layers = shape.moe_layers;
  options.experts = shape.experts;
  options.hidden_size = shape.hidden_size;
  options.exact_references_max = config.exact_references_max;
  options.graph_cache_folder = graphs;
  const int64_t index_bytes = int64_t{config.index_memory_mb} << 20;
  C3PO_ASSIGN_OR_RETURN(server.index_device,
                        PlaceIndex(config.index_device, config.device, index_bytes, server.metrics.get()));
  options.index_device = server.index_device.get();
  C3PO_ASSIGN_OR_RETURN(server.catalog, ReferenceCatalog::Open(server.feed.get(), options));
  C3PO_RETURN_IF_ERROR(CheckIndexRoom(config.index_device, options.index_device));
  server.shifts = std::make_unique<LearnedShifts>(server.feed.get(), shape.digest, server.metrics.get());
  C3PO_RETURN_IF_ERROR(server.shifts->ReadPriors());
  server.offsets =
      std::make_unique<LabelOffsets>(server.feed.get(), shape.digest, server.embedding->digest(), server.metrics.get());
  C3PO_RETURN_IF_ERROR(server.offsets->ReadAll());
  const OptimizationSettings defaults = DefaultsFrom(config, shape);
  C3PO_RETURN_IF_ERROR(ValidateSettings(defaults, shape));
  server.profiles = std::make_unique<Profiles>(server.feed.get(), server.shifts.get(), server.metrics.get(), shape,
                                               server.embedding->digest(), defaults);
  C3PO_RETURN_IF_ERROR(server.profiles->Open());
  if (const std::string problem = server.store->index_problem(); !problem.empty()) {
    Log(LogLevel::kWarning, "store_indexes_rebuilt", "", {{"store", server.store->location()}, {"reason", problem}});
  }
  server.store_watch = std::make_unique<StoreWatch>(server.store.get(), server.metrics.get());
  StoreFollower::Options following;
  following.wait_max = absl::Seconds(config.generation_wait_seconds_max);
  C3PO_ASSIGN_OR_RETURN(server.follower,
                        StoreFollower::Start(server.feed.get(), server.catalog.get(), server.metrics.get(), following));
  for (const std::string& refused : server.catalog->startup().refused_files) {
    Log(LogLevel::kWarning, "graph_refused", "", {{"reason", refused}});
  }
  for (const CatalogCollection& collection : server.catalog->Collections()) {
    const bool whole = collection.usable == collection.references;  // Else: made with another model or embedder.
    Log(whole ? LogLevel::kInfo : LogLevel::kWarning, "collection_opened", "",
        {{"collection", collection.name}, {"references", collection.references}, {"usable", collection.usable}});
  }
  return absl::OkStatus();
}

// OpenAI's protocol, beside gRPC's.
absl::Status StartHttp(const ServerConfig& config, Server& server) {
  if (config.http_listen.empty()) return absl::OkStatus();
  HttpPort::Options options;
  options.address = config.http_listen;
  options.accepted = server.grpc->connection_limits();
  options.accepted.port = Metrics::Port::kHttp;
  options.limits.body_bytes_max = static_cast<size_t>(config.message_bytes_max);
  options.limits.unread_max = absl::Seconds(config.unread_seconds_max);
  if (config.connection_age_seconds_max > 0) options.limits.age_max = absl::Seconds(config.connection_age_seconds_max);
  options.tls = server.grpc->tls();
  C3PO_ASSIGN_OR_RETURN(server.openai,
                        HttpPort::Start(options, server.metrics.get(), OpenAiRouter(server.grpc->parts())));
  return absl::OkStatus();
}

// All ports are open before the model is there: they say that it is being loaded.
absl::Status StartListening(const ServerConfig& config, Server& server) {
  server.metrics = std::make_unique<Metrics>(server.model_folder.name, kVersion);
  C3PO_ASSIGN_OR_RETURN(server.tracing, OtlpTracing::Make(config, kVersion, server.metrics.get(), EnvironmentVariable));
  const Tracer* const tracer = server.tracing ? &server.tracing->tracer() : nullptr;
  C3PO_ASSIGN_OR_RETURN(server.grpc,
                        GrpcServer::Start(config, server.metrics.get(), {MakeVllmDoor, MakeKserveDoor}, tracer));
  C3PO_RETURN_IF_ERROR(StartHttp(config, server));
  if (config.metrics_port >= 0) {
    const auto ready = [&server] {
      const HealthMonitor* health = server.known_health.load();
      const bool reached = server.grpc->accepting() && (server.openai == nullptr || server.openai->accepting());
      return health != nullptr && health->serving() && reached;
    };
    const auto alive = [&server] {
      const HealthMonitor* health = server.known_health.load();
      return health == nullptr || !health->stalled();
    };
    C3PO_ASSIGN_OR_RETURN(
        server.http, HttpServer::Start(config.metrics_address, config.metrics_port, server.metrics.get(), ready, alive,
                                       HttpLimits(), [&server] { return server.grpc->Warnings(); }));
  }
  Log(LogLevel::kInfo, "listening", "",
      {{"address", AddressOf(config, server)},
       {"metrics_port", MetricsPortOf(server)},
       {"http_port", HttpPortOf(server)}});
  return absl::OkStatus();
}

// For optimizations. A larger model has larger states, and a machine that it fits has more to spare.
int64_t WorkMemory(const ServerConfig& config, const Server& server) {
  if (config.work_memory_mb > 0) return int64_t{config.work_memory_mb} << 20;
  return std::max<int64_t>(int64_t{512} << 20, server.model->weight_bytes() / 4);
}

// The cache's size, and how the memory of a GPU is planned where the model or the references are in one.
absl::StatusOr<CachePlan> PlanMemory(const ServerConfig& config, const Server& server) {
  const Backend& backend = server.model->backend();
  const IndexDevice* const index = server.index_device.get();
  CacheSettings settings;
  settings.fraction = config.gpu_memory_fraction;
  settings.positions = config.kv_cache_tokens;
  settings.block_positions = KvBlockPool::kPositions;
  settings.context_window = server.model->shape().context_window;
  settings.reference_bytes = int64_t{config.neighbor_cache_mb} << 20;
  settings.work_bytes = WorkMemory(config, server);
  settings.encoder_bytes = server.encoder_bytes;
  if (index != nullptr) {
    settings.index_bytes_max = index->budget_bytes();
    settings.index_bytes = index->bytes_in_use();
  }
  C3PO_ASSIGN_OR_RETURN(CachePlan plan, PlanCache(backend, settings));
  if (plan.device || index == nullptr) return plan;
  Backend::OwnMemory memory;
  C3PO_RETURN_IF_ERROR(server.index_device->Check(index->runtime().MemoryInfo(&memory.free_bytes, &memory.bytes)));
  C3PO_ASSIGN_OR_RETURN(plan.device,
                        PlanIndexAlone(memory, settings.fraction, settings.index_bytes_max, settings.index_bytes));
  return plan;
}

// How the memory of a GPU is planned, by part.
void ReportGpuMemory(const DevicePlan& plan, Metrics& metrics) {
  using Part = Metrics::MemoryPart;
  for (const auto& [part, bytes] : {std::pair(Part::kWeights, plan.weights),
                                    {Part::kKvCache, plan.kv_cache},
                                    {Part::kNeighborCache, plan.reference_states},
                                    {Part::kWork, plan.work},
                                    {Part::kEncoder, plan.encoder},
                                    {Part::kIndex, plan.index},
                                    {Part::kOther, plan.other}}) {
    metrics.SetGpuMemoryPlanned(part, bytes);
  }
  metrics.SetGpuMemoryLimit(plan.limit_bytes());
  Log(LogLevel::kInfo, "gpu_memory", "",
      {{"weights_bytes", plan.weights},
       {"kv_cache_bytes", plan.kv_cache},
       {"reference_states_bytes_max", plan.reference_states},
       {"index_bytes_max", plan.index},
       {"work_bytes_max", plan.work},
       {"encoder_bytes", plan.encoder},
       {"other_bytes", plan.other},
       {"bytes_at_most", plan.all()},
       {"limit_bytes", plan.limit_bytes()},
       {"device_bytes", plan.device_bytes}});
}

// Once everything is loaded and no cache is used: what it takes of the host's memory, and what it will take when the
// caches are full.
void ReportMemory(const ServerConfig& config, const Server& server) {
  using Part = Metrics::MemoryPart;
  const int64_t resident = ReadProcessUsage().value_or(ProcessUsage()).resident_bytes;
  const bool on_host = server.model->backend().info().host_memory;
  const auto here = [on_host](int64_t bytes) { return on_host ? bytes : 0; };  // Else it is in the GPU's plan.
  const int64_t weights = here(server.model->weight_bytes()), encoder = here(server.encoder_bytes);
  const int64_t index = server.catalog->MemoryBytes();
  const int64_t other = std::max<int64_t>(0, resident - index - weights - encoder);
  const int64_t kv_cache = here(server.model->kv_cache_bytes());
  const int64_t neighbor_cache = here(int64_t{config.neighbor_cache_mb} << 20), work = here(WorkMemory(config, server));
  const int64_t at_most = resident + kv_cache + neighbor_cache + work;
  const int64_t machine = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
  const int64_t limit = std::min(machine, ReadCgroupLimits().memory_bytes.value_or(machine));
  for (const auto& [part, bytes] : {std::pair(Part::kWeights, weights),
                                    {Part::kKvCache, kv_cache},
                                    {Part::kNeighborCache, neighbor_cache},
                                    {Part::kWork, work},
                                    {Part::kEncoder, encoder},
                                    {Part::kIndex, index},
                                    {Part::kOther, other}}) {
    server.metrics->SetMemoryPlanned(part, bytes);
  }
  server.metrics->SetMemoryLimit(limit);
  Log(at_most > limit ? LogLevel::kWarning : LogLevel::kInfo, at_most > limit ? "memory_short" : "memory", "",
      {{"weights_bytes", weights},
       {"encoder_bytes", encoder},
       {"index_bytes", index},
       {"other_bytes", other},
       {"resident_bytes", resident},
       {"kv_cache_bytes_max", kv_cache},
       {"neighbor_cache_bytes_max", neighbor_cache},
       {"work_bytes_max", work},
       {"bytes_at_most", at_most},
       {"limit_bytes", limit}});
}

absl::Status StartServing(const ServerConfig& config, Server& server, ProcessSignals& signals) {
  const ModelShape& shape = server.model->shape();
  server.metrics->SetModel(shape.digest, shape.dtype, shape.device);
  server.metrics->SetPendingMax(config.pending_requests_max);
  C3PO_ASSIGN_OR_RETURN(const CachePlan plan, PlanMemory(config, server));
  const int64_t cache_tokens = plan.positions;
  if (plan.device) ReportGpuMemory(*plan.device, *server.metrics);
  C3PO_RETURN_IF_ERROR(server.model->AllocateKvCache(KvBlockPool::CacheOf(cache_tokens)));
  const int64_t work_memory = WorkMemory(config, server) / 2;  // The other half is for learning.
  const BatcherLimits limits{config.running_sequences_max, static_cast<int>(cache_tokens),
                             config.prefill_tokens_per_step, work_memory};
  server.admission = std::make_unique<AdmissionController>(
      AdmissionLimits{config.pending_requests_max, config.pending_tokens_max, config.running_sequences_max});
  server.engine =
      std::make_unique<Engine>(server.model.get(), limits, config.pending_requests_max, server.metrics.get());
  server.workers = std::make_unique<WorkerPool>(config.workers, config.pending_requests_max);
  server.states = std::make_unique<ReferenceStateBuilder>(server.engine.get(), server.catalog.get(), server.text.get());
  LoadedParts parts;
  parts.pipeline_parts = {.model = server.model.get(),
                          .engine = server.engine.get(),
                          .catalog = server.catalog.get(),
                          .text = server.text.get(),
                          .embedding = server.embedding.get(),
                          .workers = server.workers.get(),
                          .shifts = server.shifts.get(),
                          .states = server.states.get(),
                          .offsets = server.offsets.get(),
                          .metrics = server.metrics.get(),
                          .admission = server.admission.get(),
                          .forms = server.forms.get(),
                          .limits = LimitsFrom(config, shape),
                          .work_memory_bytes = work_memory,
                          .allow_oracle = config.allow_oracle};
  server.pipeline = std::make_unique<GenerationPipeline>(parts.pipeline_parts);
  server.learning =
      std::make_unique<CollectionLearning>(parts.pipeline_parts, server.store.get(), config.learning_calls_max);
  ReportReferences(*server.catalog, server.metrics.get());
  ReportRecall(*server.catalog, server.metrics.get());
  parts.pipeline = server.pipeline.get();
  parts.learning = server.learning.get();
  parts.profiles = server.profiles.get();
  parts.store = server.store.get();
  parts.store_watch = server.store_watch.get();
  parts.feed = server.feed.get();
  parts.follower = server.follower.get();
  parts.default_sampling.max_tokens = config.max_tokens_default;
  parts.kv_cache_tokens = cache_tokens;
  parts.version = kVersion;
  parts.model_folder = server.model_folder.path;
  signals.Serving();  // From the first call on, a signal to stop drains.
  server.grpc->Open(parts);
  server.health = std::make_unique<HealthMonitor>(
      server.grpc.get(), [engine = server.engine.get()] { return engine->StalledFor(); },
      absl::Seconds(config.stall_seconds_max), [watch = server.store_watch.get()] { return watch->lost(); },
      [&signals] { signals.StopServing(); });
  server.known_health = server.health.get();
  // What loading needed and serving does not.
  malloc_trim(0);
  ReleaseCodePages();
  KeepWhatAStepFrees();
  server.heap_trim = std::make_unique<HeapTrim>();
  ReportMemory(config, server);
  Log(LogLevel::kInfo, "serving", "",
      {{"address", AddressOf(config, server)},
       {"metrics_port", MetricsPortOf(server)},
       {"http_port", HttpPortOf(server)}});
  return absl::OkStatus();
}

// What was let in is served to its end, within the limit; what is left then ends with Unavailable.
void Drain(const ServerConfig& config, Server& server) {
  Log(LogLevel::kInfo, "draining", "", {{"pending", server.admission->pending()}});
  // In this order: whoever has been told NOT_SERVING is turned away.
  server.grpc->CloseEntrance();
  if (server.openai) server.openai->Drain();
  server.health->Drain();
  const absl::Time deadline = SteadyNow() + absl::Seconds(config.drain_seconds_max);
  while (server.admission->pending() > 0 && SteadyNow() < deadline) absl::SleepFor(kDrainPoll);
  server.engine->Stop(deadline - SteadyNow());
  {
    const EndBound bound(kEndMax, [] {
      Log(LogLevel::kError, "end_forced", "", {{"reason", "calls were lost, and gRPC waits for them without end"}});
      FlushLog(kLastLines);
    });
    if (server.openai) server.openai->Shutdown(absl::Seconds(1));
    server.grpc->Shutdown(absl::Seconds(1));
  }
  if (server.tracing != nullptr) server.tracing->Stop();
  if (const absl::Status saved = server.catalog->SaveGraphs(); !saved.ok()) {
    Log(LogLevel::kWarning, "graphs_not_saved", "", {{"reason", saved.message()}});
  }
  Log(LogLevel::kInfo, "stopped", "");
}

absl::Status StartAll(const ServerConfig& config, Server& server, ProcessSignals& signals) {
  C3PO_RETURN_IF_ERROR(FindFolders(config, server));
  C3PO_RETURN_IF_ERROR(StartListening(config, server));
  C3PO_RETURN_IF_ERROR(LoadModel(config, server));
  C3PO_RETURN_IF_ERROR(LoadEmbedder(config, server));
  C3PO_RETURN_IF_ERROR(OpenReferences(config, server));
  return StartServing(config, server, signals);
}

// The first line: what was asked for, by whom, and who may call.
void LogConfiguration(const ServerConfig& config, const SettingOrigins& origins, int64_t descriptors_max) {
  Log(LogLevel::kInfo, "configuration", "",
      {{"version", kVersion},
       {"flags", absl::StrJoin(origins.flags, ", ")},
       {"environment", absl::StrJoin(origins.environment, ", ")},
       {"file", absl::StrJoin(origins.file, ", ")},
       {"file_path", origins.file_path},
       {"callers", config.Callers()},
       {"descriptors_max", descriptors_max}});
  for (const std::string& warning : origins.warnings) {
    Log(LogLevel::kWarning, "variable_unread", "", {{"reason", warning}});
  }
}

// c3pod prepare-store URL: what only the owner of a database's tables may do, so that servers need not be him.
int PrepareStoreMain(int argc, char** argv) {
  if (argc != 2 || !IsPostgresLocation(argv[1])) {
    std::cerr << "usage: c3pod prepare-store postgresql://OWNER@HOST:PORT/DATABASE\n"
                 "Makes the tables of a store, or brings them to this version. Passwords: PGPASSFILE, PGPASSWORD.\n";
    return 2;
  }
  const auto store = OpenReferenceStore(argv[1]);
  if (!store.ok()) {
    std::cerr << "c3pod: " << store.status().message() << "\n";
    return 1;
  }
  std::cout << (*store)->location() << ": ready, at generation " << (*store)->generation() << "\n";
  return 0;
}

int Main(int argc, char** argv) {
  OpenClosedStandardStreams();
  if (argc == 2 && std::string(argv[1]) == kFormProcessArgument) return RunFormProcess();
  if (argc > 1 && std::string(argv[1]) == "inspect") return InspectMain(argc - 1, argv + 1);
  if (argc > 1 && std::string(argv[1]) == "quantize") return QuantizeMain(argc - 1, argv + 1);
  if (argc > 1 && std::string(argv[1]) == "prepare-store") return PrepareStoreMain(argc - 1, argv + 1);
  ServerConfig config;
  SettingOrigins origins;
  const auto action = ParseCommandLine(argc, argv, kVersion, config, origins);
  if (!action.ok()) {
    std::cerr << "c3pod: " << action.status().message() << "\n";
    return 2;
  }
  if (*action != CommandLineAction::kRun) return 0;
  SetLogLevel(*ParseLogLevel(config.log_level));
  LimitHeapArenas();
  ProcessSignals signals([] { FlushLog(kLastLines); });
  WriteLogInBackground(kLogLinesMax);
  LogForGrpc();
  LogEscapedExceptions();
  LogConfiguration(config, origins, RaiseDescriptorLimit());
  Server server;
  const auto start = [&] { return StartAll(config, server, signals); };
  if (const absl::Status status = CatchEscaped(ThreadKind::kMain, start); !status.ok()) {
    FlushLog(kLastLines);
    std::cerr << "c3pod: " << status.message() << "\n";
    return 1;
  }
  signals.OnReload([&server] { server.grpc->ReadFilesAgain(); });
  signals.AwaitStop();
  Drain(config, server);
  signals.OnReload(nullptr);
  FlushLog(kLastLines);
  return DeviceFailure().ok() ? 0 : 4;
}

}  // namespace
}  // namespace c3po

int main(int argc, char** argv) { return c3po::Main(argc, argv); }
