#ifndef C3PO_SERVER_METRICS_HTTP_SERVER_H_
#define C3PO_SERVER_METRICS_HTTP_SERVER_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace c3po {

class Metrics;

// The plain HTTP side door of the server, for Prometheus and for probes:
//   GET /metrics  200, text/plain; version=0.0.4: Metrics::PrometheusText.
//   GET /healthz  200 while `alive()` says true, else 503: only a restart will help.
//   GET /readyz   200 when `ready()` says true, else 503: bring no new requests.
// Anything else is 404. No authentication: bind it to loopback or to an inside network.
//
// A listener thread and four workers, of default stack size; one request per connection; a silent connection is dropped
// after a second. The threads block all signals, so that the process's own handlers run elsewhere.
class HttpServer {
 public:
  // Returns when connections are accepted. `address` is an IP address or host name of this machine; `port` in [0,
  // 65535], 0 chooses a free one (see port()). `metrics` is not owned and must outlive the server; `ready` and `alive`
  // are called from worker threads, at the same time from several, and must not block. InvalidArgument: port out of
  // range, no `ready`. Unavailable: cannot bind, naming address, port and reason.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(
      const std::string& address, int port, const Metrics* metrics, std::function<bool()> ready,
      std::function<bool()> alive = [] { return true; });
  // Answers what is in hand, then closes the port. Takes a second at most when idle connections hang on.
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
