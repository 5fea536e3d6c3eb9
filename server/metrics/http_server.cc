// One thread, one event loop (Boost.Asio); Boost.Beast reads requests and writes answers.
//
// A connection is: read a request ▶ write its answer ▶ read until the peer closes, so that the answer is not lost to a
// reset ▶ close. One timer, set when the connection is accepted, ends it wherever it is.

#include "server/metrics/http_server.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <exception>
#include <list>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "boost/asio/io_context.hpp"
#include "boost/asio/ip/tcp.hpp"
#include "boost/asio/steady_timer.hpp"
#include "boost/beast/core.hpp"
#include "boost/beast/http.hpp"
#include "index/base/escaped_exception.h"
#include "server/metrics/logging.h"
#include "server/metrics/metrics.h"

namespace c3po {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using asio::ip::tcp;

constexpr char kPlainText[] = "text/plain; charset=utf-8";
constexpr char kExposition[] = "text/plain; version=0.0.4; charset=utf-8";
constexpr std::chrono::milliseconds kAcceptPause(50);  // After an accept that failed.
constexpr std::chrono::seconds kWarningPause(10);      // Between two log lines about it.
constexpr std::chrono::seconds kStopGrace(1);
constexpr size_t kDiscardedBytesMax = 64 << 10;  // Read after the answer, at most, to see the peer close.

std::chrono::milliseconds Milliseconds(double seconds) {
  return std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000));
}

struct Answer {
  http::status status;
  std::string body;
  const char* content_type = kPlainText;
};

// What the paths answer.
struct Paths {
  const Metrics* metrics;
  std::function<bool()> ready, alive;
  std::function<std::vector<std::string>()> warnings;

  Answer AnswerTo(http::verb method, beast::string_view target) const {
    const beast::string_view path = target.substr(0, target.find('?'));
    if (method != http::verb::get && method != http::verb::head) return {http::status::not_found, "not found\n"};
    if (path == "/metrics") return {http::status::ok, metrics->PrometheusText(), kExposition};
    if (path == "/healthz") return Probe(alive(), "alive", "stalled");
    if (path == "/readyz") return Probe(ready(), "ready", "not ready");
    return {http::status::not_found, "not found\n"};
  }

  Answer Probe(bool good, const char* yes, const char* no) const {
    std::string body = absl::StrCat(good ? yes : no, "\n");
    for (const std::string& warning : warnings()) absl::StrAppend(&body, "warning: ", warning, "\n");
    return {good ? http::status::ok : http::status::service_unavailable, std::move(body)};
  }
};

// Descriptors that are open for nothing but to be closed in need.
class DescriptorReserve {
 public:
  explicit DescriptorReserve(int size) : size_(size) { Fill(); }
  ~DescriptorReserve() {
    while (Release()) {
    }
  }
  DescriptorReserve(const DescriptorReserve&) = delete;
  DescriptorReserve& operator=(const DescriptorReserve&) = delete;

  void Fill() {
    while (static_cast<int>(held_.size()) < size_) {
      const int descriptor = open("/dev/null", O_RDONLY | O_CLOEXEC);
      if (descriptor < 0) return;
      held_.push_back(descriptor);
    }
  }
  bool Release() {
    if (held_.empty()) return false;
    close(held_.back());
    held_.pop_back();
    return true;
  }

 private:
  const int size_;
  std::vector<int> held_;
};

class Connection;

