#include "server/config/server_config.h"

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <iostream>
#include <limits>
#include <type_traits>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "index/base/host_port.h"
#include "index/base/number_text.h"
#include "index/base/status_macros.h"
#include "index/types/reference_validation.h"
#include "server/config/setting_sources.h"
#include "server/config/toml_settings.h"

namespace c3po {
namespace {

// Calls visit(flag name, field, help) for every field: flags, the printed file and its tests cannot drift apart.
// Long because every setting is one line of it.
template <typename Config, typename Visit>
void VisitFields(Config& c, Visit visit) {
  visit("model", c.model, "Hugging Face folder of the model");
  visit("device", c.device, "cpu or cuda");
  visit("dtype", c.dtype, "auto, float32 or bfloat16");
  visit("arithmetic", c.arithmetic,
        "of products on the CPU: float32; bfloat16, where the processor has a unit for it; auto: where it has one");
  visit("embedder", c.embedder, "folder of a sentence encoder, or \"model\" for the model's own hidden states");
  visit("threads", c.threads,
        "threads that the model computes on; 0: one per processor that affinity and the cgroup's quota allow");
  visit("pin-threads", c.pin_threads, "keep each of them on a core of its own");
  visit("store", c.store, "SQLite file of the references");
  visit("graph-cache", c.graph_cache, "folder of index graphs; empty: STORE.graphs");
  visit("exact-references-max", c.exact_references_max, "larger collections are searched through an HNSW graph");
  visit("listen", c.listen, "gRPC address:port, port 0 chooses one; or unix:PATH");
  visit("tls-cert", c.tls_cert, "certificate chain (PEM) to serve TLS with; read again when it changes");
  visit("tls-key", c.tls_key, "private key (PEM) of --tls-cert");
  visit("tls-client-ca", c.tls_client_ca, "certificates (PEM) that sign clients' certificates: mutual TLS");
  visit("insecure", c.insecure, "listen beyond this machine without TLS");
  visit("auth-tokens", c.auth_tokens,
        "file of callers: NAME ROLE SHA256 a line, then collections and rates; see server/README.md");
  visit("metrics-address", c.metrics_address, "address of the HTTP door");
  visit("metrics-port", c.metrics_port, "port of /metrics, /healthz, /readyz; 0 chooses one, -1: none");
  visit("pending-requests-max", c.pending_requests_max, "requests waiting or running; beyond: RESOURCE_EXHAUSTED");
  visit("pending-tokens-max", c.pending_tokens_max,
        "tokens that those requests cost: prompts, room for answers, and what their optimizations compute");
  visit("prompt-tokens-max", c.prompt_tokens_max, "tokens of one prompt; 0: what the context window holds");
  visit("output-tokens-max", c.output_tokens_max, "tokens of one answer; 0: what the context window leaves");
  visit("stop-strings-max", c.stop_strings_max, "stop strings of one request");
  visit("stop-string-bytes-max", c.stop_string_bytes_max, "bytes of one stop string");
  visit("continuations-max", c.continuations_max, "continuations of one Score request");
  visit("answers-max", c.answers_max, "answers (sampling.n) of one Generate request");
  visit("logit-bias-max", c.logit_bias_max, "entries of one request's sampling.logit_bias");
  visit("running-sequences-max", c.running_sequences_max, "sequences in one batch");
  visit("kv-cache-tokens", c.kv_cache_tokens, "positions of all sequences together");
  visit("prefill-tokens-per-step", c.prefill_tokens_per_step, "prompt tokens in one engine step");
  visit("max-tokens-default", c.max_tokens_default, "max_tokens of a request that sets none");
  visit("message-bytes-max", c.message_bytes_max, "bytes of one gRPC message");
  visit("unread-messages-max", c.unread_messages_max, "messages a client may leave unread before it is cut off");
  visit("caller-calls-max", c.caller_calls_max, "calls in flight of one caller; 0: no limit");
  visit("caller-calls-per-minute-max", c.caller_calls_per_minute_max,
        "calls a minute of a caller whose token does not say calls/min=; 0: no limit");
  visit("caller-tokens-per-minute-max", c.caller_tokens_per_minute_max,
        "tokens through the model a minute (prompts, answers, choices, neighbors, steps, epochs) of a caller whose "
        "token does not say tokens/min=; 0: no limit");
  visit("watches-max", c.watches_max, "Watch streams of grpc.health.v1 at once");
  visit("address-watches-max", c.address_watches_max, "of these from one address");
  visit("call-memory-mb", c.call_memory_mb, "MiB of requests and unread answers of all calls; half for one caller");
  visit("import-streams-max", c.import_streams_max, "Add streams at once, half of them for one caller");
  visit("unread-seconds-max", c.unread_seconds_max, "seconds that the client of a backup may read nothing");
  visit("connections-max", c.connections_max, "connections to the gRPC port at once");
  visit("address-connections-max", c.address_connections_max, "of these from one address");
  visit("transport-memory-mb", c.transport_memory_mb, "MiB that gRPC may hold for connections and messages");
  visit("connection-streams-max", c.connection_streams_max, "calls at once on one connection");
  visit("connection-age-seconds-max", c.connection_age_seconds_max,
        "age (+-10 %) at which a connection is closed once its calls have ended; 0: none");
  visit("connection-age-grace-seconds-max", c.connection_age_grace_seconds_max, "seconds for those calls to end");
  visit("neighbor-cache-mb", c.neighbor_cache_mb, "MiB for the fixed states of references");
  visit("work-memory-mb", c.work_memory_mb,
        "MiB: half for requests that optimize at once, half for learning; 0: a quarter of the weights, at least 512");
  visit("learning-calls-max", c.learning_calls_max, "TunePrior and AmortizeShifts calls at once");
  visit("workers", c.workers, "threads that tokenize, embed and search");
  visit("drain-seconds-max", c.drain_seconds_max, "seconds for running streams after SIGTERM");
  visit("stall-seconds-max", c.stall_seconds_max, "seconds of work without progress, then NOT_SERVING");
  visit("method", c.method, "default method: none, mode, kernel or ngd");
  visit("neighbors", c.neighbors, "default k");
  visit("validation-neighbors", c.validation_neighbors, "default number of further neighbors held out; 0: none");
  visit("steps", c.steps, "default gradient steps");
  visit("learning-rate", c.learning_rate, "default learning rate");
  visit("critical-layers", c.critical_layers,
        "default critical layers: the last so many; 0: a quarter of them, 5 to 8");
  visit("core-experts", c.core_experts, "default core experts per layer; 0: all");
  visit("application-rule", c.application_rule, "default rule: last, every or shift");
  visit("references", c.references, "default references: successful or all");
  visit("objective", c.objective, "default loss: answer or choices");
  visit("collection", c.collection, "default collection");
  visit("gate-distance-quantile", c.gate_distance_quantile,
        "default: leave alone what is farther from its nearest reference than this share of the references are");
  visit("allow-oracle", c.allow_oracle, "let evaluations use the method ORACLE, which sees the answer");
  visit("log-level", c.log_level, "debug, info, warning or error");
}

absl::Status Wrong(absl::string_view flag, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("--", flag, ": ", what));
}

absl::Status CheckRange(absl::string_view flag, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return Wrong(flag, absl::StrCat("is ", value, ", must be in [", low, ", ", high, "]"));
}

absl::Status CheckWord(absl::string_view flag, const std::string& value, std::initializer_list<const char*> words) {
  for (const char* word : words) {
    if (value == word) return absl::OkStatus();
  }
  return Wrong(flag, absl::StrCat("\"", value, "\" is not one of ", absl::StrJoin(words, ", ")));
}

// Whether only this machine can reach an address as gRPC writes it.
bool IsLocal(absl::string_view listen) {
  for (const absl::string_view prefix : {"127.", "localhost:", "[::1]:", "unix:", "unix-abstract:"}) {
    if (absl::StartsWith(listen, prefix)) return true;
  }
  return false;
}

absl::Status CheckListen(absl::string_view listen) {
  const absl::Status status = CheckHostPort(listen);
  return status.ok() ? status : Wrong("listen", status.message());
}

absl::Status CheckTransport(const ServerConfig& config) {
  if (config.tls_cert.empty() != config.tls_key.empty())
    return Wrong(config.tls_cert.empty() ? "tls-cert" : "tls-key", "TLS needs both --tls-cert and --tls-key");
  if (config.tls_cert.empty() && !config.tls_client_ca.empty())
    return Wrong("tls-client-ca", "clients' certificates need TLS: --tls-cert and --tls-key");
  if (!config.auth_tokens.empty() && config.allow_oracle)
    return Wrong("allow-oracle", "with --auth-tokens, callers of the role administer may use ORACLE; leave it out");
  if (IsLocal(config.listen) || !config.tls_cert.empty() || config.insecure) return absl::OkStatus();
  return Wrong("listen", absl::StrCat("\"", config.listen,
                                      "\" can be reached from other machines: give --tls-cert and --tls-key, or "
                                      "--insecure to serve without encryption"));
}

std::vector<std::string> FlagNames() {
  std::vector<std::string> names;
  const ServerConfig config;
  VisitFields(config, [&names](const char* flag, const auto&, const char*) { names.push_back(flag); });
  return names;
}

// As it stands in a --config file.
std::string ValueText(const std::string& value) { return TomlQuoted(value); }
std::string ValueText(bool value) { return value ? "true" : "false"; }
std::string ValueText(double value) { return NumberText(value); }
template <typename Number>
std::string ValueText(Number value) {
  return absl::StrCat(value);
}

// The flags of a ServerConfig on a CLI11 parser. Only flags are parsed there: its own reading of variables and files
// would not tell where a value came from, and passes over what it does not know.
class CommandLine {
 public:
  explicit CommandLine(ServerConfig& config)
      : config_(config),
        app_(
            "c3pod: serves a Mixture-of-Experts language model over gRPC and re-mixes its experts per request (C3PO)") {
    file_ = app_.add_option("--config", path_, "TOML file with any of these options");
    app_.add_flag("--print-config", print_config_, "print the configuration in force and exit");
    VisitFields(config_, [this](const char* flag, auto& field, const char* help) {
      const std::string name = absl::StrCat("--", flag);
      CLI::Option* option = nullptr;
      if constexpr (std::is_same_v<std::decay_t<decltype(field)>, bool>) {
        option = app_.add_flag(name, field, help);
      } else {
        option = app_.add_option(name, field, help)->capture_default_str();
      }
      options_[flag] = option->take_last();
    });
  }

