#include "server/rpc/connection_listener.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "index/base/escaped_exception.h"
#include "index/base/status_macros.h"
#include "index/base/steady_time.h"

namespace c3po {
namespace {

constexpr int kBacklog = 1024;
constexpr absl::Duration kProbeWait = absl::Seconds(3);
constexpr int kProbesMissedMax = 4;
constexpr absl::Duration kPauseWithoutDescriptors = absl::Milliseconds(20);

absl::Status CannotListen(absl::string_view address, absl::string_view why) {
  return absl::UnavailableError(absl::StrCat("cannot listen on ", address, ": ", why));
}

// What tells clients apart: the host without its port; of a path, the name of the client's own socket.
struct Peer {
  std::string host;   // The same for all clients of a path.
  std::string whole;  // The host and the port, or the socket's name.
};

Peer PeerOf(const sockaddr_storage& address, socklen_t size) {
  char text[INET6_ADDRSTRLEN] = "";
  if (address.ss_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(address);
    inet_ntop(AF_INET, &v4.sin_addr, text, sizeof(text));
    return {text, absl::StrCat(text, ":", ntohs(v4.sin_port))};
  }
  if (address.ss_family == AF_INET6) {
    const auto& v6 = reinterpret_cast<const sockaddr_in6&>(address);
    inet_ntop(AF_INET6, &v6.sin6_addr, text, sizeof(text));
    // An IPv4 client of a socket for both is the one client that it is.
    const absl::string_view host = absl::StripPrefix(text, "::ffff:");
    return {std::string(host), absl::StrCat(host, ":", ntohs(v6.sin6_port))};
  }
  const auto& local = reinterpret_cast<const sockaddr_un&>(address);
  const size_t header = offsetof(sockaddr_un, sun_path);
  return {"", size > header ? std::string(local.sun_path, size - header) : ""};
}

std::optional<uint64_t> InodeOf(int descriptor) {
  struct stat found;
  if (fstat(descriptor, &found) != 0 || !S_ISSOCK(found.st_mode)) return std::nullopt;
  return found.st_ino;
}

void SetPort(sockaddr_storage& address, int port) {
  if (address.ss_family == AF_INET) reinterpret_cast<sockaddr_in&>(address).sin_port = htons(port);
  if (address.ss_family == AF_INET6) reinterpret_cast<sockaddr_in6&>(address).sin6_port = htons(port);
}

int PortOf(const sockaddr_storage& address) {
  return ntohs(address.ss_family == AF_INET ? reinterpret_cast<const sockaddr_in&>(address).sin_port
                                            : reinterpret_cast<const sockaddr_in6&>(address).sin6_port);
}

// The addresses at which this machine itself may reach a socket: its own; of one that listens on all, loopback's. One
// of IPv6 listens to IPv4 too, which is all there is where IPv6 is switched off.
std::vector<sockaddr_storage> ToReachOneself(sockaddr_storage address) {
  if (address.ss_family == AF_INET) {
    auto& v4 = reinterpret_cast<sockaddr_in&>(address);
    if (v4.sin_addr.s_addr == htonl(INADDR_ANY)) v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  } else if (address.ss_family == AF_INET6) {
    auto& v6 = reinterpret_cast<sockaddr_in6&>(address);
    if (IN6_IS_ADDR_UNSPECIFIED(&v6.sin6_addr)) {
      sockaddr_storage mapped = address;
      inet_pton(AF_INET6, "::ffff:127.0.0.1", &reinterpret_cast<sockaddr_in6&>(mapped).sin6_addr);
      v6.sin6_addr = in6addr_loopback;
      return {address, mapped};
    }
  }
  return {address};
}

}  // namespace

absl::StatusOr<std::unique_ptr<ConnectionListener>> ConnectionListener::Listen(const std::string& address,
                                                                               const ConnectionLimits& limits,
                                                                               Metrics* metrics) {
  auto listener = std::unique_ptr<ConnectionListener>(new ConnectionListener(limits, metrics));
  C3PO_RETURN_IF_ERROR(listener->Bind(address));
  listener->wake_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  listener->reserve_ = open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (listener->wake_ < 0 || listener->reserve_ < 0) return CannotListen(address, strerror(errno));
  return listener;
}

ConnectionListener::~ConnectionListener() {
  Close();
  for (const int descriptor : {wake_, reserve_}) {
    if (descriptor >= 0) close(descriptor);
  }
}

absl::Status ConnectionListener::Bind(const std::string& address) {
  if (absl::StartsWith(address, "unix:")) return BindPath(address.substr(strlen("unix:")), /*abstract=*/false);
  if (absl::StartsWith(address, "unix-abstract:")) {
    return BindPath(address.substr(strlen("unix-abstract:")), /*abstract=*/true);
  }
  return BindHost(address);
}

absl::Status ConnectionListener::BindPath(const std::string& path, bool abstract) {
  const std::string name = absl::StrCat(abstract ? "unix-abstract:" : "unix:", path);
  sockaddr_storage address = {};
  auto& local = reinterpret_cast<sockaddr_un&>(address);
  local.sun_family = AF_UNIX;
  if (path.size() + 1 > sizeof(local.sun_path)) return CannotListen(name, "the path is too long for a socket");
  memcpy(local.sun_path + (abstract ? 1 : 0), path.data(), path.size());
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size() + 1);
  const int descriptor = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (descriptor < 0) return CannotListen(name, strerror(errno));
  sockets_.push_back({descriptor, address, size});
  struct stat found;
  if (!abstract && stat(path.c_str(), &found) == 0) {
    if (!S_ISSOCK(found.st_mode)) return CannotListen(name, "there is a file of this name that is no socket");
    const int attempt = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    const bool answered = connect(attempt, reinterpret_cast<const sockaddr*>(&address), size) == 0;
    const bool alive = answered || errno == EAGAIN;
    close(attempt);
    if (alive) return CannotListen(name, "a server listens there");
    unlink(path.c_str());  // Of one that has ended.
  }
  if (bind(descriptor, reinterpret_cast<const sockaddr*>(&address), size) != 0 || listen(descriptor, kBacklog) != 0) {
    return CannotListen(name, strerror(errno));
  }
  if (!abstract) path_ = path;
  return absl::OkStatus();
}

