#include "server/config/otlp_endpoint.h"

#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "server/config/server_config.h"

namespace c3po {
namespace {

TEST(OtlpEndpoint, IsAUrlOfHostAndPort) {
  const struct {
    const char* url;
    const char* target;
    bool tls, local;
  } endpoints[] = {
      {"http://127.0.0.1:4317", "127.0.0.1:4317", false, true},
      {"http://localhost", "localhost:4317", false, true},
      {"http://localhost/", "localhost:4317", false, true},
      {"https://otel.example.com", "otel.example.com:4317", true, false},
      {"https://otel.example.com:443/", "otel.example.com:443", true, false},
      {"http://[::1]:5000", "[::1]:5000", false, true},
      {"http://[2001:db8::7]", "[2001:db8::7]:4317", false, false},
      {"http://127.example.com:1", "127.example.com:1", false, false},
  };
  for (const auto& each : endpoints) {
    const auto endpoint = ParseOtlpEndpoint(each.url);
    ASSERT_TRUE(endpoint.ok()) << each.url << ": " << endpoint.status();
    EXPECT_EQ(endpoint->target, each.target);
    EXPECT_EQ(endpoint->tls, each.tls) << each.url;
    EXPECT_EQ(endpoint->local, each.local) << each.url;
  }
}

TEST(OtlpEndpoint, AnythingElseIsRefused) {
  for (const char* url :
       {"", "localhost:4317", "grpc://localhost:4317", "HTTP://localhost", "http://", "https:///", "http://:4317",
        "http://localhost:4317/v1/traces", "http://user:key@localhost:4317", "http://localhost?key=1",
        "http://localhost:99999", "http://localhost:port", "http://a b", "http://[::1", "http://::1"}) {
    EXPECT_FALSE(ParseOtlpEndpoint(url).ok()) << url;
  }
}

TEST(OtlpEndpoint, TheSettingsOfTracesAreChecked) {
  const auto message = [](const ServerConfig& config) { return std::string(config.Validate().message()); };
  ServerConfig config;
  config.otlp_traces_endpoint = "http://localhost:4317";
  config.otlp_traces_sample_ratio = 0;
  EXPECT_EQ(message(config), "");
  config.otlp_traces_ca = "ca.pem";
  EXPECT_EQ(message(config).rfind("--otlp-traces-ca: ", 0), 0u) << message(config);
  config.otlp_traces_endpoint = "https://localhost:4317";
  EXPECT_EQ(message(config), "");
  config.otlp_traces_endpoint = "";
  EXPECT_EQ(message(config).rfind("--otlp-traces-ca: ", 0), 0u) << message(config);
  config.otlp_traces_ca = "";
  for (const double ratio : {-0.1, 1.1, std::numeric_limits<double>::quiet_NaN()}) {
    config.otlp_traces_sample_ratio = ratio;
    EXPECT_EQ(message(config).rfind("--otlp-traces-sample-ratio: ", 0), 0u) << ratio;
  }
  config.otlp_traces_sample_ratio = 1;
  config.otlp_traces_endpoint = "localhost:4317";
  EXPECT_EQ(message(config).rfind("--otlp-traces-endpoint: ", 0), 0u) << message(config);
}

}  // namespace
}  // namespace c3po
