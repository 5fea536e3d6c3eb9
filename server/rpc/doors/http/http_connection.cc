#include "server/rpc/doors/http/http_connection.h"

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "boost/asio/post.hpp"
#include "boost/asio/steady_timer.hpp"
#include "boost/beast/http/parser.hpp"
#include "index/base/escaped_exception.h"
#include "index/base/steady_time.h"
#include "server/rpc/doors/http/http_call.h"
#include "server/rpc/doors/http/openai_error.h"

namespace c3po {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using boost::system::error_code;

constexpr size_t kEarlyBytesMax = 64 << 10;     // Of requests that come before the answer.
constexpr size_t kUnwantedBytesMax = 64 << 10;  // Of a body that is read and thrown away.
constexpr size_t kRequestIdBytesMax = 128;
constexpr absl::Duration kLinger = absl::Seconds(2);        // For the client to close, once the last answer is out.
constexpr absl::Duration kRevokedGrace = absl::Seconds(1);  // As QueuedStream's.

// A body in a string that grows as bytes come: Beast's own takes what the request's Content-Length promises.
struct GrowingBody {
  using value_type = std::string;
  class reader {
   public:
    template <bool kIsRequest, class Fields>
    reader(http::header<kIsRequest, Fields>&, value_type& body) : body_(body) {}
    void init(const boost::optional<uint64_t>&, error_code& error) { error = {}; }
    template <class Buffers>
    size_t put(const Buffers& buffers, error_code& error) {
      error = {};
      const size_t before = body_.size();
      for (auto it = asio::buffer_sequence_begin(buffers); it != asio::buffer_sequence_end(buffers); ++it) {
        const asio::const_buffer piece = *it;
        body_.append(static_cast<const char*>(piece.data()), piece.size());
      }
      return body_.size() - before;
    }
    void finish(error_code& error) { error = {}; }

   private:
    value_type& body_;
  };
};
using Parser = http::request_parser<GrowingBody>;

std::string Text(boost::beast::string_view text) { return std::string(text.data(), text.size()); }

HttpRequest RequestOf(const Parser& parser, const ByteStream& stream) {
  const auto& head = parser.get();
  HttpRequest request;
  request.method = Text(head.method_string());
  request.path = Text(head.target().substr(0, head.target().find('?')));
  const std::string type = Text(head[http::field::content_type]);
  request.content_type = absl::AsciiStrToLower(absl::StripAsciiWhitespace(type.substr(0, type.find(';'))));
  std::string id = Text(head["X-Request-Id"]);
  const bool printable = absl::c_all_of(id, [](char c) { return absl::ascii_isprint(static_cast<unsigned char>(c)); });
  if (printable && id.size() <= kRequestIdBytesMax) request.request_id = std::move(id);
  request.origin.peer = stream.peer();
  request.origin.certificate_name = stream.CertificateName();
  request.origin.authorization = Text(head[http::field::authorization]);
  request.origin.traceparent = Text(head["traceparent"]);
  request.origin.tracestate = Text(head["tracestate"]);
  return request;
}

class Connection final : public HttpConnection, public std::enable_shared_from_this<Connection> {
 public:
  Connection(std::shared_ptr<asio::io_context> loop, std::shared_ptr<ByteStream> stream,
             const HttpConnectionLimits& limits, const HttpRouter& router, std::function<void(HttpConnection*)> closed)
      : loop_(std::move(loop)),
        stream_(std::move(stream)),
        limits_(limits),
        router_(router),
        closed_(std::move(closed)),
        timer_(*loop_),
        oldest_(SteadyNow() + limits.age_max * (0.9 + 0.2 * static_cast<double>(DrawSeed() % 1024) / 1024)) {}

  void Begin() {
    Arm(limits_.handshake_max);
    stream_->Handshake(Guarded([](Connection& self, bool ok, size_t) {
      if (!ok) return self.Close();
      self.AwaitRequest();
      // The first head has the handshake's time.
      self.Arm(self.limits_.head_max);
    }));
  }

  void Drain() override {
    draining_ = true;
    if (phase_ == Phase::kHandshake || (phase_ == Phase::kHead && in_.empty())) Close();
  }

  void Close() override {
    if (phase_ == Phase::kClosed) return;
    phase_ = Phase::kClosed;
    timer_.cancel();
    stream_->Close();
    if (call_ != nullptr) call_->Leave();
    call_ = nullptr;
    closed_(this);
  }

 private:
  enum class Phase { kHandshake, kHead, kBody, kCall, kReply, kLinger, kClosed };

  // `then` for what the stream has done, unless the connection was closed meanwhile. An exception is of this
  // connection.
  template <typename Then>
  ByteStream::Done Guarded(Then then) {
    return [self = shared_from_this(), then](bool ok, size_t bytes) {
      if (self->phase_ == Phase::kClosed) return;
      if (!CatchEscapedIn(ThreadKind::kHttp, [&] { then(*self, ok, bytes); }).ok()) self->Close();
    };
  }