  absl::StatusOr<CommandLineAction> Parse(int argc, char** argv, const std::string& version, SettingOrigins& origins) {
    app_.set_version_flag("--version", version);
    try {
      app_.parse(argc, argv);
      if (const char* path = std::getenv("C3PO_CONFIG"); file_->count() == 0 && path != nullptr) path_ = path;
    } catch (const CLI::Success& success) {
      for (const auto& [flag, option] : options_) option->envname(EnvironmentName(flag));  // --help shows them.
      file_->envname(EnvironmentName("config"));
      app_.exit(success);
      return CommandLineAction::kExit;
    } catch (const CLI::ExtrasError& error) {
      const std::vector<std::string> unknown = app_.remaining();
      const std::string first = unknown.empty() ? "" : unknown.front().substr(0, unknown.front().find('='));
      return absl::InvalidArgumentError(absl::StrCat(
          error.what(), NameSuggestion(absl::StripPrefix(first, "--"), FlagNames(), "--"), "; see --help"));
    } catch (const CLI::ParseError& error) {
      return absl::InvalidArgumentError(absl::StrCat(error.what(), "; see --help"));
    }
    C3PO_RETURN_IF_ERROR(ApplyOthers(origins));
    return print_config_ ? CommandLineAction::kPrintConfig : CommandLineAction::kRun;
  }

