#ifndef C3PO_SERVER_CONFIG_SETTING_LIST_H_
#define C3PO_SERVER_CONFIG_SETTING_LIST_H_

#include <type_traits>

#include "server/config/server_config.h"

namespace c3po {

struct Setting {
  const char* flag;  // without dashes
  const char* help;
  bool is_limit;  // of what clients may ask or hold: GetServerInfo tells it
};

// Calls visit(const Setting&, field) for every field: flags, the printed file, limits and their tests cannot drift
// apart. Long because every setting is one line of it.
template <typename Config, typename Visit>
void VisitSettings(Config& c, Visit visit) {
  const auto setting = [&visit](const char* flag, auto& field, const char* help) {
    visit(Setting{flag, help, /*is_limit=*/false}, field);
  };
  const auto limit = [&visit](const char* flag, auto& field, const char* help) {
    static_assert(std::is_same_v<std::decay_t<decltype(field)>, int>, "limits are numbers");
    visit(Setting{flag, help, /*is_limit=*/true}, field);
  };
  setting(
      "model", c.model,
      "Hugging Face folder or GGUF file of the model, or its name ORG/NAME on the hub, found in its cache; nothing is "
      "downloaded");
  setting("revision", c.revision, "branch, tag or commit of a --model ORG/NAME; empty: main");
  setting("chat-template", c.chat_template,
          "file of a Jinja chat template in place of the model's own; empty: the model's");
  setting("chat-python", c.chat_python,
          "Python with the package jinja2, which renders chat templates of no known format, tools and documents");
  setting("device", c.device, "cpu or cuda");
  setting("dtype", c.dtype, "auto, float32 or bfloat16");
  setting("arithmetic", c.arithmetic,
          "of products on the CPU: float32; bfloat16, where the processor has a unit for it; auto: where it has one");
  setting(
      "kv-cache-dtype", c.kv_cache_dtype,
      "of keys and values, the KV cache's and references': float32, bfloat16; auto: bfloat16 unless the weights are "
      "float32");
  setting("weights", c.weights,
          "how experts, projections and LM head are held: int8 or int4, quantized at load; float32 or bfloat16; auto: "
          "as stored where the folder is quantized, else as dtype");
  setting("embedder", c.embedder,
          "sentence encoder, a folder or ORG/NAME as for --model; or \"model\" for the model's own hidden states");
  setting("embedder-dtype", c.embedder_dtype,
          "how the encoder's matrices are held: float32, or bfloat16, half the memory and a digest of its own");
  setting("embedder-revision", c.embedder_revision, "branch, tag or commit of an --embedder ORG/NAME; empty: main");
  setting("threads", c.threads,
          "threads that the model computes on; 0: one per processor that affinity and the cgroup's quota allow");
  setting("pin-threads", c.pin_threads, "keep each of them on a core of its own");
  setting("store", c.store,
          "SQLite file of the references, or postgresql://USER@HOST:PORT/DATABASE, which several servers share");
  setting("store-wait-seconds", c.store_wait_seconds,
          "seconds to wait for a database that does not answer when the server starts; then it ends");
  setting("graph-cache", c.graph_cache,
          "folder of index graphs; empty: STORE.graphs beside a file, none of a database");
  limit("exact-references-max", c.exact_references_max, "larger collections are searched through an HNSW graph");
  setting(
      "index-device", c.index_device,
      "where references are searched: cpu; cuda, in the memory of a GPU; auto: as --device, and cpu where that fails");
  setting("index-memory-mb", c.index_memory_mb,
          "MiB of a GPU's memory kept for references' vectors, graphs and pathways, 16 at least; what has no room is "
          "searched on the CPU; 0: a sixteenth of that memory, at most 8192");
  setting("listen", c.listen, "gRPC address:port, port 0 chooses one; or unix:PATH");
  setting("http-listen", c.http_listen,
          "address:port of OpenAI's HTTP protocol (/v1/chat/completions ...), with the TLS, tokens and limits of "
          "--listen; port 0 chooses one; empty: none");
  setting("tls-cert", c.tls_cert, "certificate chain (PEM) to serve TLS with; read again when it changes");
  setting("tls-key", c.tls_key, "private key (PEM) of --tls-cert");
  setting("tls-client-ca", c.tls_client_ca, "certificates (PEM) that sign clients' certificates: mutual TLS");
  setting("insecure", c.insecure, "listen beyond this machine without TLS");
  setting("auth-tokens", c.auth_tokens,
          "file of callers: NAME ROLE SHA256 a line, then collections and rates; see server/README.md");
  setting("metrics-address", c.metrics_address, "address of the HTTP door");
  setting("metrics-port", c.metrics_port, "port of /metrics, /healthz, /readyz; 0 chooses one, -1: none");
  limit("pending-requests-max", c.pending_requests_max, "requests waiting or running; beyond: RESOURCE_EXHAUSTED");
  limit("pending-tokens-max", c.pending_tokens_max,
        "tokens that those requests cost: prompts, room for answers, and what their optimizations compute");
  limit("prompt-tokens-max", c.prompt_tokens_max, "tokens of one prompt; 0: what the context window holds");
  limit("output-tokens-max", c.output_tokens_max, "tokens of one answer; 0: what the context window leaves");
  limit("stop-strings-max", c.stop_strings_max, "stop strings of one request");
  limit("stop-string-bytes-max", c.stop_string_bytes_max, "bytes of one stop string");
  limit("continuations-max", c.continuations_max, "continuations of one Score request");
  limit("answers-max", c.answers_max, "answers (sampling.n) of one Generate request");
  limit("logit-bias-max", c.logit_bias_max, "entries of one request's sampling.logit_bias");
  limit("experts-per-token-max", c.experts_per_token_max,
        "experts_per_token of one request; 0: twice the model's own number, or as many as it has and the backend runs");
  limit("running-sequences-max", c.running_sequences_max, "sequences in one batch");
  limit("kv-cache-tokens", c.kv_cache_tokens,
        "positions of all sequences together; 0: 32768 on the CPU, on a GPU what gpu-memory-fraction leaves");
  setting("gpu-memory-fraction", c.gpu_memory_fraction, "share of the GPU's memory that the server takes, all told");
  limit("prefill-tokens-per-step", c.prefill_tokens_per_step, "prompt tokens in one engine step");
  setting("max-tokens-default", c.max_tokens_default, "max_tokens of a request that sets none");
  limit("message-bytes-max", c.message_bytes_max, "bytes of one gRPC message");
  limit("unread-messages-max", c.unread_messages_max, "messages a client may leave unread before it is cut off");
  limit("caller-calls-max", c.caller_calls_max, "calls in flight of one caller; 0: no limit");
  limit("caller-calls-per-minute-max", c.caller_calls_per_minute_max,
        "calls a minute of a caller whose token does not say calls/min=; 0: no limit");
  limit("caller-tokens-per-minute-max", c.caller_tokens_per_minute_max,
        "tokens through the model a minute (prompts, answers, choices, neighbors, steps, epochs) of a caller whose "
        "token does not say tokens/min=; 0: no limit");
  limit("watches-max", c.watches_max, "Watch streams of grpc.health.v1 at once");
  limit("address-watches-max", c.address_watches_max, "of these from one address");
  setting("call-memory-mb", c.call_memory_mb, "MiB of requests and unread answers of all calls; half for one caller");
  limit("generation-wait-seconds-max", c.generation_wait_seconds_max,
        "seconds that a call may wait for the generation of the references that it asks for; then UNAVAILABLE");
  limit("import-streams-max", c.import_streams_max, "Add streams at once, half of them for one caller");
  limit("unread-seconds-max", c.unread_seconds_max, "seconds that the client of a backup may read nothing");
  limit("connections-max", c.connections_max, "connections to the gRPC port at once");
  limit("address-connections-max", c.address_connections_max, "of these from one address");
  setting("transport-memory-mb", c.transport_memory_mb, "MiB that gRPC may hold for connections and messages");
  limit("connection-streams-max", c.connection_streams_max, "calls at once on one connection");
  limit("connection-age-seconds-max", c.connection_age_seconds_max,
        "age (+-10 %) at which a connection is closed once its calls have ended; 0: none");
  limit("connection-age-grace-seconds-max", c.connection_age_grace_seconds_max, "seconds for those calls to end");
  limit("neighbor-cache-mb", c.neighbor_cache_mb, "MiB for the fixed states of references");
  setting("work-memory-mb", c.work_memory_mb,
          "MiB: half for requests that optimize at once, half for learning; 0: a quarter of the weights, at least 512");
  limit("learning-calls-max", c.learning_calls_max, "TunePrior, AmortizeShifts and TuneOffset calls at once");
  setting("workers", c.workers, "threads that tokenize, embed and search");
  limit("drain-seconds-max", c.drain_seconds_max, "seconds for running streams after SIGTERM");
  limit("stall-seconds-max", c.stall_seconds_max, "seconds of work without progress, then NOT_SERVING");
  setting("method", c.method, "default method: none, mode, kernel or ngd");
  setting("neighbors", c.neighbors, "default k");
  setting("validation-neighbors", c.validation_neighbors, "default number of further neighbors held out; 0: none");
  setting("steps", c.steps, "default gradient steps");
  setting("learning-rate", c.learning_rate, "default learning rate");
  setting("critical-layers", c.critical_layers,
          "default critical layers: the last so many; 0: a quarter of them, 5 to 8");
  setting("core-experts", c.core_experts, "default core experts per layer; 0: all");
  setting("application-rule", c.application_rule, "default rule: last, every or shift");
  setting("references", c.references, "default references: successful or all");
  setting("objective", c.objective, "default loss: answer, choices or pairs");
  setting("collection", c.collection, "default collection");
  setting("gate-distance-quantile", c.gate_distance_quantile,
          "default: leave alone what is farther from its nearest reference than this share of the references are");
  setting("allow-oracle", c.allow_oracle, "let evaluations use the method ORACLE, which sees the answer");
  setting(
      "otlp-traces-endpoint", c.otlp_traces_endpoint,
      "collector of OpenTelemetry's traces, OTLP over gRPC: http://HOST:PORT or https://HOST:PORT; empty: no traces");
  setting("otlp-traces-ca", c.otlp_traces_ca,
          "certificates (PEM) that sign that of an https:// collector; empty: the system's");
  setting("otlp-traces-sample-ratio", c.otlp_traces_sample_ratio,
          "share of the calls that are traced where their caller sends no trace; a caller's own decision is kept");
  setting("otlp-service-name", c.otlp_service_name, "service.name of the traces; empty: OTEL_SERVICE_NAME, or c3pod");
  setting("log-level", c.log_level, "debug, info, warning or error");
}

}  // namespace c3po

#endif  // C3PO_SERVER_CONFIG_SETTING_LIST_H_
