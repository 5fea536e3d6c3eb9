#ifndef C3PO_SERVER_RPC_QUEUED_STREAM_H_
#define C3PO_SERVER_RPC_QUEUED_STREAM_H_

#include <grpcpp/alarm.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <deque>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "server/rpc/call_context.h"
#include "server/rpc/wire.h"

namespace c3po {

// A reactor's sending half: messages wait in a queue, one write is in flight, the final status follows the last
// message. A client that leaves ServiceParts::unread_messages_max messages waiting is cut off with the next one: the
// call is cancelled and ends with ResourceExhausted; so is one whose messages are more bytes than CallState::HoldBytes
// gives, and one whose message does not serialize ends with that error. Base: grpc::ServerWriteReactor or
// ServerBidiReactor of ByteBuffers. Thread-safe; nothing here blocks.
//
// A client that does not read leaves a write under way for ever, and with it the call. Where the token is revoked, the
// call does not wait for that: kRevokedGraceSeconds after both its work and its token have ended, it is cut off. A
// client that reads on sees CANCELLED then.
template <typename Base>
class QueuedStream : public Base {
 public:
  static constexpr int64_t kRevokedGraceSeconds = 1;

  ~QueuedStream() override {
    const MutexLock lock(life_->mutex);
    life_->stream = nullptr;
  }

  void OnWriteDone(bool ok) override {
    if (!ok) call_.Cancel();
    const absl::MutexLock lock(&mu_);
    writing_ = false;
    call_.ReleaseBytes(queue_.front().bytes);
    queue_.pop_front();
    if (!ok) queue_.clear();
    Advance();
  }

  void OnCancel() override { call_.Cancel(); }

 protected:
  QueuedStream(grpc::CallbackServerContext* context, const ServiceParts& parts, Metrics::Rpc rpc)
      : call_(context, parts, rpc), context_(context), queued_max_(parts.unread_messages_max) {
    {
      const MutexLock lock(life_->mutex);
      life_->stream = this;
    }
    if (!call_.entry().ok() || call_.grant() == nullptr) return;
    hold_ = call_.grant()->Watch([this] {
      const absl::MutexLock lock(&mu_);
      CutOffSoon();
    });
  }

  CallState& call() { return call_; }
  const CallState& call() const { return call_; }

  void Send(const google::protobuf::Message& message) {
    absl::StatusOr<grpc::ByteBuffer> bytes = ToBytes(message);
    absl::Status status = bytes.status();
    const size_t length = status.ok() ? bytes->Length() : 0;
    const absl::MutexLock lock(&mu_);
    if (!failure_.ok() || ended_) return;
    if (status.ok() && queue_.size() >= queued_max_)
      status = absl::ResourceExhaustedError("the client does not read its answer");
    if (status.ok()) status = call_.HoldBytes(length);
    if (!status.ok()) {
      failure_ = status;
      call_.Cancel();
      return;
    }
    queue_.push_back({*std::move(bytes), length});
    Advance();
  }

  // Sets what End would say, if nothing was set before.
  void SetFinalStatus(const absl::Status& status) {
    const absl::MutexLock lock(&mu_);
    if (final_status_.ok()) final_status_ = status;
  }

  // The call ends with `status` (or the final status set before) once the queue is sent. `drop_queue`: what waits is
  // not sent. Comes last; of several the first counts.
  void End(const absl::Status& status, bool drop_queue = false) {
    call_.Released();
    const absl::MutexLock lock(&mu_);
    if (ended_) return;
    ended_ = true;
    if (final_status_.ok()) final_status_ = status;
    if (!failure_.ok()) final_status_ = failure_;
    // What is being written stays until it is done.
    if (!failure_.ok() || drop_queue) queue_.erase(queue_.begin() + (writing_ ? 1 : 0), queue_.end());
    Advance();
    CutOffSoon();
  }

 private:
  // Where the alarm, which may come late, finds the stream; null: it is gone.
  struct Life {
    Mutex mutex;
    QueuedStream* stream ABSL_GUARDED_BY(mutex) = nullptr;
  };

  // Once the token is revoked and the work has ended, in whichever order.
  void CutOffSoon() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (!call_.revoked() || !ended_ || finished_ || alarm_ != nullptr) return;
    alarm_ = std::make_unique<grpc::Alarm>();
    const gpr_timespec grace = gpr_time_from_seconds(kRevokedGraceSeconds, GPR_TIMESPAN);
    alarm_->Set(gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), grace), [life = life_](bool) {
      const MutexLock lock(life->mutex);
      if (life->stream != nullptr) life->stream->CutOff();
    });
  }

  // Fails the write under way. gRPC's part of the call lives until Finish, which therefore waits.
  void CutOff() {
    {
      const absl::MutexLock lock(&mu_);
      if (finished_) return;
      cutting_off_ = true;
    }
    context_->TryCancel();
    const absl::MutexLock lock(&mu_);
    cutting_off_ = false;
    Advance();
  }

  // Starts the next write, or the end.
  void Advance() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (writing_ || finished_) return;
    if (!queue_.empty()) {
      writing_ = true;
      this->StartWrite(&queue_.front().message);
    } else if (ended_ && !cutting_off_) {
      finished_ = true;
      this->Finish(call_.End(final_status_));
    }
  }

  CallState call_;
  grpc::CallbackServerContext* const context_;  // gRPC's, until Finish.
  const size_t queued_max_;
  absl::Mutex mu_;
  struct Outgoing {
    grpc::ByteBuffer message;
    size_t bytes;
  };
  std::deque<Outgoing> queue_ ABSL_GUARDED_BY(mu_);  // The front is being written while writing_.
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
  bool cutting_off_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status failure_ ABSL_GUARDED_BY(mu_);  // of sending
  absl::Status final_status_ ABSL_GUARDED_BY(mu_);
  const std::shared_ptr<Life> life_ = std::make_shared<Life>();
  std::unique_ptr<grpc::Alarm> alarm_ ABSL_GUARDED_BY(mu_);
  std::unique_ptr<Grant::Hold> hold_;  // Goes first.
};

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_QUEUED_STREAM_H_
