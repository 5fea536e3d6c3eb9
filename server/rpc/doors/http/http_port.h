#ifndef C3PO_SERVER_RPC_DOORS_HTTP_HTTP_PORT_H_
#define C3PO_SERVER_RPC_DOORS_HTTP_HTTP_PORT_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/metrics/metrics.h"
#include "server/rpc/connection_listener.h"
#include "server/rpc/doors/http/http_connection.h"
#include "server/rpc/tls_files.h"

namespace c3po {

// Where HTTP connections come in. ConnectionListener accepts them, within its limits; two threads, each with an event
// loop (Boost.Asio), serve all of them, an idle one at the cost of its memory. Boost.Beast parses requests.
// Thread-safe.
class HttpPort {
 public:
  struct Options {
    std::string address;  // As ConnectionListener::Listen takes it.
    ConnectionLimits accepted;
    HttpConnectionLimits limits;
    std::shared_ptr<const TlsFiles> tls;  // Null: plain.
  };

  // `metrics` may be null; it and what `router` refers to outlive the port. Unavailable: the address is not to be had.
  static absl::StatusOr<std::unique_ptr<HttpPort>> Start(const Options& options, Metrics* metrics, HttpRouter router);
  ~HttpPort();

  int port() const;
  // Whether connections get through; see ConnectionListener.
  bool accepting() const;
  // No new connections; idle ones are closed, others behind the answer that is under way.
  void Drain();
  // The same, and what is left after `limit` is closed. Returns when nothing is.
  void Shutdown(absl::Duration limit);

 private:
  struct State;
  explicit HttpPort(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_DOORS_HTTP_HTTP_PORT_H_
