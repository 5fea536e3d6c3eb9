#include "server/config/server_config.h"

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <iostream>
#include <iterator>
#include <limits>
#include <type_traits>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "absl/types/span.h"
#include "index/base/host_port.h"
#include "index/base/number_text.h"
#include "index/base/status_macros.h"
#include "index/base/store_location.h"
#include "index/types/optimization_options.h"
#include "index/types/reference_validation.h"
#include "server/config/otlp_endpoint.h"
#include "server/config/setting_list.h"
#include "server/config/setting_sources.h"
#include "server/config/toml_settings.h"
#include "server/types/device_name.h"

namespace c3po {
namespace {

// Methods that need nothing but references, of a collection that nobody has learned over.
constexpr Method kDefaultMethods[] = {Method::kNone, Method::kModeFinding, Method::kKernelRegression,
                                      Method::kNeighborhoodGradientDescent};

absl::Status Wrong(absl::string_view flag, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("--", flag, ": ", what));
}

absl::Status CheckShare(absl::string_view name, double value) {
  if (value > 0 && value <= 1) return absl::OkStatus();
  return Wrong(name, absl::StrCat("is ", NumberText(value), ", must be in (0, 1]"));
}

absl::Status CheckRange(absl::string_view flag, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return Wrong(flag, absl::StrCat("is ", value, ", must be in [", low, ", ", high, "]"));
}

// The flag's words of a choice.
template <typename Value>
std::vector<std::string> FlagsOf(absl::Span<const Value> values) {
  std::vector<std::string> flags;
  for (const Value value : values) flags.emplace_back(TermOf(value).flag);
  return flags;
}
template <typename Value>
std::vector<std::string> FlagsOfAll() {
  std::vector<Value> values;
  for (const Term<Value>& term : TermsOf<Value>()) values.push_back(term.value);
  return FlagsOf<Value>(values);
}

absl::Status CheckWord(absl::string_view flag, const std::string& value, const std::vector<std::string>& words) {
  for (const std::string& word : words) {
    if (value == word) return absl::OkStatus();
  }
  return Wrong(flag, absl::StrCat("\"", value, "\" is not one of ", absl::StrJoin(words, ", ")));
}

std::vector<std::string> DeviceWords() { return {std::begin(kDeviceNames), std::end(kDeviceNames)}; }

// Whether only this machine can reach an address as gRPC writes it.
bool IsLocal(absl::string_view listen) {
  for (const absl::string_view prefix : {"127.", "localhost:", "[::1]:", "unix:", "unix-abstract:"}) {
    if (absl::StartsWith(listen, prefix)) return true;
  }
  return false;
}

absl::Status CheckListen(absl::string_view flag, absl::string_view listen) {
  const absl::Status status = CheckHostPort(listen);
  return status.ok() ? status : Wrong(flag, status.message());
}

// Of an address that is to be served without encryption.
absl::Status CheckReach(absl::string_view flag, absl::string_view listen) {
  if (IsLocal(listen)) return absl::OkStatus();
  return Wrong(flag, absl::StrCat("\"", listen,
                                  "\" can be reached from other machines: give --tls-cert and --tls-key, or "
                                  "--insecure to serve without encryption"));
}

absl::Status CheckTransport(const ServerConfig& config) {
  if (config.tls_cert.empty() != config.tls_key.empty())
    return Wrong(config.tls_cert.empty() ? "tls-cert" : "tls-key", "TLS needs both --tls-cert and --tls-key");
  if (config.tls_cert.empty() && !config.tls_client_ca.empty())
    return Wrong("tls-client-ca", "clients' certificates need TLS: --tls-cert and --tls-key");
  if (!config.auth_tokens.empty() && config.allow_oracle)
    return Wrong("allow-oracle", "with --auth-tokens, callers of the role administer may use ORACLE; leave it out");
  if (!config.tls_cert.empty() || config.insecure) return absl::OkStatus();
  C3PO_RETURN_IF_ERROR(CheckReach("listen", config.listen));
  return config.http_listen.empty() ? absl::OkStatus() : CheckReach("http-listen", config.http_listen);
}

absl::Status CheckTraces(const ServerConfig& config) {
  const double ratio = config.otlp_traces_sample_ratio;
  if (!(ratio >= 0 && ratio <= 1)) {
    return Wrong("otlp-traces-sample-ratio", absl::StrCat("is ", NumberText(ratio), ", must be in [0, 1]"));
  }
  if (config.otlp_traces_endpoint.empty()) {
    if (config.otlp_traces_ca.empty()) return absl::OkStatus();
    return Wrong("otlp-traces-ca", "is for an https:// collector: give --otlp-traces-endpoint");
  }
  const absl::StatusOr<OtlpEndpoint> endpoint = ParseOtlpEndpoint(config.otlp_traces_endpoint);
  if (!endpoint.ok()) return Wrong("otlp-traces-endpoint", endpoint.status().message());
  if (endpoint->tls || config.otlp_traces_ca.empty()) return absl::OkStatus();
  return Wrong("otlp-traces-ca", "is for an https:// collector, and --otlp-traces-endpoint is http://");
}

std::vector<std::string> FlagNames() {
  std::vector<std::string> names;
  const ServerConfig config;
  VisitSettings(config, [&names](const Setting& setting, const auto&) { names.push_back(setting.flag); });
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

// As it stands in the log: the location of a database may hold a password.
std::string ShownText(const std::string& value) { return ValueText(WithoutPassword(value)); }
template <typename Value>
std::string ShownText(Value value) {
  return ValueText(value);
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
    VisitSettings(config_, [this](const Setting& setting, auto& field) {
      const std::string name = absl::StrCat("--", setting.flag);
      CLI::Option* option = nullptr;
      if constexpr (std::is_same_v<std::decay_t<decltype(field)>, bool>) {
        option = app_.add_flag(name, field, setting.help);
      } else {
        option = app_.add_option(name, field, setting.help)->capture_default_str();
      }
      options_[setting.flag] = option->take_last();
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
    VisitSettings(config_, [&](const Setting& row, auto& field) {
      if (!status.ok()) return;
      const std::string flag = row.flag;
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
      if (origin != nullptr) origin->push_back(absl::StrCat(flag, " = ", ShownText(field)));
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

namespace {

// Where and in what numbers is computed and searched.
absl::Status CheckDevices(const ServerConfig& config) {
  C3PO_RETURN_IF_ERROR(CheckWord("device", config.device, DeviceWords()));
  C3PO_RETURN_IF_ERROR(CheckWord("dtype", config.dtype, {"auto", "float32", "bfloat16"}));
  C3PO_RETURN_IF_ERROR(CheckWord("arithmetic", config.arithmetic, {"auto", "float32", "bfloat16"}));
  C3PO_RETURN_IF_ERROR(CheckWord("kv-cache-dtype", config.kv_cache_dtype, {"auto", "float32", "bfloat16"}));
  C3PO_RETURN_IF_ERROR(CheckWord("weights", config.weights, {"auto", "float32", "bfloat16", "int8", "int4"}));
  C3PO_RETURN_IF_ERROR(CheckWord("index-device", config.index_device, {"auto", "cpu", "cuda"}));
  if (config.index_memory_mb == 0) return absl::OkStatus();
  return CheckRange("index-memory-mb", config.index_memory_mb, 16, 1 << 20);
}

// What callers may have at once, and what their connections may.
absl::Status CheckCallers(const ServerConfig& config) {
  constexpr int kMax = std::numeric_limits<int>::max();
  C3PO_RETURN_IF_ERROR(CheckRange("unread-messages-max", config.unread_messages_max, 1, 1 << 20));
  C3PO_RETURN_IF_ERROR(CheckRange("caller-calls-max", config.caller_calls_max, 0, 1 << 20));
  C3PO_RETURN_IF_ERROR(CheckRange("caller-calls-per-minute-max", config.caller_calls_per_minute_max, 0, kMax));
  C3PO_RETURN_IF_ERROR(CheckRange("caller-tokens-per-minute-max", config.caller_tokens_per_minute_max, 0, kMax));
  C3PO_RETURN_IF_ERROR(CheckRange("watches-max", config.watches_max, 0, 1 << 20));
  C3PO_RETURN_IF_ERROR(CheckRange("address-watches-max", config.address_watches_max, 0, 1 << 20));
  C3PO_RETURN_IF_ERROR(CheckRange("call-memory-mb", config.call_memory_mb, 1, 1 << 20));
  C3PO_RETURN_IF_ERROR(CheckRange("import-streams-max", config.import_streams_max, 1, 4096));
  C3PO_RETURN_IF_ERROR(CheckRange("unread-seconds-max", config.unread_seconds_max, 1, 86400));
  C3PO_RETURN_IF_ERROR(CheckRange("connections-max", config.connections_max, 1, 1 << 20));
  C3PO_RETURN_IF_ERROR(CheckRange("address-connections-max", config.address_connections_max, 1, 1 << 20));
  C3PO_RETURN_IF_ERROR(CheckRange("transport-memory-mb", config.transport_memory_mb, 16, 1 << 20));
  C3PO_RETURN_IF_ERROR(CheckRange("connection-streams-max", config.connection_streams_max, 1, 1 << 20));
  C3PO_RETURN_IF_ERROR(CheckRange("connection-age-seconds-max", config.connection_age_seconds_max, 0, 365 * 86400));
  C3PO_RETURN_IF_ERROR(
      CheckRange("connection-age-grace-seconds-max", config.connection_age_grace_seconds_max, 0, 86400));
  return absl::OkStatus();
}

}  // namespace

absl::Status ServerConfig::Validate() const {
  constexpr int kMax = std::numeric_limits<int>::max();
  if (model.empty()) return Wrong("model", "must be a Hugging Face folder, a GGUF file or ORG/NAME");
  if (embedder.empty()) return Wrong("embedder", "must be a folder, ORG/NAME or \"model\"");
  if (embedder_dtype != "float32" && embedder_dtype != "bfloat16") {
    return Wrong("embedder-dtype", "must be float32 or bfloat16");
  }
  if (embedder == kModelAsEmbedder && embedder_dtype != "float32") {
    return Wrong("embedder-dtype", "--embedder model is the model itself, of --dtype; leave it out");
  }
  if (embedder == kModelAsEmbedder && !embedder_revision.empty()) {
    return Wrong("embedder-revision", "--embedder model is the model itself, of --revision; leave it out");
  }
  if (store.empty()) return Wrong("store", "must name a file, or be postgresql://HOST/DATABASE");
  const size_t scheme = store.find("://");
  if (scheme != std::string::npos && store.substr(0, scheme) != "postgresql" && store.substr(0, scheme) != "postgres") {
    return Wrong("store", "is a URL of another kind than postgresql://HOST/DATABASE");
  }
  C3PO_RETURN_IF_ERROR(CheckRange("store-wait-seconds", store_wait_seconds, 0, 86400));
  C3PO_RETURN_IF_ERROR(CheckRange("generation-wait-seconds-max", generation_wait_seconds_max, 0, 3600));
  C3PO_RETURN_IF_ERROR(CheckListen("listen", listen));
  if (!http_listen.empty()) C3PO_RETURN_IF_ERROR(CheckListen("http-listen", http_listen));
  C3PO_RETURN_IF_ERROR(CheckTransport(*this));
  C3PO_RETURN_IF_ERROR(CheckDevices(*this));
  C3PO_RETURN_IF_ERROR(CheckTraces(*this));
  C3PO_RETURN_IF_ERROR(CheckWord("method", method, FlagsOf<Method>(kDefaultMethods)));
  C3PO_RETURN_IF_ERROR(CheckWord("application-rule", application_rule, FlagsOfAll<ApplicationRule>()));
  C3PO_RETURN_IF_ERROR(CheckWord("references", references, FlagsOfAll<ReferenceSelection>()));
  C3PO_RETURN_IF_ERROR(CheckWord("objective", objective, FlagsOfAll<SurrogateLoss>()));
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
  C3PO_RETURN_IF_ERROR(CheckRange("experts-per-token-max", experts_per_token_max, 0, 1 << 16));
  C3PO_RETURN_IF_ERROR(CheckCallers(*this));
  C3PO_RETURN_IF_ERROR(CheckRange("running-sequences-max", running_sequences_max, 1, 4096));
  C3PO_RETURN_IF_ERROR(CheckRange("kv-cache-tokens", kv_cache_tokens, 0, kMax));
  C3PO_RETURN_IF_ERROR(CheckRange("prefill-tokens-per-step", prefill_tokens_per_step, 1, 1 << 20));
  C3PO_RETURN_IF_ERROR(CheckRange("max-tokens-default", max_tokens_default, 1, kMax));
  C3PO_RETURN_IF_ERROR(CheckRange("message-bytes-max", message_bytes_max, 1024, kMax));
  C3PO_RETURN_IF_ERROR(CheckRange("neighbor-cache-mb", neighbor_cache_mb, 0, 1 << 20));
  C3PO_RETURN_IF_ERROR(CheckRange("work-memory-mb", work_memory_mb, 0, 1 << 20));
  C3PO_RETURN_IF_ERROR(CheckRange("learning-calls-max", learning_calls_max, 1, 64));
  C3PO_RETURN_IF_ERROR(CheckRange("workers", workers, 1, 256));
  C3PO_RETURN_IF_ERROR(CheckRange("drain-seconds-max", drain_seconds_max, 0, 86400));
  C3PO_RETURN_IF_ERROR(CheckRange("stall-seconds-max", stall_seconds_max, 1, 86400));
  C3PO_RETURN_IF_ERROR(CheckRange("neighbors", neighbors, 1, kNeighborsMax));
  C3PO_RETURN_IF_ERROR(CheckRange("validation-neighbors", validation_neighbors, 0, kNeighborsMax));
  C3PO_RETURN_IF_ERROR(CheckRange("steps", steps, 0, kStepsMax));
  C3PO_RETURN_IF_ERROR(CheckShare("gpu-memory-fraction", gpu_memory_fraction));
  C3PO_RETURN_IF_ERROR(CheckShare("gate-distance-quantile", gate_distance_quantile));
  C3PO_RETURN_IF_ERROR(CheckRange("critical-layers", critical_layers, 0, 4096));
  C3PO_RETURN_IF_ERROR(CheckRange("core-experts", core_experts, 0, 4096));
  if (!(learning_rate > 0 && learning_rate <= kLearningRateMax)) {
    return Wrong("learning-rate", absl::StrCat("is ", NumberText(learning_rate), ", must be in (0, ",
                                               NumberText(kLearningRateMax), "]"));
  }
  if (const absl::Status name = ValidateCollectionName(collection); !name.ok())
    return Wrong("collection", absl::StripPrefix(name.message(), "collection: "));
  return absl::OkStatus();
}

std::string ServerConfig::ToText() const {
  std::string text;
  VisitSettings(*this, [&text](const Setting& setting, const auto& field) {
    absl::StrAppend(&text, "# ", setting.help, "\n", setting.flag, " = ", ValueText(field), "\n");
  });
  return text;
}

bool ServerConfig::TokensInPlaintext() const {
  const bool local = IsLocal(listen) && (http_listen.empty() || IsLocal(http_listen));
  return !auth_tokens.empty() && tls_cert.empty() && !local;
}

std::string ServerConfig::Callers() const {
  std::string who = "anyone";
  if (!auth_tokens.empty()) who = absl::StrCat("who holds a token of ", auth_tokens);
  if (!tls_client_ca.empty()) {
    absl::StrAppend(&who, auth_tokens.empty() ? "" : " and", " with a certificate signed by ", tls_client_ca);
  }
  const auto reach = [this](const std::string& address) -> std::string {
    if (absl::StartsWith(address, "unix")) return absl::StrCat(" who may open ", address);
    if (IsLocal(address)) return " on loopback";
    return absl::StrCat(" who reaches ", address, tls_cert.empty() ? ", without encryption" : "");
  };
  absl::StrAppend(&who, reach(listen));
  if (!http_listen.empty()) absl::StrAppend(&who, "; by HTTP", reach(http_listen));
  return who;
}

std::map<std::string, uint64_t> ServerConfig::Limits() const {
  std::map<std::string, uint64_t> limits;
  VisitSettings(*this, [&limits](const Setting& setting, const auto& field) {
    if constexpr (std::is_same_v<std::decay_t<decltype(field)>, int>) {
      if (!setting.is_limit) return;
      limits[absl::StrReplaceAll(setting.flag, {{"-", "_"}})] = static_cast<uint64_t>(field);
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
