#include "index/base/host_port.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace c3po {

absl::Status CheckHostPort(absl::string_view address) {
  absl::string_view socket = address;
  if (absl::ConsumePrefix(&socket, "unix:") || absl::ConsumePrefix(&socket, "unix-abstract:")) {
    return socket.empty() ? absl::InvalidArgumentError("names no socket after unix:") : absl::OkStatus();
  }
  const size_t colon = address.rfind(':');
  const size_t bracket = address.rfind(']');  // Of an IPv6 address, whose colons are no port's.
  const bool bare_ipv6 = bracket == absl::string_view::npos && colon != address.find(':') &&
                         address.find_first_not_of("0123456789abcdefABCDEF:.") == absl::string_view::npos;
  const bool has_port =
      colon != absl::string_view::npos && !bare_ipv6 && (bracket == absl::string_view::npos || colon > bracket);
  int port = -1;
  if (has_port && absl::SimpleAtoi(address.substr(colon + 1), &port) && port >= 0 && port <= 65535) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("\"", address, "\" is not ADDRESS:PORT with a port of 0 to 65535",
                   bare_ipv6 ? "; an IPv6 address stands in brackets: [::1]:50051" : ""));
}

}  // namespace c3po