 private:
  // Environment and file, for what no flag gave.
  absl::Status ApplyOthers(SettingOrigins& origins) {
    origins.file_path = path_;
    std::map<std::string, TomlSetting> settings;
    if (!path_.empty()) {
      C3PO_ASSIGN_OR_RETURN(settings, ReadConfigFile(path_, FlagNames()));
    }
    absl::Status status;
    VisitFields(config_, [&](const char* flag, auto& field, const char*) {
      if (!status.ok()) return;
      auto from_file = field;
      const auto setting = settings.find(flag);
      if (setting != settings.end()) {
        const absl::Status converted = ConvertSetting(setting->second.value, from_file);
        if (!converted.ok()) {
          status = absl::InvalidArgumentError(absl::StrCat("--config: ", path_, ": line ", setting->second.line, ": ",
                                                           flag, ": ", converted.message()));
          return;
        }
      }
      std::vector<std::string>* origin = nullptr;
      const std::string variable = EnvironmentName(flag);
      const char* value = std::getenv(variable.c_str());
      if (options_[flag]->count() > 0) {
        origin = &origins.flags;
      } else if (value != nullptr && *value != '\0') {
        origin = &origins.environment;
        status = ApplyVariable(variable, value, options_[flag]);
      } else if (setting != settings.end()) {
        origin = &origins.file;
        field = from_file;
      }
      if (origin != nullptr) origin->push_back(absl::StrCat(flag, " = ", ValueText(field)));
    });
    origins.warnings = UnreadVariables(FlagNames());
    return status;
  }

