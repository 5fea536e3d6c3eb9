#include "server/trace/otlp_environment.h"

#include <gtest/gtest.h>

#include <map>
#include <string>

namespace c3po {
namespace {

using Variables = std::map<std::string, std::string>;

absl::StatusOr<OtlpEnvironment> Read(const Variables& variables) {
  return ReadOtlpEnvironment([&](const char* name) {
    const auto found = variables.find(name);
    return found == variables.end() ? std::string() : found->second;
  });
}

TEST(OtlpEnvironment, NothingIsSet) {
  const auto read = Read({});
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_TRUE(read->headers.empty());
  EXPECT_TRUE(read->resource_attributes.empty());
  EXPECT_EQ(read->service_name, "");
}

TEST(OtlpEnvironment, HeadersArePercentDecodedAndInLowerCase) {
  const auto read = Read({{"OTEL_EXPORTER_OTLP_HEADERS", "X-Api-Key=se%3Dcret, authorization = Basic%20YQ== ,,"}});
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->headers, (NamedTexts{{"x-api-key", "se=cret"}, {"authorization", "Basic YQ=="}}));
}

TEST(OtlpEnvironment, HeadersOfTracesComeBeforeThoseOfAllSignals) {
  const auto read = Read({{"OTEL_EXPORTER_OTLP_HEADERS", "a=1"}, {"OTEL_EXPORTER_OTLP_TRACES_HEADERS", "b=2"}});
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->headers, (NamedTexts{{"b", "2"}}));
}

TEST(OtlpEnvironment, TheServiceNameComesBeforeTheOneAmongTheAttributes) {
  Variables variables = {{"OTEL_RESOURCE_ATTRIBUTES", "service.name=a%2Cb,k8s.pod.name=c3po-0"}};
  auto read = Read(variables);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->service_name, "a,b");
  EXPECT_EQ(read->resource_attributes, (NamedTexts{{"k8s.pod.name", "c3po-0"}}));
  variables["OTEL_SERVICE_NAME"] = "mine";
  read = Read(variables);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->service_name, "mine");
}

TEST(OtlpEnvironment, WhatIsWrongIsNamedAndItsValueIsNot) {
  const struct {
    const char* variable;
    const char* value;
    const char* message;
  } wrong[] = {
      {"OTEL_EXPORTER_OTLP_HEADERS", "a=1,secret", "OTEL_EXPORTER_OTLP_HEADERS: entry 2 is not name=value"},
      {"OTEL_EXPORTER_OTLP_HEADERS", "=secret", "entry 1 is not name=value"},
      {"OTEL_EXPORTER_OTLP_TRACES_HEADERS", "a=%2", "OTEL_EXPORTER_OTLP_TRACES_HEADERS: entry 1"},
      {"OTEL_EXPORTER_OTLP_TRACES_HEADERS", "a=%2g", "entry 1"},
      {"OTEL_EXPORTER_OTLP_TRACES_HEADERS", "a b=secret", "header 1 cannot be sent over gRPC"},
      {"OTEL_EXPORTER_OTLP_TRACES_HEADERS", "a=1,key-bin=secret", "header 2 cannot be sent over gRPC"},
      {"OTEL_EXPORTER_OTLP_TRACES_HEADERS", "grpc-timeout=secret", "header 1 cannot be sent over gRPC"},
      {"OTEL_EXPORTER_OTLP_TRACES_HEADERS", "a=secret%0Aline", "header 1 cannot be sent over gRPC"},
      {"OTEL_RESOURCE_ATTRIBUTES", "secret", "OTEL_RESOURCE_ATTRIBUTES: entry 1"},
      {"OTEL_RESOURCE_ATTRIBUTES", "a=secret%FF", "OTEL_RESOURCE_ATTRIBUTES: is not UTF-8"},
      {"OTEL_SERVICE_NAME", "secret\xff", "OTEL_SERVICE_NAME: is not UTF-8"},
  };
  for (const auto& each : wrong) {
    const std::string message(Read({{each.variable, each.value}}).status().message());
    EXPECT_NE(message.find(each.message), std::string::npos) << each.value << ": " << message;
    EXPECT_EQ(message.find("secret"), std::string::npos) << message;
  }
}

}  // namespace
}  // namespace c3po
