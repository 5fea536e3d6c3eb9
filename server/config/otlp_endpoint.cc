#include "server/config/otlp_endpoint.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "index/base/host_port.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr char kPort[] = ":4317";

bool OfHost(char c) { return absl::ascii_isalnum(c) || absl::string_view("-._:[]").find(c) != absl::string_view::npos; }

}  // namespace

absl::StatusOr<OtlpEndpoint> ParseOtlpEndpoint(absl::string_view url) {
  OtlpEndpoint endpoint;
  absl::string_view rest = url;
  if (absl::ConsumePrefix(&rest, "https://")) {
    endpoint.tls = true;
  } else if (!absl::ConsumePrefix(&rest, "http://")) {
    return absl::InvalidArgumentError(absl::StrCat("\"", url, "\" does not begin with http:// or https://"));
  }
  absl::ConsumeSuffix(&rest, "/");
  if (rest.empty() || rest.front() == ':') return absl::InvalidArgumentError(absl::StrCat("\"", url, "\" has no host"));
  const bool brackets = rest.front() == '[';
  const bool closed = absl::StrContains(rest, ']') == brackets && rest.rfind('[') == (brackets ? 0 : rest.npos);
  if (!closed || !std::all_of(rest.begin(), rest.end(), OfHost)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "\"", url, "\" must be a host and a port after the scheme: OTLP over gRPC has no path, query or user"));
  }
  const bool has_port = absl::StrContains(rest, brackets ? "]:" : ":");
  endpoint.target = absl::StrCat(rest, has_port ? "" : kPort);
  C3PO_RETURN_IF_ERROR(CheckHostPort(endpoint.target));
  const absl::string_view host = absl::string_view(endpoint.target).substr(0, endpoint.target.rfind(':'));
  const bool number = std::none_of(host.begin(), host.end(), absl::ascii_isalpha);
  endpoint.local = host == "localhost" || host == "[::1]" || (number && absl::StartsWith(host, "127."));
  return endpoint;
}

}  // namespace c3po
