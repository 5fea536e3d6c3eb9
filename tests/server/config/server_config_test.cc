#include "server/config/server_config.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "index/base/environment_names.h"
#include "server/config/setting_sources.h"

namespace c3po {
namespace {

absl::StatusOr<CommandLineAction> Parse(std::vector<std::string> arguments, ServerConfig& config,
                                        SettingOrigins& origins) {
  arguments.insert(arguments.begin(), "c3pod");
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  return ParseCommandLine(static_cast<int>(argv.size()), argv.data(), "0", config, origins);
}

absl::StatusOr<CommandLineAction> Parse(std::vector<std::string> arguments, ServerConfig& config) {
  SettingOrigins origins;
  return Parse(std::move(arguments), config, origins);
}

std::string FileHolding(const std::string& text) {
  const std::string path = testing::TempDir() + "/c3pod.toml";
  std::ofstream(path) << text;
  return path;
}

// The error of a file with this text; empty: it is taken.
std::string RefusalOf(const std::string& text) {
  ServerConfig config;
  return std::string(Parse({"--config", FileHolding(text)}, config).status().message());
}

using Texts = std::vector<std::string>;

TEST(ServerConfig, DefaultsAreValidAndPrintedOnesReadBackEqual) {
  ServerConfig config;
  ASSERT_TRUE(config.Validate().ok()) << config.Validate();
  config.steps = 17;
  config.model = "/models/a b, #1 \"x\" C:\\new";
  config.insecure = true;
  config.learning_rate = 0.25;
  ServerConfig read;
  const auto parsed = Parse({"--config", FileHolding(config.ToText())}, read);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(read.ToText(), config.ToText());
  EXPECT_EQ(read.model, config.model);
}

TEST(ServerConfig, AFileWithAnythingThatNoSettingReadsIsRefusedWithTheNearestName) {
  EXPECT_EQ(RefusalOf("auth-tokens = \"/etc/c3po/tokens\"\nsteps = 3"), "");
  const std::vector<std::pair<std::string, std::string>> wrong = {
      {"auth_tokens = \"/etc/c3po/tokens\"", "line 1: no setting is called \"auth_tokens\"; did you mean auth-tokens?"},
      {"steps = 3\nlisten_ = \"x\"", "line 2: no setting is called \"listen_\"; did you mean listen?"},
      {"unheard-of = 1", "no setting is called \"unheard-of\""},
      {"[server]\nauth-tokens = \"/etc/c3po/tokens\"", "line 1: a table"},
      {"auth-tokens = \"/etc/c3po/tokens", "line 1: auth-tokens: the string has no end"},
      {"steps = \"3\"", "line 1: steps: must be a whole number"},
      {"steps = 2.5", "line 1: steps: must be a whole number"},
      {"steps = 4294967297", "line 1: steps: is 4294967297, beyond"},
      {"insecure = 1", "line 1: insecure: must be true or false"},
      {"model = 3", "line 1: model: must be a text in quotes"},
      {"learning-rate = true", "line 1: learning-rate: must be a number"},
      {"steps = -1", "--steps: is -1"},
      {"config = \"other.toml\"", "no setting is called \"config\""}};
  for (const auto& [text, message] : wrong) {
    EXPECT_NE(RefusalOf(text).find(message), std::string::npos) << text << ": " << RefusalOf(text);
  }
  ServerConfig config;
  EXPECT_TRUE(absl::IsNotFound(Parse({"--config", "/nowhere/c3pod.toml"}, config).status()));
}

TEST(ServerConfig, WhereEachSettingCameFromIsTold) {
  const std::string path = FileHolding("steps = 3\nneighbors = 4\ncollection = \"file\"\nmethod = \"kernel\"");
  setenv("C3PO_NEIGHBORS", "7", 1);
  setenv("C3PO_COLLECTION", "environment", 1);
  setenv("C3PO_MODEL", "", 1);  // An empty one counts as unset.
  ServerConfig config;
  SettingOrigins origins;
  const auto parsed = Parse({"--config", path, "--collection", "flag", "--insecure"}, config, origins);
  for (const char* variable : {"C3PO_NEIGHBORS", "C3PO_COLLECTION", "C3PO_MODEL"}) unsetenv(variable);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(origins.flags, (Texts{"insecure = true", "collection = \"flag\""}));
  EXPECT_EQ(origins.environment, (Texts{"neighbors = 7"}));
  EXPECT_EQ(origins.file, (Texts{"method = \"kernel\"", "steps = 3"}));
  EXPECT_EQ(origins.file_path, path);
  EXPECT_EQ(config.collection, "flag");
  EXPECT_EQ(config.neighbors, 7);
  EXPECT_EQ(config.steps, 3);
  EXPECT_EQ(config.model, ServerConfig().model);
}

TEST(ServerConfig, AVariableNamesTheFileAndWrongOnesAreNamed) {
  setenv("C3PO_CONFIG", FileHolding("steps = 3").c_str(), 1);
  ServerConfig config;
  EXPECT_TRUE(Parse({}, config).ok());
  EXPECT_EQ(config.steps, 3);
  unsetenv("C3PO_CONFIG");
  for (const std::string variable : {"C3PO_STEPS", "C3PO_INSECURE", "C3PO_LEARNING_RATE"}) {
    setenv(variable.c_str(), "many", 1);
    const std::string refusal(Parse({}, config).status().message());
    unsetenv(variable.c_str());
    EXPECT_NE(refusal.find(variable), std::string::npos) << variable << ": " << refusal;
  }
}

// `c3po` and the Python clients may run where the server's and the scripts' variables are set.
TEST(ServerConfig, NoSettingsVariableIsTakenForAMisspelledOneOfTheClients) {
  Texts names = {"C3PO_CONFIG", "C3PO_PORT", "C3PO_METRICS_PORT", "C3PO_DATA_DIR", "C3PO_PRESET", "C3PO_STUDIES"};
  std::istringstream lines(ServerConfig().ToText());
  for (std::string line; std::getline(lines, line);) {
    if (line.front() != '#') names.push_back(EnvironmentName(line.substr(0, line.find(' '))));
  }
  EXPECT_GT(names.size(), 50u);
  for (const std::string& name : names) {
    if (getenv(name.c_str()) != nullptr) continue;  // By whoever runs this test.
    setenv(name.c_str(), "1", 1);
    for (const std::string& line : MisspelledClientVariables())
      EXPECT_EQ(line.find(name + " "), std::string::npos) << line;
    unsetenv(name.c_str());
  }
}

TEST(ServerConfig, VariablesThatNoSettingReadsAreWarnedAboutButThoseOfOthersAreNot) {
  const Texts silent = {"C3PO_TOKEN", "C3PO_INSECURE_TOKEN", "C3PO_CACHE_DIR", "C3PO_SERVICE_HOST",
                        "C3PO_PORT_50051_TCP_ADDR"};
  for (const std::string& name : silent) setenv(name.c_str(), "10.0.0.7", 1);
  setenv("C3PO_AUTH_TOKEN", "/etc/c3po/tokens", 1);
  ServerConfig config;
  SettingOrigins origins;
  const auto parsed = Parse({}, config, origins);
  for (const std::string& name : silent) unsetenv(name.c_str());
  unsetenv("C3PO_AUTH_TOKEN");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  Texts ours;  // Not those that whoever runs this test has set.
  for (const std::string& warning : origins.warnings) {
    if (warning.find("AUTH") != std::string::npos) ours.push_back(warning);
    for (const std::string& name : silent) EXPECT_EQ(warning.find(name + " "), std::string::npos) << warning;
  }
  EXPECT_EQ(ours, (Texts{"C3PO_AUTH_TOKEN is set, and no setting reads it; did you mean C3PO_AUTH_TOKENS?"}));
}

TEST(ServerConfig, WhoMayCallIsToldInWords) {
  const auto callers = [](Texts arguments) {
    ServerConfig config;
    const auto parsed = Parse(std::move(arguments), config);
    EXPECT_TRUE(parsed.ok()) << parsed.status();
    return config.Callers();
  };
  EXPECT_EQ(callers({}), "anyone on loopback");
  EXPECT_EQ(callers({"--auth-tokens", "t"}), "who holds a token of t on loopback");
  EXPECT_EQ(callers({"--listen", "unix:/run/c3po"}), "anyone who may open unix:/run/c3po");
  EXPECT_EQ(callers({"--listen", "0.0.0.0:1", "--insecure"}), "anyone who reaches 0.0.0.0:1, without encryption");
  EXPECT_EQ(callers({"--listen", "0.0.0.0:1", "--tls-cert", "c", "--tls-key", "k", "--tls-client-ca", "ca"}),
            "anyone with a certificate signed by ca who reaches 0.0.0.0:1");
}

TEST(ServerConfig, TokensInPlaintextAreKnown) {
  const auto plaintext = [](Texts arguments) {
    ServerConfig config;
    const auto parsed = Parse(std::move(arguments), config);
    EXPECT_TRUE(parsed.ok()) << parsed.status();
    return config.TokensInPlaintext();
  };
  EXPECT_TRUE(plaintext({"--auth-tokens", "t", "--listen", "0.0.0.0:1", "--insecure"}));
  EXPECT_TRUE(plaintext({"--auth-tokens", "t", "--listen", "[::]:1", "--insecure"}));
  EXPECT_FALSE(plaintext({"--listen", "0.0.0.0:1", "--insecure"}));
  EXPECT_FALSE(plaintext({"--auth-tokens", "t", "--insecure"}));
  EXPECT_FALSE(plaintext({"--auth-tokens", "t", "--listen", "unix:/run/c3po"}));
  EXPECT_FALSE(plaintext({"--auth-tokens", "t", "--listen", "0.0.0.0:1", "--tls-cert", "c", "--tls-key", "k"}));
}

TEST(ServerConfig, TheCommandLineWinsOverTheEnvironmentAndTheLastFlagOverTheFirst) {
  setenv("C3PO_NEIGHBORS", "7", 1);
  ServerConfig config;
  ASSERT_TRUE(Parse({"--steps", "3", "--steps", "4"}, config).ok());
  EXPECT_EQ(config.neighbors, 7);
  EXPECT_EQ(config.steps, 4);
  ASSERT_TRUE(Parse({"--neighbors", "5"}, config).ok());
  EXPECT_EQ(config.neighbors, 5);
  unsetenv("C3PO_NEIGHBORS");
}

TEST(ServerConfig, BeyondThisMachineItWantsEncryptionOrTheWordInsecure) {
  const auto verdict = [](std::vector<std::string> arguments) {
    ServerConfig config;
    return Parse(std::move(arguments), config).status();
  };
  for (const std::string address : {"127.0.0.1:1", "localhost:1", "[::1]:1", "unix:/tmp/socket"})
    EXPECT_TRUE(verdict({"--listen", address}).ok()) << address;
  for (const std::string address : {"0.0.0.0:1", "[::]:1", "10.0.0.7:1", "host:1", "dns:///host:1"}) {
    const absl::Status refused = verdict({"--listen", address});
    EXPECT_NE(std::string(refused.message()).find("--insecure"), std::string::npos) << address << ": " << refused;
    EXPECT_TRUE(verdict({"--listen", address, "--insecure"}).ok()) << address;
    EXPECT_TRUE(verdict({"--listen", address, "--tls-cert", "c", "--tls-key", "k"}).ok()) << address;
  }
}

TEST(ServerConfig, AnAddressNeedsItsPort) {
  const auto verdict = [](const std::string& address) {
    ServerConfig config;
    return Parse({"--listen", address, "--insecure"}, config).status();
  };
  for (const std::string address : {"127.0.0.1:0", "localhost:65535", "[::1]:50051", "0.0.0.0:1", "unix:/tmp/socket",
                                    "unix:socket", "unix-abstract:name", "dns:///host:1"}) {
    EXPECT_TRUE(verdict(address).ok()) << address << ": " << verdict(address);
  }
  for (const std::string address : {"", "127.0.0.1", "localhost", "127.0.0.1:", "127.0.0.1:https", "127.0.0.1:65536",
                                    "127.0.0.1:-1", "[::1]", "::1", "::1:50051", "unix:", "unix-abstract:"}) {
    const std::string message(verdict(address).message());
    EXPECT_EQ(message.substr(0, 10), "--listen: ") << address << ": " << message;
  }
  EXPECT_NE(std::string(verdict("::1:50051").message()).find("[::1]:50051"), std::string::npos);
}

TEST(ServerConfig, NumbersArePrintedWithoutLoss) {
  ServerConfig config;
  config.learning_rate = 0.123456789;
  EXPECT_NE(config.ToText().find("\nlearning-rate = 0.123456789\n"), std::string::npos);
}

TEST(ServerConfig, EveryLimitIsPrinted) {
  const ServerConfig config;
  const std::string text = config.ToText();
  EXPECT_GE(config.Limits().size(), 15u);
  for (const auto& [name, value] : config.Limits()) {
    std::string flag = name;
    std::replace(flag.begin(), flag.end(), '_', '-');
    EXPECT_NE(text.find("\n" + flag + " = " + std::to_string(value) + "\n"), std::string::npos) << flag;
  }
}

// A limit is what the list marks as one, whatever its name: max_tokens_default bounds nothing.
TEST(ServerConfig, ClientsAreToldTheSettingsThatAreMarkedAsLimits) {
  const std::set<std::string> expected = {"address_connections_max",
                                          "address_watches_max",
                                          "answers_max",
                                          "caller_calls_max",
                                          "caller_calls_per_minute_max",
                                          "caller_tokens_per_minute_max",
                                          "connection_age_grace_seconds_max",
                                          "connection_age_seconds_max",
                                          "connection_streams_max",
                                          "connections_max",
                                          "continuations_max",
                                          "drain_seconds_max",
                                          "exact_references_max",
                                          "experts_per_token_max",
                                          "generation_wait_seconds_max",
                                          "import_streams_max",
                                          "kv_cache_tokens",
                                          "learning_calls_max",
                                          "logit_bias_max",
                                          "message_bytes_max",
                                          "neighbor_cache_mb",
                                          "output_tokens_max",
                                          "pending_requests_max",
                                          "pending_tokens_max",
                                          "prefill_tokens_per_step",
                                          "prompt_tokens_max",
                                          "running_sequences_max",
                                          "stall_seconds_max",
                                          "stop_string_bytes_max",
                                          "stop_strings_max",
                                          "unread_messages_max",
                                          "unread_seconds_max",
                                          "watches_max"};
  std::set<std::string> told;
  for (const auto& [name, value] : ServerConfig().Limits()) told.insert(name);
  EXPECT_EQ(told, expected);
}

TEST(ServerConfig, TheTypeOfKeysAndValuesComesByFlagEnvironmentAndFile) {
  ServerConfig by_default, by_flag, by_environment, by_file;
  ASSERT_TRUE(Parse({}, by_default).ok());
  EXPECT_EQ(by_default.kv_cache_dtype, "auto");
  ASSERT_TRUE(Parse({"--kv-cache-dtype", "float32"}, by_flag).ok());
  EXPECT_EQ(by_flag.kv_cache_dtype, "float32");
  setenv("C3PO_KV_CACHE_DTYPE", "bfloat16", 1);
  const bool read = Parse({}, by_environment).ok();
  unsetenv("C3PO_KV_CACHE_DTYPE");
  ASSERT_TRUE(read);
  EXPECT_EQ(by_environment.kv_cache_dtype, "bfloat16");
  ASSERT_TRUE(Parse({"--config", FileHolding("kv-cache-dtype = \"bfloat16\"")}, by_file).ok());
  EXPECT_EQ(by_file.kv_cache_dtype, "bfloat16");
  EXPECT_NE(RefusalOf("kv-cache-dtype = \"half\"").find("--kv-cache-dtype"), std::string::npos);
}

TEST(ServerConfig, AQuantileJustAboveOneIsToldInFull) {
  ServerConfig config;
  config.gate_distance_quantile = 1.0000001;
  EXPECT_NE(config.Validate().message().find("is 1.0000001, must be in (0, 1]"), absl::string_view::npos);
}

TEST(ServerConfig, WhatIsWrongIsToldWithTheValue) {
  ServerConfig config;
  config.learning_rate = std::numeric_limits<double>::infinity();
  EXPECT_EQ(config.Validate().message(), "--learning-rate: is inf, must be in (0, 10]");
  config = ServerConfig();
  config.collection = "";
  EXPECT_EQ(config.Validate().message(), "--collection: must not be empty");
}

TEST(ServerConfig, EveryWrongValueIsNamedByItsFlag) {
  const std::vector<std::vector<std::string>> wrong = {{"--model", ""},
                                                       {"--embedder-revision", "v1", "--embedder", "model"},
                                                       {"--embedder-dtype", "float16"},
                                                       {"--embedder-dtype", "bfloat16", "--embedder", "model"},
                                                       {"--device", "tpu"},
                                                       {"--dtype", "int8"},
                                                       {"--kv-cache-dtype", "int8"},
                                                       {"--weights", "int3"},
                                                       {"--index-device", "gpu"},
                                                       {"--index-memory-mb", "15"},
                                                       {"--index-memory-mb", "-1"},
                                                       {"--method", "sgd"},
                                                       {"--steps", "-1"},
                                                       {"--neighbors", "0"},
                                                       {"--learning-rate", "nan"},
                                                       {"--learning-rate", "inf"},
                                                       {"--learning-rate", "1e308"},
                                                       {"--collection", ""},
                                                       {"--collection", "two\nlines"},
                                                       {"--import-streams-max", "0"},
                                                       {"--call-memory-mb", "0"},
                                                       {"--unread-seconds-max", "0"},
                                                       {"--gate-distance-quantile", "1.5"},
                                                       {"--metrics-port", "70000"},
                                                       {"--workers", "0"},
                                                       {"--pending-requests-max", "0"},
                                                       {"--log-level", "loud"},
                                                       {"--application-rule", "all"},
                                                       {"--kv-cache-tokens", "-1"},
                                                       {"--gpu-memory-fraction", "0"},
                                                       {"--gpu-memory-fraction", "1.1"},
                                                       {"--gpu-memory-fraction", "nan"},
                                                       {"--core-experts", "-2"},
                                                       {"--stop-strings-max", "17"},
                                                       {"--output-tokens-max", "-1"},
                                                       {"--answers-max", "0"},
                                                       {"--pending-tokens-max", "0"},
                                                       {"--connection-streams-max", "0"},
                                                       {"--stall-seconds-max", "0"}};
  for (const auto& arguments : wrong) {
    ServerConfig config;
    const auto result = Parse(arguments, config);
    ASSERT_FALSE(result.ok()) << arguments[0];
    EXPECT_NE(std::string(result.status().message()).find(arguments[0]), std::string::npos) << result.status();
  }
  ServerConfig config;
  EXPECT_FALSE(Parse({"--no-such-flag"}, config).ok());
  const std::string mistyped(Parse({"--auth_tokens=t"}, config).status().message());
  EXPECT_NE(mistyped.find("did you mean --auth-tokens?"), std::string::npos) << mistyped;
  EXPECT_FALSE(Parse({"--steps", "many"}, config).ok());
}

}  // namespace
}  // namespace c3po