  static absl::Status ApplyVariable(const std::string& variable, const char* value, CLI::Option* option) {
    try {
      option->add_result(value);
      option->run_callback();
    } catch (const CLI::ParseError& error) {
      return absl::InvalidArgumentError(absl::StrCat(variable, ": ", error.what()));
    }
    return absl::OkStatus();
  }

  ServerConfig& config_;
  CLI::App app_;
  CLI::Option* file_ = nullptr;
  std::string path_;
  bool print_config_ = false;
  std::map<std::string, CLI::Option*> options_;  // By flag, without dashes.
};

}  // namespace

std::string InCacheFolder(const std::string& path) {
  const char* cache = std::getenv("C3PO_CACHE_DIR");
  if (cache != nullptr && *cache != '\0') return absl::StrCat(cache, "/", path);
  const char* home = std::getenv("HOME");
  return absl::StrCat(home != nullptr ? home : "", "/.cache/c3po/", path);
}

absl::Status ServerConfig::Validate() const {
  constexpr int kMax = std::numeric_limits<int>::max();
  if (model.empty()) return Wrong("model", "must be a Hugging Face folder");
  if (embedder.empty()) return Wrong("embedder", "must be a folder or \"model\"");
  if (store.empty()) return Wrong("store", "must name a file");
  C3PO_RETURN_IF_ERROR(CheckListen(listen));
  C3PO_RETURN_IF_ERROR(CheckTransport(*this));
  C3PO_RETURN_IF_ERROR(CheckWord("device", device, {"cpu", "cuda"}));
  C3PO_RETURN_IF_ERROR(CheckWord("dtype", dtype, {"auto", "float32", "bfloat16"}));
  C3PO_RETURN_IF_ERROR(CheckWord("arithmetic", arithmetic, {"auto", "float32", "bfloat16"}));
  C3PO_RETURN_IF_ERROR(CheckWord("method", method, {"none", "mode", "kernel", "ngd"}));
  C3PO_RETURN_IF_ERROR(CheckWord("application-rule", application_rule, {"last", "every", "shift"}));
  C3PO_RETURN_IF_ERROR(CheckWord("references", references, {"successful", "all"}));
  C3PO_RETURN_IF_ERROR(CheckWord("objective", objective, {"answer", "choices"}));
  C3PO_RETURN_IF_ERROR(CheckWord("log-level", log_level, {"debug", "info", "warning", "error"}));
  C3PO_RETURN_IF_ERROR(CheckRange("threads", threads, 0, 1024));
  C3PO_RETURN_IF_ERROR(CheckRange("metrics-port", metrics_port, -1, 65535));
  C3PO_RETURN_IF_ERROR(CheckRange("exact-references-max", exact_references_max, 0, kMax));
  C3PO_RETURN_IF_ERROR(CheckRange("pending-requests-max", pending_requests_max, 1, 1 << 20));
  C3PO_RETURN_IF_ERROR(CheckRange("pending-tokens-max", pending_tokens_max, 1, kMax));
  C3PO_RETURN_IF_ERROR(CheckRange("prompt-tokens-max", prompt_tokens_max, 0, kMax));
  C3PO_RETURN_IF_ERROR(CheckRange("output-tokens-max", output_tokens_max, 0, kMax));
  C3PO_RETURN_IF_ERROR(CheckRange("stop-strings-max", stop_strings_max, 0, 16));
  C3PO_RETURN_IF_ERROR(CheckRange("stop-string-bytes-max", stop_string_bytes_max, 1, 1024));
  C3PO_RETURN_IF_ERROR(CheckRange("continuations-max", continuations_max, 1, 1 << 16));
  C3PO_RETURN_IF_ERROR(CheckRange("answers-max", answers_max, 1, 1024));
  C3PO_RETURN_IF_ERROR(CheckRange("logit-bias-max", logit_bias_max, 0, 65536));
  C3PO_RETURN_IF_ERROR(CheckRange("unread-messages-max", unread_messages_max, 1, 1 << 20));
  C3PO_RETURN_IF_ERROR(CheckRange("caller-calls-max", caller_calls_max, 0, 1 << 20));
  C3PO_RETURN_IF_ERROR(CheckRange("caller-calls-per-minute-max", caller_calls_per_minute_max, 0, kMax));
  C3PO_RETURN_IF_ERROR(CheckRange("caller-tokens-per-minute-max", caller_tokens_per_minute_max, 0, kMax));
  C3PO_RETURN_IF_ERROR(CheckRange("watches-max", watches_max, 0, 1 << 20));
  C3PO_RETURN_IF_ERROR(CheckRange("address-watches-max", address_watches_max, 0, 1 << 20));
  C3PO_RETURN_IF_ERROR(CheckRange("call-memory-mb", call_memory_mb, 1, 1 << 20));
  C3PO_RETURN_IF_ERROR(CheckRange("import-streams-max", import_streams_max, 1, 4096));
  C3PO_RETURN_IF_ERROR(CheckRange("unread-seconds-max", unread_seconds_max, 1, 86400));
  C3PO_RETURN_IF_ERROR(CheckRange("connections-max", connections_max, 1, 1 << 20));
  C3PO_RETURN_IF_ERROR(CheckRange("address-connections-max", address_connections_max, 1, 1 << 20));
  C3PO_RETURN_IF_ERROR(CheckRange("transport-memory-mb", transport_memory_mb, 16, 1 << 20));
  C3PO_RETURN_IF_ERROR(CheckRange("connection-streams-max", connection_streams_max, 1, 1 << 20));
  C3PO_RETURN_IF_ERROR(CheckRange("connection-age-seconds-max", connection_age_seconds_max, 0, 365 * 86400));
  C3PO_RETURN_IF_ERROR(CheckRange("connection-age-grace-seconds-max", connection_age_grace_seconds_max, 0, 86400));
  C3PO_RETURN_IF_ERROR(CheckRange("running-sequences-max", running_sequences_max, 1, 4096));
  C3PO_RETURN_IF_ERROR(CheckRange("kv-cache-tokens", kv_cache_tokens, 1, kMax));
  C3PO_RETURN_IF_ERROR(CheckRange("prefill-tokens-per-step", prefill_tokens_per_step, 1, 1 << 20));
  C3PO_RETURN_IF_ERROR(CheckRange("max-tokens-default", max_tokens_default, 1, kMax));
  C3PO_RETURN_IF_ERROR(CheckRange("message-bytes-max", message_bytes_max, 1024, kMax));
  C3PO_RETURN_IF_ERROR(CheckRange("neighbor-cache-mb", neighbor_cache_mb, 0, 1 << 20));
  C3PO_RETURN_IF_ERROR(CheckRange("work-memory-mb", work_memory_mb, 0, 1 << 20));
  C3PO_RETURN_IF_ERROR(CheckRange("learning-calls-max", learning_calls_max, 1, 64));
  C3PO_RETURN_IF_ERROR(CheckRange("workers", workers, 1, 256));
  C3PO_RETURN_IF_ERROR(CheckRange("drain-seconds-max", drain_seconds_max, 0, 86400));
  C3PO_RETURN_IF_ERROR(CheckRange("stall-seconds-max", stall_seconds_max, 1, 86400));
  C3PO_RETURN_IF_ERROR(CheckRange("neighbors", neighbors, 1, 64));
  C3PO_RETURN_IF_ERROR(CheckRange("validation-neighbors", validation_neighbors, 0, 64));
  C3PO_RETURN_IF_ERROR(CheckRange("steps", steps, 0, 1000));
  if (!(gate_distance_quantile > 0 && gate_distance_quantile <= 1)) {
    return Wrong("gate-distance-quantile",
                 absl::StrCat("is ", NumberText(gate_distance_quantile), ", must be in (0, 1]"));
  }
  C3PO_RETURN_IF_ERROR(CheckRange("critical-layers", critical_layers, 0, 4096));
  C3PO_RETURN_IF_ERROR(CheckRange("core-experts", core_experts, 0, 4096));
  if (!(learning_rate > 0 && learning_rate <= 10))
    return Wrong("learning-rate", absl::StrCat("is ", NumberText(learning_rate), ", must be in (0, 10]"));
  if (const absl::Status name = ValidateCollectionName(collection); !name.ok())
    return Wrong("collection", absl::StripPrefix(name.message(), "collection: "));
  return absl::OkStatus();
}

