#include "server/metrics/http_server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
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

TEST(HttpServer, ReadinessFollowsTheFunctionAndLivenessDoesNot) {
  Metrics metrics("tiny", "0.1.0");
  std::atomic<bool> ready{false};
  auto server = HttpServer::Start(kLoopback, 0, &metrics, [&ready] { return ready.load(); });
  ASSERT_TRUE(server.ok()) << server.status();
  httplib::Client client(kLoopback, (*server)->port());
  EXPECT_EQ(client.Get("/readyz")->status, 503);
  EXPECT_EQ(client.Get("/healthz")->status, 200);
  ready = true;
  EXPECT_EQ(client.Get("/readyz")->status, 200);
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

TEST(HttpServer, SilentConnectionsHoldUpNeitherScrapesForLongNorTheDestructor) {
  Metrics metrics("tiny", "0.1.0");
  auto server = HttpServer::Start(kLoopback, 0, &metrics, Always);
  ASSERT_TRUE(server.ok()) << server.status();
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons((*server)->port());
  ASSERT_EQ(inet_pton(AF_INET, kLoopback, &address.sin_addr), 1);
  std::vector<int> silent;
  for (int i = 0; i < 4; ++i) {  // As many as there are workers.
    silent.push_back(socket(AF_INET, SOCK_STREAM, 0));
    ASSERT_EQ(connect(silent.back(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  }
  httplib::Client client(kLoopback, (*server)->port());
  client.set_read_timeout(10);
  const httplib::Result result = client.Get("/healthz");
  ASSERT_TRUE(result) << httplib::to_string(result.error());
  EXPECT_EQ(result->status, 200);
  silent.push_back(socket(AF_INET, SOCK_STREAM, 0));
  ASSERT_EQ(connect(silent.back(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  const absl::Time begin = absl::Now();
  server->reset();
  EXPECT_LT(absl::Now() - begin, absl::Seconds(5));
  for (int fd : silent) close(fd);
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
