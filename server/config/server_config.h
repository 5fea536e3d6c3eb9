#ifndef C3PO_SERVER_CONFIG_SERVER_CONFIG_H_
#define C3PO_SERVER_CONFIG_SERVER_CONFIG_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace c3po {

inline constexpr char kModelAsEmbedder[] = "model";  // Of ServerConfig::embedder.

// A path below the folder that deploy/fetch_models.sh fills: $C3PO_CACHE_DIR, or ~/.cache/c3po.
std::string InCacheFolder(const std::string& path);

// Everything c3pod can be told, with its limits. One struct, validated once, listed by --print-config. Flags are the
// fields' names with dashes; every one can also stand in a TOML file (--config) or in the environment (C3PO_ and
// capitals).
struct ServerConfig {
  // Model
  // Hugging Face folder, GGUF file (of a split one the first part), or ORG/NAME of the hub's cache.
  std::string model = InCacheFolder("models/smollm2-135m-moe");
  std::string revision;       // Of a --model ORG/NAME: branch, tag or commit; empty: main.
  std::string chat_template;  // File of a chat template in place of the model's; empty: the model's own.
  std::string chat_python = "/usr/bin/python3";  // With jinja2: renders chat templates of no known format.
  std::string device = "cpu";                    // cpu, cuda
  std::string dtype = "auto";                    // auto, float32, bfloat16
  std::string arithmetic = "auto";               // of products on the CPU: auto, float32, bfloat16
  std::string kv_cache_dtype = "auto";           // of keys and values, references' too: auto, float32, bfloat16
  std::string weights = "auto";                  // how the large matrices are held: auto, float32, bfloat16, int8, int4
  // A sentence encoder, named as a model is, or "model": the model's own hidden states.
  std::string embedder = InCacheFolder("models/all-minilm-l6-v2");
  std::string embedder_dtype = "float32";  // Of its layers' matrices: or bfloat16.
  std::string embedder_revision;           // Of an --embedder ORG/NAME; empty: main.
  int threads = 0;                         // That the model computes on; 0: one per processor of affinity and quota.
  bool pin_threads = false;  // Each stays on a core of its own: for a machine that nothing else keeps busy.

  // References
  std::string store = "c3po.db";      // SQLite file, created if absent; or a PostgreSQL URL, which servers share.
  int store_wait_seconds = 60;        // For a database that is away when the server starts; then it ends.
  std::string graph_cache;            // Folder of index graphs; empty: STORE + ".graphs" beside a file, none of a URL.
  int exact_references_max = 2000;    // Larger collections are searched through an HNSW graph.
  std::string index_device = "auto";  // Where references are searched: auto (as `device`), cpu, cuda
  int index_memory_mb = 0;            // Of a GPU, for them; 0: a sixteenth of it, at most 8192.

  // Listening
  std::string listen = "127.0.0.1:50051";  // gRPC; port 0 chooses one.
  std::string http_listen;                 // OpenAI's HTTP protocol; empty: none; port 0 chooses one.
  std::string tls_cert;                    // Certificate chain in PEM; empty: no TLS.
  std::string tls_key;                     // Its private key.
  std::string tls_client_ca;               // Clients need a certificate signed by one of these.
  bool insecure = false;                   // Listen beyond this machine without TLS.
  std::string auth_tokens;                 // File of callers (admission/access_control.h); empty: everyone may call.
  std::string metrics_address = "127.0.0.1";
  int metrics_port = 9464;  // HTTP: /metrics, /healthz, /readyz; 0 chooses one, -1: none.

