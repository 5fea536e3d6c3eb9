#ifndef C3PO_SERVER_RPC_BACKUP_REACTOR_H_
#define C3PO_SERVER_RPC_BACKUP_REACTOR_H_

#include <google/protobuf/message.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <condition_variable>
#include <memory>
#include <mutex>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/rpc/call_context.h"

namespace c3po {

// One BackupStore call: copies the store beside itself, STORE.backup, a few pages at a time while requests go on; then
// sends that file chunk by chunk, the next once the transport has taken the last. The file's name is gone before the
// first chunk, and its room with the call. A thread of ServiceParts::backups does the reading and the waiting.
// ResourceExhausted: another copy is being made, all places for backups are taken or the caller's share of them is, the
// disk is full, or the client left a chunk unread for ServiceParts::unread_max. Cancelled: the client left, or
// its token was revoked; a chunk that it does not read holds that up for a second.
class BackupReactor final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  BackupReactor(grpc::CallbackServerContext* context, const ServiceParts& parts);

  void OnWriteDone(bool ok) override;
  void OnCancel() override { call_.Cancel(); }
  void OnDone() override;

 private:
  absl::Status Submit();
  absl::Status CopyAndSend();
  absl::Status CheckCancelled() const;
  absl::Status Write(const google::protobuf::Message& message);

  const ServiceParts& parts_;
  CallState call_;
  grpc::CallbackServerContext* const context_;
  std::unique_ptr<SharedAmount::Held> place_;
  std::mutex mu_;  // Not absl::Mutex, whose timed waits are by the wall clock.
  std::condition_variable written_;
  bool writing_ = false;               // Under mu_.
  bool broken_ = false;                // Under mu_.
  bool revoked_ = false;               // Under mu_.
  grpc::ByteBuffer outgoing_;          // The thread's; gRPC's while writing_.
  std::unique_ptr<Grant::Hold> hold_;  // Goes first.
};

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_BACKUP_REACTOR_H_
