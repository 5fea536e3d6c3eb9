#include "server/config/server_config.h"

#include <gtest/gtest.h>

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

TEST(ServerConfig, EveryWrongValueIsNamedByItsFlag) {
  const std::vector<std::vector<std::string>> wrong = {{"--model", ""},
                                                       {"--device", "tpu"},
                                                       {"--dtype", "int8"},
                                                       {"--method", "sgd"},
                                                       {"--steps", "-1"},
                                                       {"--neighbors", "0"},
                                                       {"--learning-rate", "nan"},
                                                       {"--metrics-port", "70000"},
                                                       {"--workers", "0"},
                                                       {"--pending-requests-max", "0"},
                                                       {"--log-level", "loud"},
                                                       {"--application-rule", "all"},
                                                       {"--kv-cache-tokens", "0"},
                                                       {"--core-experts", "-2"}};
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