  // Limits
  int pending_requests_max = 256;        // Waiting or running; beyond: RESOURCE_EXHAUSTED.
  int pending_tokens_max = 1 << 20;      // That these cost: prompts, room for answers, optimizations; beyond: the same.
  int prompt_tokens_max = 0;             // Of one request; beyond: INVALID_ARGUMENT. 0: the context window.
  int output_tokens_max = 0;             // max_tokens of one request; the same.
  int stop_strings_max = 16;             // Of one request.
  int stop_string_bytes_max = 1024;      // Of each.
  int continuations_max = 256;           // Of one Score request.
  int answers_max = 16;                  // sampling.n of one Generate request.
  int logit_bias_max = 512;              // Entries of sampling.logit_bias.
  int experts_per_token_max = 0;         // Of one request; 0: twice the model's own number, or what there is.
  int running_sequences_max = 32;        // In one batch.
  int kv_cache_tokens = 0;               // Positions of all sequences together; 0: 32768, or what fits on a GPU.
  double gpu_memory_fraction = 0.9;      // Of a GPU's memory, that the server takes, index of references included.
  int prefill_tokens_per_step = 256;     // Prompt tokens in one engine step.
  int max_tokens_default = 256;          // Of a request that sets none.
  int message_bytes_max = 16 << 20;      // One gRPC message.
  int unread_messages_max = 8192;        // That a call's client has not read; beyond, the call is cut off.
  int caller_calls_max = 1024;           // In flight of one caller; beyond: RESOURCE_EXHAUSTED. 0: no limit.
  int caller_calls_per_minute_max = 0;   // Of one caller whose token says nothing else. 0: no limit.
  int caller_tokens_per_minute_max = 0;  // Through the model (RequestWork::Cost), the same.
  int watches_max = 1024;                // Watch streams of grpc.health.v1 at once; beyond: RESOURCE_EXHAUSTED.
  int address_watches_max = 64;          // Of these from one address.
  int call_memory_mb = 512;              // Of requests and answers that calls hold; half of it for one caller.
  int generation_wait_seconds_max = 10;  // That a call waits for its min_index_generation; then UNAVAILABLE.
  int import_streams_max = 16;           // Add streams at once; half of them for one caller.
  int unread_seconds_max = 60;           // A chunk of a backup that its client does not read; then it is cut off.
  int connections_max = 1024;            // To the gRPC port, at once.
  int address_connections_max = 256;     // Of these from one address.
  int transport_memory_mb = 512;         // That gRPC may hold for connections and messages.
  int connection_streams_max = 256;      // Calls at once on one connection; further ones wait at the client.
  int connection_age_seconds_max = 0;    // Then a connection is closed in peace, +-10 %; 0: never.
  int connection_age_grace_seconds_max = 60;  // For the calls that still run on it.
  int neighbor_cache_mb = 256;                // Fixed states of references.
  int work_memory_mb = 0;      // Half of it that requests take to optimize, half for learning; 0: by the model.
  int learning_calls_max = 2;  // TunePrior, AmortizeShifts and TuneOffset calls at once.
  int workers = 2;             // Threads that tokenize, embed and search.
  int drain_seconds_max = 30;  // After SIGTERM, for running streams.
  int stall_seconds_max = 60;  // With work, and no step of the engine ended: NOT_SERVING.

  // C3PO defaults of requests that set none: see DefaultSettings.
  std::string method = "ngd";  // none, mode, kernel, ngd
  int neighbors = 12;
  int validation_neighbors = 12;
  int steps = 8;
  double learning_rate = 0.05;
  int critical_layers = 0;                 // The last so many MoE layers; 0: a quarter of them, 5 to 8.
  int core_experts = 0;                    // 0: all.
  std::string application_rule = "shift";  // last, every, shift
  std::string references = "all";          // successful, all
  std::string objective = "choices";       // answer, choices, pairs
  std::string collection = "default";
  double gate_distance_quantile = 0.95;  // GateOptions::neighbor_distance_quantile

  // Evaluation: Score requests may bring their own answer and have it optimized for. Where there are tokens, the role
  // administer decides instead.
  bool allow_oracle = false;

  // Traces: OpenTelemetry's, sent to a collector over OTLP/gRPC (server/README.md, "Traces").
  std::string otlp_traces_endpoint;       // http://HOST:PORT or https://HOST:PORT; empty: nothing is traced.
  std::string otlp_traces_ca;             // Certificates (PEM) that sign the collector's; empty: the system's.
  double otlp_traces_sample_ratio = 1.0;  // Of calls that bring no trace of their own.
  std::string otlp_service_name;          // Empty: OTEL_SERVICE_NAME, or "c3pod".

  std::string log_level = "info";  // debug, info, warning, error

  // InvalidArgument names the field by its flag.
  absl::Status Validate() const;
  // Every field as "name = value" lines, a valid --config file.
  std::string ToText() const;
  // Whether tokens cross the network unencrypted: there are tokens, no TLS, and others than this machine can connect.
  bool TokensInPlaintext() const;
  // Who may call, in words: "anyone on loopback", "who holds a token of FILE who reaches 0.0.0.0:50051".
  std::string Callers() const;
  // The fields that the list of settings marks as limits, by name, for GetServerInfo.
  std::map<std::string, uint64_t> Limits() const;
};

enum class CommandLineAction { kRun, kPrintConfig, kExit };

// Where settings come from, each as "name = value" in the order of --print-config; what is in none of the lists has its
// default.
struct SettingOrigins {
  std::vector<std::string> flags;
  std::vector<std::string> environment;
  std::vector<std::string> file;
  std::string file_path;              // --config; empty: none.
  std::vector<std::string> warnings;  // Of variables C3PO_... that no setting reads, one line each.
};

// Fills `config` from the command line, the environment and the file of --config, in this order of precedence. An empty
// variable counts as unset. kExit: --help or --version was printed.
//
// InvalidArgument: an unknown flag; a value of the wrong type, naming flag, variable or "FILE: line N"; a key of the
// file that no setting has, naming the nearest one; what is not TOML (toml_settings.h); or Validate's verdict.
// NotFound: the file cannot be read.
absl::StatusOr<CommandLineAction> ParseCommandLine(int argc, char** argv, const std::string& version,
                                                   ServerConfig& config, SettingOrigins& origins);

}  // namespace c3po

#endif  // C3PO_SERVER_CONFIG_SERVER_CONFIG_H_