absl::Status ConnectionListener::BindHost(const std::string& address) {
  const size_t colon = address.rfind(':');
  std::string host = address.substr(0, colon), port = address.substr(colon + 1);
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  addrinfo hints = {};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int failure = getaddrinfo(host.empty() ? nullptr : host.c_str(), port.c_str(), &hints, &found);
  if (failure != 0) return CannotListen(address, gai_strerror(failure));
  const absl::Cleanup free_found = [found] { freeaddrinfo(found); };
  std::string reason;
  int chosen = std::atoi(port.c_str());
  for (const addrinfo* one = found; one != nullptr; one = one->ai_next) {
    Socket made;
    memcpy(&made.address, one->ai_addr, one->ai_addrlen);
    made.size = one->ai_addrlen;
    SetPort(made.address, chosen);
    made.descriptor = socket(one->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (made.descriptor < 0) {  // No IPv6 on this machine, say.
      reason = strerror(errno);
      continue;
    }
    const int yes = 1, no = 0;
    setsockopt(made.descriptor, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
    if (one->ai_family == AF_INET6) setsockopt(made.descriptor, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof(no));
    sockaddr* const raw = reinterpret_cast<sockaddr*>(&made.address);
    if (bind(made.descriptor, raw, made.size) != 0 || listen(made.descriptor, kBacklog) != 0) {
      const int error = errno;
      reason = strerror(error);
      close(made.descriptor);
      if (error == EADDRINUSE) return CannotListen(address, reason);  // Half of a name's addresses is not the name.
      continue;
    }
    getsockname(made.descriptor, raw, &made.size);
    chosen = PortOf(made.address);
    sockets_.push_back(made);
  }
  if (sockets_.empty()) return CannotListen(address, reason);
  port_ = chosen;
  return absl::OkStatus();
}

void ConnectionListener::Open(Accepted accepted) {
  accepted_ = std::move(accepted);
  thread_ = std::thread([this] { Run(); });
  probes_ = std::make_unique<Periodic>(limits_.probe_every, [this] { Probe(); });
}

void ConnectionListener::Close() {
  probes_ = nullptr;
  closing_ = true;
  const uint64_t one = 1;
  if (wake_ >= 0) (void)!write(wake_, &one, sizeof(one));
  if (thread_.joinable()) thread_.join();
  for (const Socket& socket : sockets_) close(socket.descriptor);
  sockets_.clear();
  if (!path_.empty()) unlink(path_.c_str());
  path_.clear();
}

bool ConnectionListener::accepting() const {
  const absl::MutexLock lock(&mu_);
  return SteadyNow() - probe_succeeded_ < kProbesMissedMax * limits_.probe_every;
}

int ConnectionListener::connections() const {
  const absl::MutexLock lock(&mu_);
  return static_cast<int>(connections_.size());
}

void ConnectionListener::Run() {
  std::vector<pollfd> watched;
  for (const Socket& socket : sockets_) watched.push_back({socket.descriptor, POLLIN, 0});
  watched.push_back({wake_, POLLIN, 0});
  absl::Time looked = SteadyNow();
  while (!closing_) {
    // Once a second those that have ended are counted off, for the metric.
    const int ready = poll(watched.data(), watched.size(), /*milliseconds=*/1000);
    if (closing_) return;
    if (SteadyNow() - looked >= absl::Seconds(1)) {
      looked = SteadyNow();
      const absl::MutexLock lock(&mu_);
      ForgetClosed();
    }
    if (ready <= 0) continue;
    for (size_t i = 0; i < sockets_.size(); ++i) {
      if (watched[i].revents == 0) continue;
      const absl::Status accepted = CatchEscapedIn(ThreadKind::kListener, [&] { AcceptOne(sockets_[i]); });
      if (!accepted.ok()) absl::SleepFor(kPauseWithoutDescriptors);
    }
  }
}

void ConnectionListener::AcceptOne(const Socket& listening) {
  sockaddr_storage address = {};
  socklen_t size = sizeof(address);
  const int connection =
      accept4(listening.descriptor, reinterpret_cast<sockaddr*>(&address), &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (connection < 0) {
    if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) OutOfDescriptors(listening);
    return;  // Else it has gone already.
  }
  const Peer peer = PeerOf(address, size);
  std::optional<Metrics::RefusedConnection> refusal;
  {
    const absl::MutexLock lock(&mu_);
    if (!probe_.empty() && peer.whole == probe_) {
      probe_succeeded_ = SteadyNow();
      close(connection);
      return;
    }
    const auto of_address = [&] {
      return std::count_if(connections_.begin(), connections_.end(),
                           [&](const Connection& one) { return one.address == peer.host; });
    };
    const auto over = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) -> std::optional<Metrics::RefusedConnection> {
      if (static_cast<int>(connections_.size()) >= limits_.connections_max) return Metrics::RefusedConnection::kAll;
      if (!peer.host.empty() && of_address() >= limits_.per_address_max) return Metrics::RefusedConnection::kAddress;
      return std::nullopt;
    };
    refusal = over();
    if (refusal) {
      ForgetClosed();
      refusal = over();
    }
    if (!refusal) {
      connections_.push_back({connection, InodeOf(connection).value_or(0), peer.host});
      if (metrics_ != nullptr) metrics_->SetConnections(limits_.port, static_cast<int64_t>(connections_.size()));
    }
  }
  if (refusal) {
    Refuse(connection, *refusal, peer.whole);
  } else {
    accepted_(listening.descriptor, connection);
  }
}

void ConnectionListener::OutOfDescriptors(const Socket& listening) {
  if (reserve_ >= 0) close(reserve_);
  const int connection = accept4(listening.descriptor, nullptr, nullptr, SOCK_CLOEXEC);
  Refuse(connection, Metrics::RefusedConnection::kDescriptors, "");
  reserve_ = open("/dev/null", O_RDONLY | O_CLOEXEC);
  absl::SleepFor(kPauseWithoutDescriptors);
}

void ConnectionListener::Refuse(int connection, Metrics::RefusedConnection why, const std::string& address) {
  if (metrics_ != nullptr) metrics_->CountRefusedConnection(why);  // Before its client can know.
  if (connection >= 0) close(connection);
  const std::optional<int64_t> passed_over = refusals_.Admit(SteadyNow());
  if (!passed_over) return;
  Log(LogLevel::kWarning, "connection_refused", "",
      {{"limit", Metrics::RefusedConnectionName(why)}, {"peer", address}, {"connections_passed_over", *passed_over}});
}

void ConnectionListener::ForgetClosed() {
  const auto closed = [](const Connection& one) { return InodeOf(one.descriptor).value_or(0) != one.inode; };
  connections_.erase(std::remove_if(connections_.begin(), connections_.end(), closed), connections_.end());
  if (metrics_ != nullptr) metrics_->SetConnections(limits_.port, static_cast<int64_t>(connections_.size()));
}

void ConnectionListener::Probe() {
  {
    const absl::MutexLock lock(&mu_);
    if (probe_succeeded_ == absl::InfiniteFuture()) probe_succeeded_ = SteadyNow();
  }
  const Socket& target = sockets_.front();
  const int descriptor = socket(target.address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (descriptor < 0) return;
  const absl::Cleanup close_it = [descriptor] { close(descriptor); };
  // Bound before it connects, so that its name is known before the other side accepts it.
  const std::vector<sockaddr_storage> candidates = ToReachOneself(target.address);
  const auto can_bind = [&](const sockaddr_storage& address) {
    sockaddr_storage any_port = {};
    any_port.ss_family = address.ss_family;
    if (address.ss_family != AF_UNIX) any_port = address;
    SetPort(any_port, 0);
    const socklen_t length = address.ss_family == AF_UNIX ? sizeof(sa_family_t) : target.size;
    return bind(descriptor, reinterpret_cast<const sockaddr*>(&any_port), length) == 0;
  };
  const auto address = std::find_if(candidates.begin(), candidates.end(), can_bind);
  if (address == candidates.end()) return;
  sockaddr_storage own = {};
  socklen_t size = sizeof(own);
  if (getsockname(descriptor, reinterpret_cast<sockaddr*>(&own), &size) != 0) return;
  {
    const absl::MutexLock lock(&mu_);
    probe_ = PeerOf(own, size).whole;
  }
  connect(descriptor, reinterpret_cast<const sockaddr*>(&*address), target.size);
  // The other side closes it once it has seen it.
  pollfd watched = {descriptor, POLLIN, 0};
  poll(&watched, 1, static_cast<int>(absl::ToInt64Milliseconds(kProbeWait)));
  const absl::MutexLock lock(&mu_);
  probe_.clear();
}

}  // namespace c3po
