#include "server/metrics/http_server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "httplib.h"
#include "server/metrics/metrics.h"
#include "tests/server/metrics/exposition_parser.h"

namespace c3po {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr char kLoopback[] = "127.0.0.1";

bool Always() { return true; }

TEST(HttpServer, ServesAnExpositionThatAStrictReaderAccepts) {
  Metrics metrics("tiny", "0.1.0");
  metrics.ObserveTimeToFirstToken(0.2);
  auto server = HttpServer::Start(kLoopback, 0, &metrics, Always);
  ASSERT_TRUE(server.ok()) << server.status();
  ASSERT_GT((*server)->port(), 0);
  httplib::Client client(kLoopback, (*server)->port());
  const httplib::Result result = client.Get("/metrics");
  ASSERT_TRUE(result) << httplib::to_string(result.error());
  EXPECT_EQ(result->status, 200);
  EXPECT_EQ(result->get_header_value("Content-Type"), "text/plain; version=0.0.4; charset=utf-8");
  const absl::StatusOr<Exposition> exposition = ParseExposition(result->body);
  ASSERT_TRUE(exposition.ok()) << exposition.status();
  EXPECT_EQ(SampleValue(*exposition, "vllm:time_to_first_token_seconds_count", {{"model_name", "tiny"}}).value_or(-1),
            1);
}

TEST(HttpServer, ReadinessFollowsTheFunctionAndLivenessDoesNotAndBothTellWarnings) {
  Metrics metrics("tiny", "0.1.0");
  std::atomic<bool> ready{false}, warns{false};
  const std::vector<std::string> warnings = {"--tls-key: not the certificate's", "another"};
  auto server = HttpServer::Start(
      kLoopback, 0, &metrics, [&ready] { return ready.load(); }, [] { return true; }, HttpLimits(),
      [&] { return warns ? warnings : std::vector<std::string>(); });
  ASSERT_TRUE(server.ok()) << server.status();
  httplib::Client client(kLoopback, (*server)->port());
  EXPECT_EQ(client.Get("/readyz")->status, 503);
  EXPECT_EQ(client.Get("/healthz")->status, 200);
  ready = true;
  EXPECT_EQ(client.Get("/readyz")->status, 200);
  EXPECT_EQ(client.Get("/readyz")->body, "ready\n");
  warns = true;
  EXPECT_EQ(client.Get("/readyz")->status, 200);
  EXPECT_EQ(client.Get("/readyz")->body, "ready\nwarning: --tls-key: not the certificate's\nwarning: another\n");
  EXPECT_EQ(client.Get("/healthz")->body, "alive\nwarning: --tls-key: not the certificate's\nwarning: another\n");
  ready = false;
  EXPECT_EQ(client.Get("/readyz")->status, 503);
  EXPECT_EQ(client.Get("/")->status, 404);
  EXPECT_EQ(client.Post("/metrics", "x", "text/plain")->status, 404);
}

TEST(HttpServer, APortInUseIsAnErrorThatNamesIt) {
  Metrics metrics("tiny", "0.1.0");
  auto first = HttpServer::Start(kLoopback, 0, &metrics, Always);
  ASSERT_TRUE(first.ok()) << first.status();
  const int port = (*first)->port();
  const auto second = HttpServer::Start(kLoopback, port, &metrics, Always);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()),
              AllOf(HasSubstr(absl::StrCat("127.0.0.1:", port)), HasSubstr("in use")));
  first->reset();
  EXPECT_TRUE(HttpServer::Start(kLoopback, port, &metrics, Always).ok()) << "the port is free after the destructor";
}

