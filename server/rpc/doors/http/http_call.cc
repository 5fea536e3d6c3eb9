#include "server/rpc/doors/http/http_call.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/escaped_exception.h"
#include "index/base/status_macros.h"
#include "server/rpc/doors/http/openai_error.h"
#include "server/trace/call_trace.h"
#include "server/rpc/on_worker.h"

namespace c3po {
namespace {

constexpr size_t kReadHereBytes = 64 << 10;  // A body of more is a worker's.
constexpr size_t kTakenBytes = 64 << 10;     // At most in one write, beyond the first piece.
constexpr char kEvents[] = "text/event-stream; charset=utf-8";
constexpr char kDone[] = "[DONE]";

std::string Event(absl::string_view data) { return absl::StrCat("data: ", data, "\n\n"); }

}  // namespace

HttpCall::HttpCall(const HttpRequest& request, const ServiceParts& parts, Metrics::Rpc rpc)
    : parts_(parts), call_(request.origin, parts, rpc) {}

absl::Status HttpCall::HoldBody(size_t bytes) {
  body_status_ = call_.HoldBytes(bytes);
  return body_status_;
}

void HttpCall::Run(std::string body) {
  runs_ = true;
  const bool small = body.size() <= kReadHereBytes;
  const auto begin = [self = shared_from_this(), body = std::move(body)] {
    const absl::Status status = CatchEscaped(ThreadKind::kHttp, [&] { return self->Begin(body); });
    if (!status.ok()) self->End(status);
    return absl::OkStatus();
  };
  absl::Status status = call_.entry();
  if (status.ok()) status = body_status_;
  if (status.ok() && small) return (void)begin();
  if (status.ok()) {
    const auto failed = [self = shared_from_this()](const absl::Status& why) { self->End(why); };
    status = CatchEscaped(ThreadKind::kHttp, [&] { return GiveToWorker(parts_, begin, failed); });
  }
  if (!status.ok()) End(status);
}

void HttpCall::Answer(std::string json) {
  const absl::Status held = call_.HoldBytes(json.size());
  const MutexLock lock(mutex_);
  if (ended_ || !held.ok()) {
    if (failure_.ok()) failure_ = held;
    return;
  }
  head_ = HttpHead();
  Queue(std::move(json));
}

void HttpCall::Queue(std::string bytes) { queue_.push_back(std::move(bytes)); }

void HttpCall::Send(absl::string_view json) {
  std::string event = Event(json);
  {
    const MutexLock lock(mutex_);
    if (ended_ || !failure_.ok()) return;
    absl::Status status;
    if (queue_.size() >= parts_.unread_messages_max)
      status = absl::ResourceExhaustedError("the client does not read its answer");
    if (status.ok()) status = call_.HoldBytes(event.size());
    if (!status.ok()) {
      failure_ = status;
      call_.Cancel();
      return;
    }
    if (!std::exchange(streams_, true)) {
      head_ = HttpHead();
      head_->content_type = kEvents;
      head_->headers.push_back({"cache-control", "no-cache"});
    }
    Queue(std::move(event));
  }
  news_();
}

void HttpCall::End(const absl::Status& with) {
  call_.Released();
  {
    const MutexLock lock(mutex_);
    if (ended_) return;
    ended_ = true;
    absl::Status status = failure_.ok() ? with : failure_;
    if (call_.revoked() && absl::IsCancelled(status)) status = RevokedError();
    status = InClientsWords(status);
    final_status_ = status;
    if (streams_) {
      if (!status.ok()) Queue(Event(ErrorJson(status)));
      Queue(Event(kDone));
    } else if (!status.ok()) {
      HttpAnswer answer = ErrorAnswer(status);
      head_ = std::move(answer.head);
      queue_.clear();
      Queue(std::move(answer.body));
    }
    if (call_.trace() != nullptr) {
      call_.trace()->Set("http.response.status_code", int64_t{status.ok() || streams_ ? 200 : head_->status});
    }
  }
  news_();
  Conclude();
}

bool HttpCall::cut_off() {
  const MutexLock lock(mutex_);
  return streams_ && !failure_.ok();
}

bool HttpCall::in_a_hurry() {
  const MutexLock lock(mutex_);
  return ended_ && call_.revoked();
}

HttpCall::Outgoing HttpCall::Take() {
  const MutexLock lock(mutex_);
  Outgoing out;
  if (!streams_ && !ended_) return out;  // The whole answer is not there.
  out.streamed = streams_;
  out.head = std::exchange(head_, std::nullopt);
  while (!queue_.empty() &&
         (out.bytes.empty() || !streams_ || out.bytes.size() + queue_.front().size() < kTakenBytes)) {
    out.bytes += queue_.front();
    queue_.pop_front();
  }
  written_bytes_ = out.bytes.size();
  out.last = ended_ && queue_.empty();
  return out;
}

void HttpCall::Written() {
  const MutexLock lock(mutex_);
  call_.ReleaseBytes(std::exchange(written_bytes_, 0));
}

void HttpCall::Leave() {
  {
    const MutexLock lock(mutex_);
    if (left_) return;
    left_ = true;
    if (!ended_) call_.Cancel();
    if (!runs_ && !ended_) {
      ended_ = true;
      final_status_ = absl::CancelledError("the client left before its request was whole");
    }
    queue_.clear();
  }
  Conclude();
}

void HttpCall::Conclude() {
  absl::Status status;
  {
    const MutexLock lock(mutex_);
    if (!ended_ || !left_ || concluded_) return;
    concluded_ = true;
    status = final_status_;
  }
  (void)call_.Ended(status);
}

}  // namespace c3po
