#ifndef C3PO_SERVER_RPC_BACKUP_REACTOR_H_
#define C3PO_SERVER_RPC_BACKUP_REACTOR_H_

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <memory>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "server/rpc/call_context.h"

namespace c3po {

// One BackupStore call: copies the store beside itself, STORE.backup, a few pages at a time while requests go on; then
// sends that file chunk by chunk, the next once the transport has taken the last. The file's name is gone before the
// first chunk, and its room with the call. A thread of its own does the reading and the waiting.
// ResourceExhausted: another copy is being made, or the disk is full. Cancelled: the client left.
class BackupReactor final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  BackupReactor(grpc::CallbackServerContext* context, const ServiceParts& parts);

  void OnWriteDone(bool ok) override;
  void OnCancel() override { call_.Cancel(); }
  void OnDone() override;

 private:
  absl::Status CopyAndSend();
  absl::Status CheckCancelled() const;
  absl::Status Write(grpc::ByteBuffer message);

  const ServiceParts& parts_;
  CallState call_;
  absl::Mutex mu_;
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool broken_ ABSL_GUARDED_BY(mu_) = false;
  grpc::ByteBuffer outgoing_;  // The thread's; gRPC's while writing_.
  std::thread thread_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_BACKUP_REACTOR_H_
