#include "tests/index/store/postgres_proxy.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace c3po {
namespace {

constexpr int kLookEveryMilliseconds = 50;  // Whether the proxy ends.

int UnixSocket(const std::string& path, sockaddr_un& address) {
  address = {};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
  return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
}

bool IsReadable(int descriptor, int milliseconds) {
  pollfd socket = {descriptor, POLLIN, 0};
  return poll(&socket, 1, milliseconds) > 0;
}

bool WriteAll(int to, const char* bytes, ssize_t size) {
  for (ssize_t done = 0; done < size;) {
    const ssize_t wrote = send(to, bytes + done, static_cast<size_t>(size - done), MSG_NOSIGNAL);
    if (wrote <= 0) return false;
    done += wrote;
  }
  return true;
}

}  // namespace

PostgresProxy::PostgresProxy(std::string folder, std::string server)
    : path_(std::move(folder) + "/.s.PGSQL.5432"), server_(std::move(server)) {
  sockaddr_un address;
  listener_ = UnixSocket(path_, address);
  if (bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 || listen(listener_, 16) != 0) {
    std::perror(path_.c_str());
    std::abort();
  }
  acceptor_ = std::thread([this] { Accept(); });
}

PostgresProxy::~PostgresProxy() {
  ending_ = true;
  acceptor_.join();
  for (std::thread& session : sessions_) session.join();
  close(listener_);
  unlink(path_.c_str());
}

void PostgresProxy::OnceAfter(const std::string& text, Fault fault) {
  const std::lock_guard<std::mutex> lock(mutex_);
  text_ = text;
  fault_ = fault;
}

void PostgresProxy::Accept() {
  while (!ending_) {
    if (!IsReadable(listener_, kLookEveryMilliseconds)) continue;
    const int client = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    const std::lock_guard<std::mutex> lock(mutex_);
    sessions_.emplace_back([this, client] { Serve(client); });
  }
}

void PostgresProxy::Serve(int client) {
  sockaddr_un address;
  const int server = UnixSocket(server_, address);
  bool open = !dark_ && connect(server, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
  std::vector<char> buffer(1 << 16);
  while (open && !ending_) {
    pollfd ends[] = {{client, POLLIN, 0}, {server, POLLIN, 0}};
    if (poll(ends, 2, kLookEveryMilliseconds) <= 0) continue;
    if (ends[1].revents != 0) {
      const ssize_t got = read(server, buffer.data(), buffer.size());
      open = got > 0 && WriteAll(client, buffer.data(), got);
    }
    if (!open || ends[0].revents == 0) continue;
    const ssize_t got = read(client, buffer.data(), buffer.size());
    if (got <= 0) break;
    bool fault = false;
    Fault kind = Fault::kSilence;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      fault = !text_.empty() && memmem(buffer.data(), static_cast<size_t>(got), text_.data(), text_.size()) != nullptr;
      kind = fault_;
      if (fault) text_.clear();
    }
    if (fault) ++faults_;
    if (fault && kind == Fault::kDarkness) dark_ = true;
    const bool arrives = !fault || kind == Fault::kLoseAnswer || kind == Fault::kDarkness;
    if (arrives) open = WriteAll(server, buffer.data(), got);
    if (arrives && fault) IsReadable(server, 10000);  // Until it has done what it was asked.
    while (fault && kind == Fault::kSilence && !ending_) usleep(kLookEveryMilliseconds * 1000);
    if (fault) open = false;
  }
  close(client);
  close(server);
}

}  // namespace c3po
