#include "server/config/server_config.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <string>
#include <vector>

namespace c3po {
namespace {

absl::StatusOr<CommandLineAction> Parse(std::vector<std::string> arguments, ServerConfig& config) {
  arguments.insert(arguments.begin(), "c3pod");
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  return ParseCommandLine(static_cast<int>(argv.size()), argv.data(), "0", config);
}

TEST(ServerConfig, DefaultsAreValidAndPrintedOnesReadBackEqual) {
  ServerConfig config;
  ASSERT_TRUE(config.Validate().ok()) << config.Validate();
  config.steps = 17;
  config.model = "/models/a b";
  const std::string path = testing::TempDir() + "/c3pod.toml";
  std::ofstream(path) << config.ToText();
  ServerConfig read;
  ASSERT_TRUE(Parse({"--config", path}, read).ok());
  EXPECT_EQ(read.ToText(), config.ToText());
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

TEST(ServerConfig, EveryWrongValueIsNamedByItsFlag) {
  const std::vector<std::vector<std::string>> wrong = {{"--model", ""},
                                                       {"--device", "tpu"},
                                                       {"--dtype", "int8"},
                                                       {"--method", "sgd"},
                                                       {"--steps", "-1"},
                                                       {"--neighbors", "0"},
                                                       {"--learning-rate", "nan"},
                                                       {"--gate-distance-quantile", "1.5"},
                                                       {"--metrics-port", "70000"},
                                                       {"--workers", "0"},
                                                       {"--pending-requests-max", "0"},
                                                       {"--log-level", "loud"},
                                                       {"--application-rule", "all"},
                                                       {"--kv-cache-tokens", "0"},
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
  EXPECT_FALSE(Parse({"--steps", "many"}, config).ok());
}

}  // namespace
}  // namespace c3po