// What connections tell their server. `closed` is called once, last.
struct ConnectionEvents {
  std::function<void(Connection*)> has_request, closed;
};

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(tcp::socket socket, const Paths& paths, const HttpLimits& limits, const ConnectionEvents& events)
      : stream_(std::move(socket)),
        paths_(paths),
        events_(events),
        buffer_(limits.header_bytes_max + limits.body_bytes_max) {
    parser_.header_limit(static_cast<uint32_t>(limits.header_bytes_max));
    parser_.body_limit(limits.body_bytes_max);
    stream_.expires_after(Milliseconds(limits.request_seconds_max));  // Set once: it bounds the whole.
  }

  void Start() {
    http::async_read(stream_, buffer_, parser_,
                     [self = shared_from_this()](beast::error_code error, size_t) { self->OnRequest(error); });
  }

  // Ends it wherever it is. Idempotent.
  void Close() {
    if (std::exchange(is_closed_, true)) return;
    stream_.close();
    events_.closed(this);
  }

 private:
  void OnRequest(beast::error_code error) {
    if (is_closed_) return;
    if (error == http::error::header_limit || error == http::error::buffer_overflow) {
      return Write({http::status::request_header_fields_too_large, "headers too large\n"});
    }
    if (error == http::error::body_limit) return Write({http::status::payload_too_large, "body too large\n"});
    if (error.category() == http::make_error_code(http::error::bad_method).category() &&
        error != http::error::end_of_stream && error != http::error::partial_message) {
      return Write({http::status::bad_request, "not HTTP\n"});
    }
    if (error) return Close();
    const auto answer = [this] { Write(paths_.AnswerTo(parser_.get().method(), parser_.get().target())); };
    if (!CatchEscapedIn(ThreadKind::kHttp, answer).ok()) Close();
  }

  void Write(Answer answer) {
    events_.has_request(this);
    const bool is_head = parser_.is_header_done() && parser_.get().method() == http::verb::head;
    response_.version(11);
    response_.result(answer.status);
    response_.set(http::field::content_type, answer.content_type);
    response_.keep_alive(false);
    response_.content_length(answer.body.size());
    if (!is_head) response_.body() = std::move(answer.body);
    http::async_write(stream_, response_, [self = shared_from_this()](beast::error_code failed, size_t) {
      if (failed || self->is_closed_) return self->Close();
      beast::error_code ignored;
      self->stream_.socket().shutdown(tcp::socket::shutdown_send, ignored);
      self->Discard();
    });
  }

  void Discard() {
    stream_.async_read_some(asio::buffer(discarded_), [self = shared_from_this()](beast::error_code error, size_t n) {
      self->discarded_bytes_ += n;
      if (error || self->discarded_bytes_ > kDiscardedBytesMax) return self->Close();
      self->Discard();
    });
  }

  beast::tcp_stream stream_;
  const Paths& paths_;
  const ConnectionEvents& events_;
  beast::flat_buffer buffer_;
  http::request_parser<http::string_body> parser_;
  http::response<http::string_body> response_;
  std::array<char, 4096> discarded_;
  size_t discarded_bytes_ = 0;
  bool is_closed_ = false;
};

}  // namespace

// All but `stopping` and the constructor's work belongs to the thread that runs `loop`.
struct HttpServer::State {
  State(Paths the_paths, const HttpLimits& the_limits)
      : paths(std::move(the_paths)), limits(the_limits), reserve(the_limits.reserved_descriptors) {
    events.has_request = [this](Connection* connection) { Remove(reading, connection, &answering); };
    events.closed = [this](Connection* connection) {
      Remove(reading, connection, nullptr);
      Remove(answering, connection, nullptr);
      reserve.Fill();
      if (is_stopping && reading.empty() && answering.empty()) loop.stop();
    };
  }

  using Connections = std::list<std::shared_ptr<Connection>>;  // The longest first.

  static void Remove(Connections& from, Connection* connection, Connections* to) {
    for (auto it = from.begin(); it != from.end(); ++it) {
      if (it->get() != connection) continue;
      const std::shared_ptr<Connection> kept = *it;
      from.erase(it);
      if (to != nullptr) to->push_back(kept);
      return;
    }
  }

  // False: there is none.
  bool CloseTheLongest() {
    Connections& from = reading.empty() ? answering : reading;
    if (from.empty()) return false;
    const std::shared_ptr<Connection> longest = from.front();
    longest->Close();
    return true;
  }

  static void CloseAll(Connections& connections) {
    while (!connections.empty()) {
      const std::shared_ptr<Connection> first = connections.front();
      first->Close();
    }
  }

  void Accept() {
    acceptor.async_accept([this](beast::error_code error, tcp::socket socket) {
      if (is_stopping) return;
      if (error) return OnAcceptFailed(error);
      if (static_cast<int>(reading.size() + answering.size()) >= limits.connections_max) CloseTheLongest();
      reading.push_back(std::make_shared<Connection>(std::move(socket), paths, limits, events));
      reading.back()->Start();
      Accept();
    });
  }

