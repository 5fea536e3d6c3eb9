#include "server/rpc/doors/http/http_port.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <map>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "boost/asio/executor_work_guard.hpp"
#include "boost/asio/post.hpp"
#include "index/base/escaped_exception.h"
#include "index/base/status_macros.h"
#include "index/base/steady_time.h"
#include "server/metrics/logging.h"

namespace c3po {
namespace {

namespace asio = boost::asio;

constexpr size_t kThreads = 2;
constexpr absl::Duration kShutdownPoll = absl::Milliseconds(5);

}  // namespace

struct HttpPort::State {
  // One thread and its connections, which nobody else touches.
  struct Loop {
    std::shared_ptr<asio::io_context> io = std::make_shared<asio::io_context>(1);
    asio::executor_work_guard<asio::io_context::executor_type> work{io->get_executor()};
    std::map<HttpConnection*, std::shared_ptr<HttpConnection>> connections;
    bool draining = false;
    std::thread thread;
  };

  State(const Options& the_options, HttpRouter the_router)
      : options(the_options), router(std::move(the_router)), warnings(1) {
    if (options.tls != nullptr) tls.emplace(options.tls);
  }

  void Begin(Loop& loop) {
    loop.thread = std::thread([io = loop.io] {
      // An exception is of one connection; the others go on.
      while (!CatchEscapedIn(ThreadKind::kHttp, [&] { io->run(); }).ok()) {
      }
    });
  }

  // On the listener's thread.
  void Take(int descriptor) {
    Loop& loop = loops[next_loop++ % kThreads];
    ++open;
    asio::post(*loop.io, [this, &loop, descriptor] {
      if (!CatchEscapedIn(ThreadKind::kHttp, [&] { Serve(loop, descriptor); }).ok()) --open;
    });
  }

  void Serve(Loop& loop, int descriptor) {
    std::shared_ptr<asio::ssl::context> context;
    absl::Status status;
    if (tls) {
      auto current = tls->Current();
      status = current.status();
      if (current.ok()) context = *std::move(current);
    }
    if (!status.ok() || loop.draining) {
      close(descriptor);
      --open;
      if (!status.ok() && warnings.Admit(SteadyNow()))
        Log(LogLevel::kError, "http_tls_failed", "", {{"reason", status.message()}});
      return;
    }
    const auto closed = [this, &loop](HttpConnection* connection) {
      --open;
      const auto found = loop.connections.find(connection);
      if (found == loop.connections.end()) return;
      // It is still in its own code.
      asio::post(*loop.io, [kept = std::move(found->second)] {});
      loop.connections.erase(found);
    };
    auto stream = ByteStream::Take(*loop.io, descriptor, std::move(context));
    auto connection = HttpConnection::Start(loop.io, std::move(stream), options.limits, router, closed);
    loop.connections[connection.get()] = connection;
  }

  void OnEach(const std::function<void(Loop&)>& work) {
    for (Loop& loop : loops) asio::post(*loop.io, [&loop, work] { work(loop); });
  }

  const Options options;
  const HttpRouter router;
  std::optional<TlsContexts> tls;
  LogSampler warnings;
  std::array<Loop, kThreads> loops;
  size_t next_loop = 0;
  std::atomic<int64_t> open{0};
  std::unique_ptr<ConnectionListener> listener;
};

HttpPort::HttpPort(std::unique_ptr<State> state) : state_(std::move(state)) {}

absl::StatusOr<std::unique_ptr<HttpPort>> HttpPort::Start(const Options& options, Metrics* metrics, HttpRouter router) {
  auto state = std::make_unique<State>(options, std::move(router));
  if (state->tls) C3PO_RETURN_IF_ERROR(state->tls->Current().status());
  C3PO_ASSIGN_OR_RETURN(state->listener, ConnectionListener::Listen(options.address, options.accepted, metrics));
  sigset_t all, before;  // Threads inherit the mask: the process's own handlers run elsewhere.
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  for (State::Loop& loop : state->loops) state->Begin(loop);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  state->listener->Open([s = state.get()](int, int connection) { s->Take(connection); });
  return std::unique_ptr<HttpPort>(new HttpPort(std::move(state)));
}

HttpPort::~HttpPort() {
  Shutdown(absl::ZeroDuration());
  for (State::Loop& loop : state_->loops) {
    loop.work.reset();
    loop.io->stop();
    loop.thread.join();
  }
}

int HttpPort::port() const { return state_->listener->port(); }

bool HttpPort::accepting() const { return state_->listener->accepting(); }

void HttpPort::Drain() {
  state_->OnEach([](State::Loop& loop) {
    loop.draining = true;
    const auto all = loop.connections;  // Those that are closed leave it.
    for (const auto& [connection, kept] : all) connection->Drain();
  });
}

void HttpPort::Shutdown(absl::Duration limit) {
  state_->listener->Close();
  Drain();
  const absl::Time deadline = SteadyNow() + limit;
  while (state_->open > 0 && SteadyNow() < deadline) absl::SleepFor(kShutdownPoll);
  state_->OnEach([](State::Loop& loop) {
    const auto all = loop.connections;
    for (const auto& [connection, kept] : all) connection->Close();
  });
  while (state_->open > 0) absl::SleepFor(kShutdownPoll);
}

}  // namespace c3po
