#ifndef C3PO_SERVER_RPC_DOORS_HTTP_HTTP_CONNECTION_H_
#define C3PO_SERVER_RPC_DOORS_HTTP_HTTP_CONNECTION_H_

#include <functional>
#include <memory>

#include "absl/time/time.h"
#include "server/rpc/doors/http/byte_stream.h"
#include "server/rpc/doors/http/http_message.h"

namespace c3po {

struct HttpConnectionLimits {
  size_t head_bytes_max = 16 << 10;  // Request line and headers; beyond: 431.
  size_t body_bytes_max = 16 << 20;  // Beyond: 413.
  absl::Duration handshake_max = absl::Seconds(10);
  absl::Duration head_max = absl::Seconds(10);  // From a head's first byte to its last.
  absl::Duration body_max = absl::Seconds(60);
  absl::Duration idle_max = absl::Minutes(15);        // Between two requests.
  absl::Duration unread_max = absl::Seconds(60);      // That a client may leave a write to it unread.
  absl::Duration age_max = absl::InfiniteDuration();  // +-10 %. Then it is closed behind an answer, or when it is idle.
};

// What becomes of a request once its head was read; the connection's own thread asks.
using HttpRouter = std::function<HttpRouting(const HttpRequest&)>;

// A connection of HTTP/1.1 or 1.0. One request after the other, as they come:
//
//   handshake ▶ head ▶ (route) ▶ body ▶ the call's answer ▶ head ...
//                                                         ▶ end of writing ▶ what the client still sends ▶ closed
//
// While a call runs the connection reads on: requests that come early wait, 64 KiB of them, and a client that ends its
// side has gone, which cancels the call. One timer ends the connection wherever it is. All of it belongs to the thread
// that runs `loop`.
class HttpConnection {
 public:
  // `closed` is called once, last. What `router` and `limits` refer to outlives the connection; `loop` lives as long
  // as it does.
  static std::shared_ptr<HttpConnection> Start(std::shared_ptr<boost::asio::io_context> loop,
                                               std::shared_ptr<ByteStream> stream, const HttpConnectionLimits& limits,
                                               const HttpRouter& router, std::function<void(HttpConnection*)> closed);
  virtual ~HttpConnection() = default;
  // Closes it behind the answer that is under way, or at once.
  virtual void Drain() = 0;
  virtual void Close() = 0;
};

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_DOORS_HTTP_HTTP_CONNECTION_H_