  // Ends the connection after so long, in place of what was said before.
  void Arm(absl::Duration after) {
    const int64_t arming = ++armings_;  // One that has fired already is not cancelled.
    timer_.cancel();
    if (after == absl::InfiniteDuration()) return;
    timer_.expires_after(absl::ToChronoMilliseconds(after));
    timer_.async_wait([weak = weak_from_this(), arming](error_code error) {
      const auto self = weak.lock();
      if (!error && self != nullptr && self->armings_ == arming) self->Close();
    });
  }

  void AwaitRequest() {
    if (draining_ && in_.empty()) return Linger();
    phase_ = Phase::kHead;
    parser_.emplace();
    parser_->header_limit(static_cast<uint32_t>(limits_.head_bytes_max));
    parser_->body_limit(limits_.body_bytes_max);
    Arm(in_.empty() ? std::min(limits_.idle_max, std::max(oldest_ - SteadyNow(), absl::Seconds(1))) : limits_.head_max);
    Parse();
  }

  void ReadMore() {
    if (reading_ || phase_ == Phase::kClosed) return;
    if (phase_ == Phase::kCall && in_.size() >= kEarlyBytesMax) return;
    reading_ = true;
    stream_->Read(absl::MakeSpan(chunk_), Guarded([](Connection& self, bool ok, size_t bytes) {
                    self.reading_ = false;
                    ok ? self.OnBytes(bytes) : self.Close();
                  }));
  }

  void OnBytes(size_t bytes) {
    if (phase_ == Phase::kLinger) {
      unwanted_bytes_ += bytes;
      if (unwanted_bytes_ > limits_.body_bytes_max) return Close();
      return ReadMore();
    }
    if (phase_ == Phase::kHead && in_.empty()) Arm(limits_.head_max);
    in_.append(chunk_.data(), bytes);
    phase_ == Phase::kHead || phase_ == Phase::kBody ? Parse() : ReadMore();
  }

  void Parse() {
    while (phase_ == Phase::kHead || phase_ == Phase::kBody) {
      if (parser_->is_done()) return RunCall();
      if (in_.empty()) return ReadMore();
      error_code error;
      const size_t used = parser_->put(asio::const_buffer(in_.data(), in_.size()), error);
      in_.erase(0, used);
      const bool more = error == http::error::need_more;
      if (error && !more) return OnWrong(error);
      if (phase_ == Phase::kHead && parser_->is_header_done()) {
        OnHead();
      } else if (phase_ == Phase::kBody && !HoldBody()) {
        return;
      } else if (more) {
        if (phase_ == Phase::kHead && in_.size() > limits_.head_bytes_max) return OnWrong(http::error::header_limit);
        return ReadMore();
      }
    }
  }

  void OnWrong(error_code error) {
    keep_alive_ = false;
    if (call_ != nullptr) {
      call_->Leave();
      call_ = nullptr;
    }
    if (error == http::error::header_limit) return Reply(ErrorAnswer(431, "the request's headers are too large"));
    if (error == http::error::body_limit) {
      return Reply(ErrorAnswer(
          413, absl::StrCat("the request is larger than ", limits_.body_bytes_max, " bytes (--message-bytes-max)")));
    }
    Reply(ErrorAnswer(400, absl::StrCat("not HTTP: ", error.message())));
  }

  void OnHead() {
    http10_ = parser_->get().version() < 11;
    keep_alive_ = parser_->keep_alive() && !draining_ && SteadyNow() < oldest_;
    HttpRouting routing = router_(RequestOf(*parser_, *stream_));
    const bool has_body = !parser_->is_done();
    if (routing.call == nullptr) {
      keep_alive_ = keep_alive_ && !has_body;
      return Reply(routing.answer);
    }
    call_ = std::move(routing.call);
    call_->OnNews([weak = weak_from_this(), loop = loop_] {
      asio::post(*loop, [weak] {
        if (const auto self = weak.lock()) self->Guarded([](Connection& c, bool, size_t) { c.Advance(); })(true, 0);
      });
    });
    const auto length = parser_->content_length();
    const bool small = !has_body || (length && *length <= kUnwantedBytesMax);
    phase_ = Phase::kBody;
    Arm(limits_.body_max);
    // What is turned away is answered before its body, unless that is as quickly read: then the connection can go on.
    if (call_->refused() && !small) {
      keep_alive_ = false;
      return RunCall();
    }
    parser_->eager(true);
    if (!call_->refused() && has_body && in_.empty() &&
        absl::EqualsIgnoreCase(Text(parser_->get()[http::field::expect]), "100-continue")) {
      Write("HTTP/1.1 100 Continue\r\n\r\n", [](Connection&) {});
    }
  }

  // False: the call was ended for it.
  bool HoldBody() {
    const size_t bytes = parser_->get().body().size();
    const size_t more = bytes - std::exchange(body_bytes_, bytes);
    if (call_->refused() || call_->HoldBody(more).ok()) return true;
    keep_alive_ = false;
    RunCall();
    return false;
  }

