// Connections over real sockets, with calls that answer without a model: framing, keep-alive, pipelining, limits, and
// who leaves when.
#include "server/rpc/doors/http/http_port.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/rpc/doors/http/http_call.h"
#include "server/rpc/doors/http/openai_error.h"

namespace c3po {
namespace {

// Answers with what it was sent: "/echo" whole, "/stream" as three events, "/fail" with an error; "/wait" not before
// the test says so.
class FakeCall final : public HttpCall {
 public:
  FakeCall(const HttpRequest& request, const ServiceParts& parts)
      : HttpCall(request, parts, Metrics::Rpc::kOpenAiModels), path_(request.path) {}
  void Finish() {
    Answer("\"late\"");
    End(absl::OkStatus());
  }
  bool cancelled() { return call().cancelled()->load(); }
  void SendMore(const std::string& json) { Send(json); }
  void EndWith(const absl::Status& status) { End(status); }

 protected:
  absl::Status Begin(const std::string& body) override {
    (void)call().Context("");
    if (path_ == "/fail") return absl::InvalidArgumentError("field: is wrong");
    if (path_ == "/wait") return absl::OkStatus();
    if (path_ == "/stream") {
      for (const char* piece : {"1", "2", "3"}) Send(piece);
    } else {
      Answer(absl::StrCat("\"", body, "\""));
    }
    End(absl::OkStatus());
    return absl::OkStatus();
  }

 private:
  const std::string path_;
};

// A client's socket; reads give up after ten seconds.
class Client {
 public:
  explicit Client(int port) : socket_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    const timeval patience = {10, 0};
    setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  }
  ~Client() { Close(); }
  void Close() {
    if (socket_ >= 0) close(socket_);
    socket_ = -1;
  }
  void Send(const std::string& bytes) { (void)!send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL); }
  // Until the text ends so, or the connection does.
  std::string ReadUntil(const std::string& end) {
    std::string text;
    char piece;
    while (!absl::EndsWith(text, end) && recv(socket_, &piece, 1, 0) == 1) text.push_back(piece);
    return text;
  }
  std::string ReadToEnd() {
    std::string text;
    std::vector<char> piece(1 << 16);
    for (ssize_t bytes = 0; (bytes = recv(socket_, piece.data(), piece.size(), 0)) > 0;)
      text.append(piece.data(), static_cast<size_t>(bytes));
    return text;
  }

 private:
  int socket_;
};

std::string Post(const std::string& path, const std::string& body, const std::string& headers = "") {
  return absl::StrCat("POST ", path, " HTTP/1.1\r\nhost: x\r\n", headers, "content-length: ", body.size(), "\r\n\r\n",
                      body);
}

class HttpPortTest : public testing::Test {
 protected:
  HttpPortTest() {
    entrance_.Set(Entrance::State::kOpen);
    parts_.entrance = &entrance_;
    parts_.call_log = &call_log_;
    parts_.unread_messages_max = 100;
    options_.address = "127.0.0.1:0";
    options_.limits.head_max = absl::Milliseconds(300);
    options_.limits.body_bytes_max = 100000;
  }
  void Start() {
    auto port = HttpPort::Start(options_, nullptr, [this](const HttpRequest& request) -> HttpRouting {
      if (request.path == "/none") return {ErrorAnswer(404, "none"), nullptr};
      auto call = std::make_shared<FakeCall>(request, parts_);
      last_.store(call);
      return {{}, std::move(call)};
    });
    ASSERT_TRUE(port.ok()) << port.status();
    port_ = *std::move(port);
  }
  std::string Ask(const std::string& request, const std::string& end) {
    Client client(port_->port());
    client.Send(request);
    return client.ReadUntil(end);
  }
  template <typename Holds>
  void Await(const Holds& holds) {
    for (int i = 0; i < 2000 && !holds(); ++i) absl::SleepFor(absl::Milliseconds(5));
    EXPECT_TRUE(holds());
  }

  Entrance entrance_{nullptr, RateLimits(), nullptr};
  CallLog call_log_;
  ServiceParts parts_;
  HttpPort::Options options_;
  std::atomic<std::shared_ptr<FakeCall>> last_;  // That the port's threads made.
  std::unique_ptr<HttpPort> port_;
};

TEST_F(HttpPortTest, AnswersWholeAndInStreams) {
  Start();
  const std::string whole = Ask(Post("/echo", "hi"), "\"hi\"");
  EXPECT_TRUE(absl::StartsWith(whole, "HTTP/1.1 200 OK\r\n")) << whole;
  EXPECT_TRUE(absl::StrContains(whole, "content-length: 4\r\n")) << whole;
  const std::string stream = Ask(Post("/stream", ""), "0\r\n\r\n");
  EXPECT_TRUE(absl::StrContains(stream, "data: 1\n\n")) << stream;
  EXPECT_TRUE(absl::StrContains(stream, "data: [DONE]\n\n")) << stream;
  const std::string failed = Ask(Post("/fail", ""), "}}");
  EXPECT_TRUE(absl::StartsWith(failed, "HTTP/1.1 400 ")) << failed;
  EXPECT_TRUE(absl::StrContains(failed, "\"param\":\"field\"")) << failed;
  EXPECT_TRUE(absl::StartsWith(Ask("GET /none HTTP/1.1\r\n\r\n", "}}"), "HTTP/1.1 404 "));
}