std::string ServerConfig::ToText() const {
  std::string text;
  VisitFields(*this, [&text](const char* flag, const auto& field, const char* help) {
    absl::StrAppend(&text, "# ", help, "\n", flag, " = ", ValueText(field), "\n");
  });
  return text;
}

bool ServerConfig::TokensInPlaintext() const { return !auth_tokens.empty() && tls_cert.empty() && !IsLocal(listen); }

std::string ServerConfig::Callers() const {
  std::string who = "anyone";
  if (!auth_tokens.empty()) who = absl::StrCat("who holds a token of ", auth_tokens);
  if (!tls_client_ca.empty()) {
    absl::StrAppend(&who, auth_tokens.empty() ? "" : " and", " with a certificate signed by ", tls_client_ca);
  }
  const bool socket = absl::StartsWith(listen, "unix");
  absl::StrAppend(&who,
                  socket            ? " who may open "
                  : IsLocal(listen) ? " on loopback"
                                    : " who reaches ",
                  socket || !IsLocal(listen) ? listen : "");
  if (!IsLocal(listen) && tls_cert.empty()) absl::StrAppend(&who, ", without encryption");
  return who;
}

std::map<std::string, uint64_t> ServerConfig::Limits() const {
  std::map<std::string, uint64_t> limits;
  VisitFields(*this, [&limits](const char* flag, const auto& field, const char*) {
    const std::string name = absl::StrReplaceAll(flag, {{"-", "_"}});
    if constexpr (std::is_same_v<std::decay_t<decltype(field)>, int>) {
      if (absl::StrContains(name, "max") || absl::StrContains(name, "cache") || absl::StrContains(name, "per_step")) {
        limits[name] = static_cast<uint64_t>(field);
      }
    }
  });
  return limits;
}

absl::StatusOr<CommandLineAction> ParseCommandLine(int argc, char** argv, const std::string& version,
                                                   ServerConfig& config, SettingOrigins& origins) {
  C3PO_ASSIGN_OR_RETURN(const CommandLineAction action, CommandLine(config).Parse(argc, argv, version, origins));
  if (action == CommandLineAction::kPrintConfig) std::cout << config.ToText();
  if (action == CommandLineAction::kRun) C3PO_RETURN_IF_ERROR(config.Validate());
  return action;
}

}  // namespace c3po
