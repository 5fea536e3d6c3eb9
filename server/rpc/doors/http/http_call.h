#ifndef C3PO_SERVER_RPC_DOORS_HTTP_HTTP_CALL_H_
#define C3PO_SERVER_RPC_DOORS_HTTP_HTTP_CALL_H_

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "index/base/mutex.h"
#include "server/rpc/call_context.h"
#include "server/rpc/doors/http/http_message.h"

namespace c3po {

// One call over HTTP, as QueuedStream is one over gRPC: it passes the Entrance as it is made, its answer waits in a
// queue, and one write is in flight. The answer is one body (Answer), or a stream of server-sent events (Send), whose
// head goes out with the first of them: what fails before is an error of HTTP. A client that leaves
// ServiceParts::unread_messages_max events unread is cut off, and so is one whose events are more bytes than
// CallState::HoldBytes gives.
//
//   connection   HoldBody, Run ▶ Take, Written, ... ▶ Leave           its own thread
//   call         Begin ▶ Answer, or Send, ... ▶ End                     any thread, one at a time
//
// The call has ended, and is counted and logged, when both have: whoever comes last. Nothing here blocks.
class HttpCall : public std::enable_shared_from_this<HttpCall> {
 public:
  // `parts` outlive the call.
  HttpCall(const HttpRequest& request, const ServiceParts& parts, Metrics::Rpc rpc);
  virtual ~HttpCall() = default;
  HttpCall(const HttpCall&) = delete;
  HttpCall& operator=(const HttpCall&) = delete;

  // --- The connection's side ---

  // Called by any thread when Take may have something new. Set once, before all else.
  void OnNews(std::function<void()> news) { news_ = std::move(news); }
  // The entrance turned the call away: its body is of no interest, Run answers.
  bool refused() const { return !call_.entry().ok(); }
  // Counts more bytes of the body. Other than OK: the body is too much; Run it with nothing.
  absl::Status HoldBody(size_t bytes);
  // The body is whole. A large one is read by a worker, so that the connection's thread serves others.
  void Run(std::string body);

  struct Outgoing {
    std::optional<HttpHead> head;  // Before the bytes.
    bool streamed = false;         // The bytes are pieces of a stream; else the whole body.
    std::string bytes;
    bool last = false;  // Nothing follows.
  };
  // The client does not read: the connection has to be closed.
  bool cut_off();
  // The caller's token is revoked and the work has ended: the client has a second to take what there is.
  bool in_a_hurry();
  // What waits; empty: nothing does.
  Outgoing Take();
  // What was taken last has gone to the system.
  void Written();
  // All is written, or the client has gone: then the call is cancelled.
  void Leave();

 protected:
  // Reads the body and starts the work. Other than OK ends the call.
  virtual absl::Status Begin(const std::string& body) = 0;
  // In the words of the client: "max_tokens: ..." for the pipeline's "sampling.max_tokens: ...".
  virtual absl::Status InClientsWords(const absl::Status& status) const { return status; }

  const ServiceParts& parts() const { return parts_; }
  CallState& call() { return call_; }

  // The whole answer; End follows.
  void Answer(std::string json);
  // An event of a stream.
  void Send(absl::string_view json);
  // The work has ended, and nothing is held for it any more. Of several the first counts. A stream ends with [DONE],
  // before it the error, if there is one.
  void End(const absl::Status& status);

 private:
  void Queue(std::string bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Counts the end once both sides have ended.
  void Conclude();

  const ServiceParts& parts_;
  CallState call_;
  std::function<void()> news_;
  Mutex mutex_;
  bool runs_ = false;                                     // Of the connection's thread alone, as body_status_.
  absl::Status body_status_;                              // Of HoldBody: the connection's thread alone.
  std::optional<HttpHead> head_ ABSL_GUARDED_BY(mutex_);  // Not taken yet.
  std::deque<std::string> queue_ ABSL_GUARDED_BY(mutex_);
  size_t written_bytes_ ABSL_GUARDED_BY(mutex_) = 0;  // Taken, and still held.
  bool streams_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  bool left_ ABSL_GUARDED_BY(mutex_) = false;
  bool concluded_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);  // Of sending.
  absl::Status final_status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_DOORS_HTTP_HTTP_CALL_H_
