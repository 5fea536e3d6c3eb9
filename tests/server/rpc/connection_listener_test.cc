#include "server/rpc/connection_listener.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"

namespace c3po {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(30);  // For what must happen.

bool Within(const std::function<bool()>& holds) {
  for (absl::Duration waited; waited < kPatience; waited += absl::Milliseconds(5)) {
    if (holds()) return true;
    absl::SleepFor(absl::Milliseconds(5));
  }
  return holds();
}

// Closes on its end.
class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  Descriptor(Descriptor&& other) : number_(std::exchange(other.number_, -1)) {}
  ~Descriptor() { Close(); }
  void Close() {
    if (number_ >= 0) close(number_);
    number_ = -1;
  }
  int number() const { return number_; }
  // Whether the other side has closed it, waiting for that or for a byte.
  bool Ended() const {
    pollfd watched = {number_, POLLIN, 0};
    char byte;
    return poll(&watched, 1, static_cast<int>(absl::ToInt64Milliseconds(kPatience))) == 1 &&
           read(number_, &byte, 1) <= 0;
  }

 private:
  int number_;
};

Descriptor Connect(int port, const char* from = "127.0.0.1") {
  Descriptor made(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in own = {}, other = {};
  own.sin_family = other.sin_family = AF_INET;
  inet_pton(AF_INET, from, &own.sin_addr);
  inet_pton(AF_INET, "127.0.0.1", &other.sin_addr);
  other.sin_port = htons(static_cast<uint16_t>(port));
  EXPECT_EQ(bind(made.number(), reinterpret_cast<sockaddr*>(&own), sizeof(own)), 0);
  EXPECT_EQ(connect(made.number(), reinterpret_cast<sockaddr*>(&other), sizeof(other)), 0) << strerror(errno);
  return made;
}

// A listener whose connections are greeted with a byte and kept.
class Greeter {
 public:
  explicit Greeter(const std::string& address, const ConnectionLimits& limits, Metrics* metrics = nullptr) {
    auto listener = ConnectionListener::Listen(address, limits, metrics);
    EXPECT_TRUE(listener.ok()) << listener.status();
    listener_ = *std::move(listener);
    listener_->Open([this](int, int connection) {
      {
        const absl::MutexLock lock(&mu_);
        kept_.push_back(std::make_unique<Descriptor>(connection));
      }
      send(connection, "h", 1, MSG_NOSIGNAL);  // Its client may have gone already.
    });
  }
  ~Greeter() { listener_->Close(); }

  ConnectionListener& listener() { return *listener_; }
  int port() const { return listener_->port(); }
  void CloseAll() {
    const absl::MutexLock lock(&mu_);
    kept_.clear();
  }

 private:
  absl::Mutex mu_;
  std::vector<std::unique_ptr<Descriptor>> kept_ ABSL_GUARDED_BY(mu_);
  std::unique_ptr<ConnectionListener> listener_;
};

TEST(ConnectionListener, BoundsConnectionsOfAnAddressAndOfAll) {
  Metrics metrics("m", "1");
  Greeter greeter("127.0.0.1:0", {.connections_max = 5, .per_address_max = 3}, &metrics);
  std::vector<Descriptor> held;
  for (int i = 0; i < 3; ++i) {
    held.push_back(Connect(greeter.port()));
    EXPECT_FALSE(held.back().Ended());
  }
  EXPECT_TRUE(Connect(greeter.port()).Ended()) << "a fourth of one address";
  for (int i = 0; i < 2; ++i) {
    held.push_back(Connect(greeter.port(), "127.0.0.2"));
    EXPECT_FALSE(held.back().Ended());
  }
  EXPECT_TRUE(Connect(greeter.port(), "127.0.0.3").Ended()) << "a sixth of all";
  EXPECT_EQ(greeter.listener().connections(), 5);
  const std::string text = metrics.PrometheusText();
  EXPECT_NE(text.find("c3po_connections_refused_total{limit=\"address\"} 1\n"), text.npos);
  EXPECT_NE(text.find("c3po_connections_refused_total{limit=\"all\"} 1\n"), text.npos);
  greeter.CloseAll();
  EXPECT_FALSE(Connect(greeter.port()).Ended()) << "their places are free once their owner has closed them";
}

TEST(ConnectionListener, ADescriptorThatAnotherSocketGotIsNoConnection) {
  Greeter greeter("127.0.0.1:0", {.connections_max = 1});
  Descriptor first = Connect(greeter.port());
  EXPECT_FALSE(first.Ended());
  greeter.CloseAll();
  std::vector<Descriptor> others;  // Among these is one of the number of the connection that was closed.
  for (int i = 0; i < 8; ++i) others.emplace_back(socket(AF_INET, SOCK_STREAM, 0));
  EXPECT_FALSE(Connect(greeter.port()).Ended());
}

TEST(ConnectionListener, OutlivesTheLimitOfDescriptorsAndTellsThatItMeetsIt) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "UndefinedBehaviorSanitizer opens a pipe to look at an object";
#endif
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  Metrics metrics("m", "1");
  Greeter greeter("127.0.0.1:0", {.per_address_max = 1000, .probe_every = absl::Milliseconds(20)}, &metrics);
  std::vector<Descriptor> clients;
  for (int i = 0; i < 20; ++i) clients.push_back(Connect(greeter.port()));
  ASSERT_TRUE(Within([&] { return greeter.listener().connections() == 20; }));
  EXPECT_TRUE(Within([&] { return greeter.listener().accepting(); }));
  std::vector<Descriptor> all;  // Nothing is left, for a time.
  const rlimit low = {256, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  std::vector<Descriptor> waiting;
  for (int i = 0; i < 16; ++i) waiting.emplace_back(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in other = {};
  other.sin_family = AF_INET;
  inet_pton(AF_INET, "127.0.0.1", &other.sin_addr);
  other.sin_port = htons(static_cast<uint16_t>(greeter.port()));
  // The first of them may be served: a probe that ends meanwhile leaves its own descriptors.
  bool told = false;
  for (size_t i = 0; i < waiting.size() && !told; ++i) {
    for (int file; (file = open("/dev/null", O_RDONLY | O_CLOEXEC)) >= 0;) all.emplace_back(file);
    ASSERT_EQ(connect(waiting[i].number(), reinterpret_cast<sockaddr*>(&other), sizeof(other)), 0);
    told = waiting[i].Ended();
  }
  EXPECT_TRUE(told) << "who waits is told";
  EXPECT_TRUE(Within([&] { return !greeter.listener().accepting(); }));
  all.clear();
  setrlimit(RLIMIT_NOFILE, &before);
  EXPECT_TRUE(Within([&] { return greeter.listener().accepting(); }));
  EXPECT_FALSE(Connect(greeter.port()).Ended());
  const std::string text = metrics.PrometheusText();
  EXPECT_EQ(text.find("c3po_connections_refused_total{limit=\"descriptors\"} 0\n"), text.npos);
}

TEST(ConnectionListener, ListensOnEveryAddressOfANameAtOnePort) {
  Greeter greeter("localhost:0", {.probe_every = absl::Milliseconds(20)});
  EXPECT_GT(greeter.port(), 1);
  EXPECT_FALSE(Connect(greeter.port()).Ended());
  absl::SleepFor(absl::Milliseconds(200));  // More than the probes that may be missed.
  EXPECT_TRUE(Within([&] { return greeter.listener().accepting(); }));
  EXPECT_EQ(greeter.listener().connections(), 1) << "those to itself do not count";
  const auto second = ConnectionListener::Listen(absl::StrCat("127.0.0.1:", greeter.port()), {}, nullptr);
  EXPECT_TRUE(absl::IsUnavailable(second.status()));
  EXPECT_NE(second.status().message().find(absl::StrCat("127.0.0.1:", greeter.port(), ": Address already in use")),
            std::string::npos);
  EXPECT_TRUE(absl::IsUnavailable(ConnectionListener::Listen("192.0.2.1:0", {}, nullptr).status()));
  EXPECT_TRUE(absl::IsUnavailable(ConnectionListener::Listen("no.such.host.invalid:1", {}, nullptr).status()));
}

// On a thread with a network of its own, as a container may have it.
TEST(ConnectionListener, ListeningOnAllOfIpv6IsAcceptingWhereOnlyIpv4Works) {
  std::string skipped;
  bool accepting = false;
  std::thread([&] {
    if (unshare(CLONE_NEWNET) != 0) return void(skipped = "this process may not make networks");
    const Descriptor any(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    ifreq loopback = {};
    strncpy(loopback.ifr_name, "lo", sizeof(loopback.ifr_name) - 1);
    loopback.ifr_flags = IFF_UP;
    std::ofstream switch_off("/proc/sys/net/ipv6/conf/all/disable_ipv6");
    if (ioctl(any.number(), SIOCSIFFLAGS, &loopback) != 0 || !(switch_off << "1" << std::flush)) {
      return void(skipped = "the network cannot be set up");
    }
    Greeter greeter("[::]:0", {.probe_every = absl::Milliseconds(50)});
    EXPECT_FALSE(Connect(greeter.port()).Ended());
    absl::SleepFor(absl::Seconds(1));  // Five times the probes that may be missed.
    accepting = Within([&] { return greeter.listener().accepting(); });
  }).join();
  if (!skipped.empty()) GTEST_SKIP() << skipped;
  EXPECT_TRUE(accepting);
}

TEST(ConnectionListener, ASocketsPathIsTakenFromWhoEndedAndFromNobodyElse) {
  const std::string path = testing::TempDir() + "socket", address = "unix:" + path;
  {
    Greeter greeter(address, {.probe_every = absl::Milliseconds(20)});
    EXPECT_EQ(greeter.port(), 1);
    absl::SleepFor(absl::Milliseconds(200));  // More than the probes that may be missed.
    EXPECT_TRUE(Within([&] { return greeter.listener().accepting(); }));
    EXPECT_TRUE(absl::IsUnavailable(ConnectionListener::Listen(address, {}, nullptr).status())) << "it is alive";
    EXPECT_TRUE(std::filesystem::exists(path));
  }
  EXPECT_FALSE(std::filesystem::exists(path));
  {
    Descriptor dead(socket(AF_UNIX, SOCK_STREAM, 0));
    sockaddr_un name = {};
    name.sun_family = AF_UNIX;
    strncpy(name.sun_path, path.c_str(), sizeof(name.sun_path) - 1);
    ASSERT_EQ(bind(dead.number(), reinterpret_cast<sockaddr*>(&name), sizeof(name)), 0);
  }
  EXPECT_TRUE(ConnectionListener::Listen(address, {}, nullptr).ok());
  std::ofstream(path) << "precious";
  EXPECT_TRUE(absl::IsUnavailable(ConnectionListener::Listen(address, {}, nullptr).status()));
  EXPECT_EQ(std::filesystem::file_size(path), 8u);
  std::filesystem::remove(path);
  EXPECT_TRUE(absl::IsUnavailable(ConnectionListener::Listen("unix:" + std::string(200, 'x'), {}, nullptr).status()));
  EXPECT_TRUE(ConnectionListener::Listen(absl::StrCat("unix-abstract:c3po-", getpid()), {}, nullptr).ok());
}

}  // namespace
}  // namespace c3po