TEST_F(HttpPortTest, KeepsConnectionsAndTakesRequestsThatComeEarly) {
  Start();
  Client client(port_->port());
  client.Send(Post("/echo", "one") + Post("/stream", "") + "GET /none HTTP/1.1\r\n\r\n" + Post("/echo", "two"));
  EXPECT_TRUE(absl::EndsWith(client.ReadUntil("\"one\""), "\"one\""));
  EXPECT_TRUE(absl::StrContains(client.ReadUntil("0\r\n\r\n"), "data: 3\n\n"));
  EXPECT_TRUE(absl::StrContains(client.ReadUntil("}}"), "404"));
  EXPECT_TRUE(absl::EndsWith(client.ReadUntil("\"two\""), "\"two\""));
  // Byte by byte, and chunked.
  for (const char c : Post("/echo", "slow")) client.Send(std::string(1, c));
  EXPECT_TRUE(absl::EndsWith(client.ReadUntil("\"slow\""), "\"slow\""));
  client.Send("POST /echo HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n");
  EXPECT_TRUE(absl::EndsWith(client.ReadUntil("\"abc\""), "\"abc\""));
}

TEST_F(HttpPortTest, EndsConnectionsThatAreNotToBeKept) {
  Start();
  const std::string closed = Ask(Post("/echo", "a", "connection: close\r\n"), "never");
  EXPECT_TRUE(absl::EndsWith(closed, "\"a\"")) << closed;
  const std::string old = Ask("POST /stream HTTP/1.0\r\n\r\n", "never");
  EXPECT_TRUE(absl::EndsWith(old, "data: [DONE]\n\n")) << old;
  EXPECT_FALSE(absl::StrContains(old, "chunked")) << old;
}

TEST_F(HttpPortTest, RefusesWhatIsNoHttpOrTooLarge) {
  Start();
  const std::pair<std::string, const char*> wrong[] = {
      {"nonsense\r\n\r\n", "400"},
      {"POST /echo HTTP/1.1\r\ncontent-length: x\r\n\r\n", "400"},
      {"POST /echo HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n", "400"},
      {"POST /echo HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n", "400"},
      {"GET /" + std::string(20000, 'a') + " HTTP/1.1\r\n\r\n", "431"},
      {"POST /echo HTTP/1.1\r\ncontent-length: 100001\r\n\r\n", "413"}};
  for (const auto& [request, code] : wrong) {
    const std::string answer = Ask(request, "never");
    EXPECT_TRUE(absl::StartsWith(answer, absl::StrCat("HTTP/1.1 ", code))) << request.substr(0, 60) << "\n" << answer;
    EXPECT_TRUE(absl::StrContains(answer, "connection: close")) << answer;
  }
  Client slow(port_->port());
  slow.Send("POST /ec");
  EXPECT_EQ(slow.ReadToEnd(), "");  // Its head did not come in time.
}

TEST_F(HttpPortTest, AsksForABodyThatWaitsToBeAskedFor) {
  Start();
  Client client(port_->port());
  client.Send("POST /echo HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n");
  EXPECT_EQ(client.ReadUntil("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.Send("ok");
  EXPECT_TRUE(absl::EndsWith(client.ReadUntil("\"ok\""), "\"ok\""));
}

TEST_F(HttpPortTest, AClientThatLeavesCancelsItsCall) {
  Start();
  Client client(port_->port());
  client.Send(Post("/wait", ""));
  Await([&] { return last_.load() != nullptr; });
  EXPECT_FALSE(last_.load()->cancelled());
  client.Close();
  Await([&] { return last_.load()->cancelled(); });
  last_.load()->Finish();
}

TEST_F(HttpPortTest, AReaderThatStopsIsCutOff) {
  Start();
  Client client(port_->port());
  client.Send(Post("/wait", ""));
  Await([&] { return last_.load() != nullptr; });
  const std::string large(100000, 'x');
  for (int i = 0; i < 500 && !last_.load()->cancelled(); ++i) last_.load()->SendMore(large);
  EXPECT_TRUE(last_.load()->cancelled());
  last_.load()->EndWith(absl::CancelledError("cancelled"));
  EXPECT_FALSE(absl::StrContains(client.ReadToEnd(), "[DONE]"));
}

TEST_F(HttpPortTest, AnErrorAmidAStreamIsAnEvent) {
  Start();
  Client client(port_->port());
  client.Send(Post("/wait", ""));
  Await([&] { return last_.load() != nullptr; });
  last_.load()->SendMore("1");
  last_.load()->EndWith(absl::InternalError("broken"));
  const std::string answer = client.ReadUntil("0\r\n\r\n");
  EXPECT_TRUE(absl::StrContains(answer, "data: {\"error\":{\"message\":\"broken\"")) << answer;
  EXPECT_TRUE(absl::StrContains(answer, "data: [DONE]\n\n")) << answer;
}

TEST_F(HttpPortTest, DrainsIdleConnectionsAtOnceAndOthersBehindTheirAnswer) {
  Start();
  Client idle(port_->port()), busy(port_->port());
  idle.Send(Post("/echo", "a"));
  idle.ReadUntil("\"a\"");
  last_.store(nullptr);
  busy.Send(Post("/wait", ""));
  Await([&] { return last_.load() != nullptr; });
  port_->Drain();
  EXPECT_EQ(idle.ReadToEnd(), "");
  last_.load()->Finish();
  const std::string answer = busy.ReadToEnd();
  EXPECT_TRUE(absl::EndsWith(answer, "\"late\"")) << answer;
  EXPECT_TRUE(absl::StrContains(answer, "connection: close")) << answer;
  port_->Shutdown(absl::Seconds(5));
}

}  // namespace
}  // namespace c3po