TEST(HttpServer, RejectsBadArguments) {
  Metrics metrics("tiny", "0.1.0");
  for (int port : {-1, 65536}) {
    const auto server = HttpServer::Start(kLoopback, port, &metrics, Always);
    EXPECT_EQ(server.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(server.status().message()), HasSubstr(absl::StrCat(port)));
  }
  EXPECT_EQ(HttpServer::Start(kLoopback, 0, &metrics, nullptr).status().code(), absl::StatusCode::kInvalidArgument);
  const auto server = HttpServer::Start("203.0.113.7", 0, &metrics, Always);  // Not an address of this machine.
  EXPECT_EQ(server.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(server.status().message()), HasSubstr("203.0.113.7"));
}

// A connection by hand, which sends what it likes when it likes.
class RawConnection {
 public:
  RawConnection() : socket_(socket(AF_INET, SOCK_STREAM, 0)) {
    const timeval limit = {.tv_sec = 60, .tv_usec = 0};
    setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  }
  explicit RawConnection(int port) : RawConnection() { EXPECT_TRUE(Connect(port)); }
  ~RawConnection() { close(socket_); }
  RawConnection(const RawConnection&) = delete;
  RawConnection& operator=(const RawConnection&) = delete;

  bool Connect(int port) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    return inet_pton(AF_INET, kLoopback, &address.sin_addr) == 1 &&
           connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
  }
  // False: the server has closed.
  bool Send(const std::string& bytes) {
    return send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size());
  }
  // To the end of the connection.
  std::string Receive() {
    std::string received;
    char bytes[4096];
    for (ssize_t n; (n = recv(socket_, bytes, sizeof(bytes), 0)) > 0;) received.append(bytes, n);
    return received;
  }

 private:
  const int socket_;
};

constexpr char kProbe[] = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";

std::unique_ptr<HttpServer> StartWith(const Metrics& metrics, const HttpLimits& limits) {
  auto server = HttpServer::Start(kLoopback, 0, &metrics, Always, Always, limits);
  EXPECT_TRUE(server.ok()) << server.status();
  return *std::move(server);
}

TEST(HttpServer, SilentConnectionsHoldUpNeitherScrapesNorTheDestructor) {
  Metrics metrics("tiny", "0.1.0");
  auto server = StartWith(metrics, {.request_seconds_max = 3600});
  std::vector<std::unique_ptr<RawConnection>> silent;
  for (int i = 0; i < 32; ++i) silent.push_back(std::make_unique<RawConnection>(server->port()));
  httplib::Client client(kLoopback, server->port());
  EXPECT_EQ(client.Get("/healthz")->status, 200);
  server.reset();
  for (const auto& connection : silent) EXPECT_EQ(connection->Receive(), "");
}

TEST(HttpServer, APeerThatKeepsItsConnectionAfterTheAnswerDoesNotHoldUpTheDestructor) {
  Metrics metrics("tiny", "0.1.0");
  auto server = StartWith(metrics, {.request_seconds_max = 3600});
  RawConnection kept(server->port());
  ASSERT_TRUE(kept.Send(kProbe));
  EXPECT_THAT(kept.Receive(), HasSubstr("200 OK"));  // The server's end is closed, this one is not.
  server.reset();
}

TEST(HttpServer, BytesThatTrickleInBuyNoTime) {
  Metrics metrics("tiny", "0.1.0");
  auto server = StartWith(metrics, {.request_seconds_max = 0.5});
  RawConnection slow(server->port());
  ASSERT_TRUE(slow.Send("GET /metrics HTTP/1.1\r\nX: "));
  int sent = 0;
  for (; sent < 400 && slow.Send("a"); ++sent) absl::SleepFor(absl::Milliseconds(50));
  EXPECT_LT(sent, 400) << "each byte came well within the time limit, the request did not";
}

TEST(HttpServer, ANewConnectionTakesThePlaceOfTheOneThatHasWaitedLongest) {
  Metrics metrics("tiny", "0.1.0");
  auto server = StartWith(metrics, {.connections_max = 3, .request_seconds_max = 3600});
  RawConnection first(server->port()), second(server->port()), third(server->port());
  RawConnection probe(server->port());
  ASSERT_TRUE(probe.Send(kProbe));
  EXPECT_THAT(probe.Receive(), HasSubstr("200 OK"));
  EXPECT_EQ(first.Receive(), "");
  ASSERT_TRUE(third.Send(kProbe));
  EXPECT_THAT(third.Receive(), HasSubstr("200 OK")) << "it was not the one that waited longest";
}

