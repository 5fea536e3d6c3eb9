#include "server/metrics/http_server.h"

#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <exception>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "httplib.h"
#include "server/metrics/logging.h"
#include "server/metrics/metrics.h"

namespace c3po {
namespace {

constexpr int kWorkers = 4;
constexpr int kIdleSeconds = 1;
constexpr int kReadSeconds = 2;
constexpr int kWriteSeconds = 5;
constexpr size_t kBodyBytesMax = 4096;  // Of a request; none of ours has a body.
constexpr char kPlainText[] = "text/plain; charset=utf-8";
constexpr char kExposition[] = "text/plain; version=0.0.4; charset=utf-8";

// The library's default sets SO_REUSEPORT, with which two servers share one port in silence.
void SetSocketOptions(socket_t socket) {
  const int yes = 1;
  setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
}

void Configure(httplib::Server& server, const Metrics* metrics, std::function<bool()> ready,
               std::function<bool()> alive) {
  server.new_task_queue = [] { return new httplib::ThreadPool(kWorkers); };
  server.set_socket_options(SetSocketOptions);
  server.set_keep_alive_max_count(1);
  server.set_keep_alive_timeout(kIdleSeconds);
  server.set_read_timeout(kReadSeconds);
  server.set_write_timeout(kWriteSeconds);
  server.set_payload_max_length(kBodyBytesMax);
  server.Get("/metrics", [metrics](const httplib::Request&, httplib::Response& response) {
    response.set_content(metrics->PrometheusText(), kExposition);
  });
  server.Get("/healthz", [alive = std::move(alive)](const httplib::Request&, httplib::Response& response) {
    const bool is_alive = alive();
    response.status = is_alive ? 200 : 503;
    response.set_content(is_alive ? "alive\n" : "stalled\n", kPlainText);
  });
  server.Get("/readyz", [ready = std::move(ready)](const httplib::Request&, httplib::Response& response) {
    const bool is_ready = ready();
    response.status = is_ready ? 200 : 503;
    response.set_content(is_ready ? "ready\n" : "not ready\n", kPlainText);
  });
}

}  // namespace

struct HttpServer::State {
  httplib::Server server;
  int port = 0;
  std::atomic<bool> stopping{false};
  std::atomic<bool> ended{false};
  std::thread listener;

  void Listen() {
    try {
      server.listen_after_bind();
    } catch (const std::exception& error) {
      Log(LogLevel::kError, "metrics_http_failed", "", {{"error", error.what()}});
    }
    if (!stopping) Log(LogLevel::kError, "metrics_http_ended", "", {{"port", port}});
    ended = true;
  }
};

HttpServer::HttpServer(std::unique_ptr<State> state) : state_(std::move(state)) {}

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const std::string& address, int port,
                                                              const Metrics* metrics, std::function<bool()> ready,
                                                              std::function<bool()> alive) {
  if (port < 0 || port > 65535) {
    return absl::InvalidArgumentError(absl::StrCat("metrics port: ", port, " is not in [0, 65535]"));
  }
  if (ready == nullptr) return absl::InvalidArgumentError("metrics http server: no readiness function");
  try {
    auto state = std::make_unique<State>();
    Configure(state->server, metrics, std::move(ready), std::move(alive));
    errno = 0;
    if (port == 0) {
      state->port = state->server.bind_to_any_port(address);
    } else {
      state->port = state->server.bind_to_port(address, port) ? port : -1;
    }
    if (state->port <= 0) {
      const std::string reason = errno != 0 ? std::strerror(errno) : "the address cannot be resolved";
      return absl::UnavailableError(
          absl::StrCat("metrics http server: cannot listen on ", address, ":", port, ": ", reason));
    }

    // Threads inherit the mask: an interrupted accept() would end the listener.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    state->listener = std::thread([s = state.get()] { s->Listen(); });
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    // stop() does nothing before the listener runs, so nobody may get the server earlier.
    while (!state->server.is_running() && !state->ended) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return std::unique_ptr<HttpServer>(new HttpServer(std::move(state)));
  } catch (const std::exception& error) {
    return absl::UnavailableError(absl::StrCat("metrics http server on ", address, ":", port, ": ", error.what()));
  }
}

HttpServer::~HttpServer() {
  state_->stopping = true;
  if (!state_->ended) state_->server.stop();
  state_->listener.join();
}

int HttpServer::port() const { return state_->port; }

}  // namespace c3po
