#ifndef C3PO_SERVER_METRICS_HTTP_SERVER_H_
#define C3PO_SERVER_METRICS_HTTP_SERVER_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace c3po {

class Metrics;

struct HttpLimits {
  int connections_max = 64;
  double request_seconds_max = 5;  // From the connection to the last byte of the answer.
  size_t header_bytes_max = 8192;  // Request line and all headers.
  size_t body_bytes_max = 4096;    // None of the paths takes one.
  int reserved_descriptors = 4;    // Held open, to be given up for a probe when the process has no other.
};

// The plain HTTP side door of the server, for Prometheus and for probes:
//   GET /metrics  200, text/plain; version=0.0.4: Metrics::PrometheusText.
//   GET /healthz  200 while `alive()` says true, else 503: only a restart will help.
//   GET /readyz   200 when `ready()` says true, else 503: bring no new requests.
// The body of a probe is one word, and a line "warning: ..." for each of `warnings()`: what needs an operator, and no
// restart. Anything else is 404. No authentication: bind it to loopback or to an inside network.
//
// One thread of default stack size serves all connections and waits for none; it blocks all signals, so that the
// process's own handlers run elsewhere. A connection carries one request. Its limits hold for the request as a whole:
// bytes that trickle in buy no time. A request beyond its byte limits is answered 431 or 413. Where all places are
// taken, or the process has no descriptor left, a new connection takes the place of the one that has waited longest.
class HttpServer {
 public:
  // Returns when connections are accepted. `address` is an IP address or host name of this machine; `port` in [0,
  // 65535], 0 chooses a free one (see port()). `metrics` is not owned and must outlive the server; `ready`, `alive`
  // and `warnings` are called from the server's thread and must not block. InvalidArgument: port out of range, no
  // `ready`. Unavailable: cannot bind, naming address, port and reason.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(
      const std::string& address, int port, const Metrics* metrics, std::function<bool()> ready,
      std::function<bool()> alive = [] { return true; }, const HttpLimits& limits = {},
      std::function<std::vector<std::string>()> warnings = [] { return std::vector<std::string>(); });
  // Closes the port and every connection that has sent no whole request. Answers that are being written have a second.
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  int port() const;

 private:
  struct State;
  explicit HttpServer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_METRICS_HTTP_SERVER_H_