TEST(HttpServer, RequestsBeyondTheirBytesAreRefusedAsTheyCome) {
  Metrics metrics("tiny", "0.1.0");
  auto server = StartWith(metrics, {.request_seconds_max = 60, .header_bytes_max = 1000, .body_bytes_max = 100});
  RawConnection headers(server->port());
  ASSERT_TRUE(headers.Send("GET /healthz HTTP/1.1\r\n"));
  for (int i = 0; i < 60; ++i)
    headers.Send(absl::StrCat("X-", i, ": ", std::string(20, 'a'), "\r\n"));  // No end of them.
  EXPECT_THAT(headers.Receive(), HasSubstr("431"));

  RawConnection announced(server->port());
  ASSERT_TRUE(announced.Send("POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 268435456\r\n\r\n"));
  EXPECT_THAT(announced.Receive(), HasSubstr("413"));

  RawConnection chunked(server->port());
  ASSERT_TRUE(chunked.Send("POST /metrics HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"));
  for (int i = 0; i < 8; ++i) chunked.Send(absl::StrCat("20\r\n", std::string(32, 'a'), "\r\n"));
  EXPECT_THAT(chunked.Receive(), HasSubstr("413"));

  RawConnection within(server->port());
  ASSERT_TRUE(within.Send(
      absl::StrCat("POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n", std::string(100, 'a'))));
  EXPECT_THAT(within.Receive(), HasSubstr("404"));

  RawConnection garbage(server->port());
  ASSERT_TRUE(garbage.Send("\x16\x03\x01\x02 no HTTP\r\n\r\n"));
  EXPECT_THAT(garbage.Receive(), HasSubstr("400"));
}

TEST(HttpServer, AProbeIsAnsweredWhenTheProcessHasNoDescriptorLeft) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "UndefinedBehaviorSanitizer opens a pipe to look at an object";
#endif
  Metrics metrics("tiny", "0.1.0");
  auto server = StartWith(metrics, {.request_seconds_max = 60});
  httplib::Client warm(kLoopback, server->port());
  ASSERT_EQ(warm.Get("/healthz")->status, 200);
  RawConnection probes[3];
  rlimit before = {};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit low = {.rlim_cur = 200, .rlim_max = before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  std::vector<int> taken;
  for (int descriptor; (descriptor = dup(0)) >= 0;) taken.push_back(descriptor);
  for (RawConnection& probe : probes) {
    EXPECT_TRUE(probe.Connect(server->port()));
    EXPECT_TRUE(probe.Send(kProbe));
    EXPECT_THAT(probe.Receive(), HasSubstr("200 OK"));
  }
  for (int descriptor : taken) close(descriptor);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
}

TEST(HttpServer, AnswersManyScrapesAtOnce) {
  Metrics metrics("tiny", "0.1.0");
  auto server = HttpServer::Start(kLoopback, 0, &metrics, Always);
  ASSERT_TRUE(server.ok()) << server.status();
  std::atomic<int> answered{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, port = (*server)->port()] {
      httplib::Client client(kLoopback, port);
      for (int i = 0; i < 5; ++i) {
        metrics.CountGeneratedTokens(1);
        const httplib::Result result = client.Get("/metrics");
        if (result && result->status == 200 && ParseExposition(result->body).ok()) ++answered;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(answered, 40);
}

TEST(HttpServer, StartsAndStopsAgainAndAgain) {
  Metrics metrics("tiny", "0.1.0");
  for (int i = 0; i < 50; ++i) {
    auto server = HttpServer::Start(kLoopback, 0, &metrics, Always);
    ASSERT_TRUE(server.ok()) << server.status();
  }
}

}  // namespace
}  // namespace c3po