  void RunCall() {
    phase_ = Phase::kCall;
    std::string body = std::move(parser_->get().body());
    parser_.reset();
    body_bytes_ = 0;
    hurried_ = false;
    Arm(absl::InfiniteDuration());
    call_->Run(std::move(body));
    ReadMore();
    Advance();
  }

  // Writes what the call has to say.
  void Advance() {
    if (phase_ != Phase::kCall) return;
    if (call_->cut_off()) return Close();
    if (!hurried_ && call_->in_a_hurry()) {
      hurried_ = true;
      Arm(kRevokedGrace);
    }
    if (writing_) return;
    HttpCall::Outgoing out = call_->Take();
    if (!out.head && out.bytes.empty() && !out.last) return;
    const HttpFraming framing = !out.streamed ? HttpFraming::kLength
                                : http10_     ? HttpFraming::kToEnd
                                              : HttpFraming::kChunked;
    if (framing == HttpFraming::kToEnd) keep_alive_ = false;
    if (out.head) streaming_ = framing;
    std::string text;
    if (out.head) text = HeadText(*out.head, framing, out.bytes.size(), keep_alive_ && !draining_);
    if (out.head && draining_) keep_alive_ = false;
    if (streaming_ == HttpFraming::kChunked) {
      if (!out.bytes.empty()) absl::StrAppend(&text, ChunkText(out.bytes));
      if (out.last) absl::StrAppend(&text, ChunkText(""));
    } else {
      absl::StrAppend(&text, out.bytes);
    }
    if (!hurried_) Arm(limits_.unread_max);
    Write(std::move(text), [last = out.last](Connection& self) {
      self.call_->Written();
      if (!last) {
        if (!self.hurried_) self.Arm(absl::InfiniteDuration());
        return self.Advance();
      }
      self.call_->Leave();
      self.call_ = nullptr;
      self.OnAnswered();
    });
  }

  void Reply(const HttpAnswer& answer) {
    phase_ = Phase::kReply;
    Arm(limits_.unread_max);
    Write(absl::StrCat(HeadText(answer.head, HttpFraming::kLength, answer.body.size(), keep_alive_), answer.body),
          [](Connection& self) { self.OnAnswered(); });
  }

  template <typename Then>
  void Write(std::string text, Then then) {
    out_ += text;  // Empty, unless a 100 Continue is under way.
    pending_.emplace_back([then](Connection& self) { then(self); });
    WriteNext();
  }

  void WriteNext() {
    if (writing_ || pending_.empty()) return;
    writing_ = true;
    auto thens = std::make_shared<std::vector<std::function<void(Connection&)>>>(std::move(pending_));
    pending_.clear();
    under_way_ = std::exchange(out_, "");
    stream_->Write(under_way_, Guarded([thens](Connection& self, bool ok, size_t) {
                     self.writing_ = false;
                     if (!ok) return self.Close();
                     for (const auto& then : *thens) then(self);
                     if (self.phase_ == Phase::kClosed) return;
                     self.WriteNext();
                     self.Advance();
                   }));
  }

  void OnAnswered() {
    if (keep_alive_ && !draining_) return AwaitRequest();
    Linger();
  }

  // The client may still be sending; closed at once, the system would throw away what it has not read of the answer.
  void Linger() {
    phase_ = Phase::kLinger;
    parser_.reset();
    in_.clear();
    stream_->EndWriting();
    Arm(kLinger);
    ReadMore();
  }

  const std::shared_ptr<asio::io_context> loop_;
  const std::shared_ptr<ByteStream> stream_;
  const HttpConnectionLimits& limits_;
  const HttpRouter& router_;
  const std::function<void(HttpConnection*)> closed_;
  asio::steady_timer timer_;
  int64_t armings_ = 0;
  const absl::Time oldest_;  // Until then it is kept.
  Phase phase_ = Phase::kHandshake;
  bool draining_ = false;
  std::array<char, 16 << 10> chunk_;
  bool reading_ = false;
  std::string in_;  // Not parsed yet.
  size_t unwanted_bytes_ = 0;
  std::string out_, under_way_;                            // To be written, and being written.
  std::vector<std::function<void(Connection&)>> pending_;  // What is done once out_ is written.
  bool writing_ = false;
  // Of the request under way.
  std::optional<Parser> parser_;
  bool keep_alive_ = true, http10_ = false;
  size_t body_bytes_ = 0;
  bool hurried_ = false;
  HttpFraming streaming_ = HttpFraming::kLength;
  std::shared_ptr<HttpCall> call_;
};

}  // namespace

std::shared_ptr<HttpConnection> HttpConnection::Start(std::shared_ptr<asio::io_context> loop,
                                                      std::shared_ptr<ByteStream> stream,
                                                      const HttpConnectionLimits& limits, const HttpRouter& router,
                                                      std::function<void(HttpConnection*)> closed) {
  auto connection = std::make_shared<Connection>(std::move(loop), std::move(stream), limits, router, std::move(closed));
  connection->Begin();
  return connection;
}

}  // namespace c3po