  // Without a descriptor to be had the connection stays in the system's queue, and accept fails at once, again and
  // again: hence the pause, unless one could be freed.
  void OnAcceptFailed(beast::error_code error) {
    const bool out_of_descriptors = error.value() == EMFILE || error.value() == ENFILE;
    const auto now = std::chrono::steady_clock::now();
    if (now >= next_warning) {
      next_warning = now + kWarningPause;
      Log(LogLevel::kWarning, "metrics_http_accept_failed", "", {{"reason", error.message()}});
    }
    if (out_of_descriptors && (reserve.Release() || CloseTheLongest())) return Accept();
    pause.expires_after(kAcceptPause);
    pause.async_wait([this](beast::error_code) {
      if (!is_stopping) Accept();
    });
  }

  void Stop() {
    is_stopping = true;
    beast::error_code ignored;
    acceptor.close(ignored);
    CloseAll(reading);
    if (answering.empty()) return loop.stop();
    // A connection's own timer cannot be set anew while an operation of it is under way.
    pause.expires_after(kStopGrace);
    pause.async_wait([this](beast::error_code error) {
      if (!error) CloseAll(answering);
    });
  }

  void Run() {
    // An exception is of one connection; the others go on.
    while (!CatchEscapedIn(ThreadKind::kHttp, [this] { loop.run(); }).ok()) {
    }
  }

  const Paths paths;
  const HttpLimits limits;
  ConnectionEvents events;
  asio::io_context loop{1};
  tcp::acceptor acceptor{loop};
  asio::steady_timer pause{loop};  // Before the next accept; at the end, before what is left is closed.
  DescriptorReserve reserve;
  Connections reading, answering;
  bool is_stopping = false;
  std::chrono::steady_clock::time_point next_warning;
  int port = 0;
  std::thread thread;
};

HttpServer::HttpServer(std::unique_ptr<State> state) : state_(std::move(state)) {}

namespace {

// The library's exceptions end here.
absl::Status Listen(asio::io_context& loop, tcp::acceptor& acceptor, const std::string& address, int port) {
  const std::string name = absl::StrCat("metrics http server: cannot listen on ", address, ":", port, ": ");
  try {
    tcp::resolver resolver(loop);
    beast::error_code error;
    const auto found = resolver.resolve(address, absl::StrCat(port), tcp::resolver::passive, error);
    if (error || found.empty()) return absl::UnavailableError(absl::StrCat(name, "the address cannot be resolved"));
    for (const tcp::endpoint endpoint : found) {  // "localhost" may be ::1 first, on a machine without IPv6.
      acceptor.open(endpoint.protocol(), error);
      if (!error) acceptor.set_option(tcp::acceptor::reuse_address(true), error);
      if (!error) acceptor.bind(endpoint, error);
      if (!error) acceptor.listen(tcp::acceptor::max_listen_connections, error);
      if (!error) return absl::OkStatus();
      beast::error_code ignored;
      acceptor.close(ignored);
    }
    return absl::UnavailableError(absl::StrCat(name, error.message()));
  } catch (const boost::system::system_error& failure) {
    return absl::UnavailableError(absl::StrCat(name, failure.code().message()));
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const std::string& address, int port,
                                                              const Metrics* metrics, std::function<bool()> ready,
                                                              std::function<bool()> alive, const HttpLimits& limits,
                                                              std::function<std::vector<std::string>()> warnings) {
  if (port < 0 || port > 65535) {
    return absl::InvalidArgumentError(absl::StrCat("metrics port: ", port, " is not in [0, 65535]"));
  }
  if (ready == nullptr) return absl::InvalidArgumentError("metrics http server: no readiness function");
  try {
    auto state =
        std::make_unique<State>(Paths{metrics, std::move(ready), std::move(alive), std::move(warnings)}, limits);
    if (absl::Status listening = Listen(state->loop, state->acceptor, address, port); !listening.ok()) {
      return listening;
    }
    state->port = state->acceptor.local_endpoint().port();
    state->Accept();
    sigset_t all, before;  // Threads inherit the mask.
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    state->thread = std::thread([s = state.get()] { s->Run(); });
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return std::unique_ptr<HttpServer>(new HttpServer(std::move(state)));
  } catch (const std::exception& error) {
    return absl::UnavailableError(absl::StrCat("metrics http server on ", address, ":", port, ": ", error.what()));
  }
}

HttpServer::~HttpServer() {
  boost::asio::post(state_->loop, [s = state_.get()] { s->Stop(); });
  state_->thread.join();
}

int HttpServer::port() const { return state_->port; }

}  // namespace c3po
