#include "server/rpc/otlp_tracing.h"

#include <unistd.h>

#include <cstdlib>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "index/base/durable_file.h"
#include "index/base/status_macros.h"
#include "index/base/utf8.h"
#include "server/config/otlp_endpoint.h"
#include "server/metrics/logging.h"
#include "server/rpc/otlp_sender.h"

namespace c3po {
namespace {

constexpr int64_t kCaBytesMax = 4 << 20;  // The certificates of a whole system are a quarter of a MiB.
constexpr char kServiceName[] = "c3pod";

// Version 4 of RFC 9562.
std::string RandomUuid() {
  TraceId bits = NewTraceId();
  bits[6] = static_cast<uint8_t>((bits[6] & 0x0f) | 0x40);
  bits[8] = static_cast<uint8_t>((bits[8] & 0x3f) | 0x80);
  const std::string hex = TraceHex(bits);
  return absl::StrCat(hex.substr(0, 8), "-", hex.substr(8, 4), "-", hex.substr(12, 4), "-", hex.substr(16, 4), "-",
                      hex.substr(20));
}

std::string HostName() {
  char name[256] = {};
  return gethostname(name, sizeof name - 1) == 0 && IsValidUtf8(name) ? name : "";
}

// What OTEL_RESOURCE_ATTRIBUTES says comes before what is found here.
NamedTexts ResourceOf(const ServerConfig& config, const OtlpEnvironment& environment, const std::string& version) {
  const std::string& named = config.otlp_service_name.empty() ? environment.service_name : config.otlp_service_name;
  NamedTexts resource = {{"service.name", named.empty() ? kServiceName : named}};
  resource.insert(resource.end(), environment.resource_attributes.begin(), environment.resource_attributes.end());
  const auto add = [&resource](const char* name, std::string value) {
    for (const auto& [known, _] : resource) {
      if (known == name) return;
    }
    if (!value.empty()) resource.emplace_back(name, std::move(value));
  };
  add("service.version", version);
  add("service.instance.id", RandomUuid());
  add("host.name", HostName());
  return resource;
}

}  // namespace

absl::StatusOr<std::unique_ptr<OtlpTracing>> OtlpTracing::Make(const ServerConfig& config, const std::string& version,
                                                               Metrics* metrics, const ReadVariable& read) {
  if (config.otlp_traces_endpoint.empty()) return std::unique_ptr<OtlpTracing>();
  OtlpSender::Options options;
  C3PO_ASSIGN_OR_RETURN(options.endpoint, ParseOtlpEndpoint(config.otlp_traces_endpoint));
  if (!config.otlp_traces_ca.empty()) {
    absl::StatusOr<std::string> ca = ReadWholeFile(config.otlp_traces_ca, kCaBytesMax);
    if (ca.ok() && !absl::StrContains(*ca, "-----BEGIN CERTIFICATE-----")) {
      ca = absl::InvalidArgumentError(absl::StrCat(config.otlp_traces_ca, ": has no certificate in PEM"));
    }
    if (!ca.ok()) return absl::InvalidArgumentError(absl::StrCat("--otlp-traces-ca: ", ca.status().message()));
    options.ca = *std::move(ca);
  }
  C3PO_ASSIGN_OR_RETURN(OtlpEnvironment environment, ReadOtlpEnvironment(read));
  options.resource = ResourceOf(config, environment, version);
  options.headers = std::move(environment.headers);
  options.version = version;
  if (!options.headers.empty() && !options.endpoint.tls && !options.endpoint.local) {
    Log(LogLevel::kWarning, "trace_headers_in_plaintext", "",
        {{"reason", "the headers of exports cross the network unencrypted: --otlp-traces-endpoint is http://"}});
  }
  Log(LogLevel::kInfo, "traces", "",
      {{"endpoint", config.otlp_traces_endpoint},
       {"service_name", options.resource.front().second},
       {"sample_ratio", config.otlp_traces_sample_ratio},
       {"headers", options.headers.size()}});
  auto sender = std::make_unique<OtlpSender>(std::move(options));
  return std::unique_ptr<OtlpTracing>(new OtlpTracing(std::move(sender), config, metrics));
}

OtlpTracing::OtlpTracing(std::unique_ptr<SpanSender> sender, const ServerConfig& config, Metrics* metrics)
    : exporter_(std::move(sender), config.otlp_traces_endpoint, ExportLimits(), metrics),
      tracer_(config.otlp_traces_sample_ratio, [this](std::vector<Span> spans) { exporter_.Add(std::move(spans)); }) {}

std::string EnvironmentVariable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace c3po
