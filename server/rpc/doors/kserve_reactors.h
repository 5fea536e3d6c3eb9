#ifndef C3PO_SERVER_RPC_DOORS_KSERVE_REACTORS_H_
#define C3PO_SERVER_RPC_DOORS_KSERVE_REACTORS_H_

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "index/base/mutex.h"
#include "server/pipeline/generation_types.h"
#include "server/rpc/doors/kserve_request.h"
#include "server/rpc/queued_stream.h"

namespace c3po {

// One ModelInfer call. Holds itself until OnDone; the pipeline holds it as well.
class KserveInferReactor final : public grpc::ServerUnaryReactor, public GenerationListener {
 public:
  static KserveInferReactor* Start(grpc::CallbackServerContext* context, const grpc::ByteBuffer& request,
                                   grpc::ByteBuffer* response, const ServiceParts& parts);

  void OnOptimization(const OptimizationReport& report) override;
  void OnChunk(TextChunk chunk) override;
  void OnScores(std::vector<ContinuationScore>) override {}
  void OnDone(const absl::Status& status, const CallSummary& summary) override;
  void OnCancel() override { call_.Cancel(); }
  void OnDone() override { self_.reset(); }

 private:
  KserveInferReactor(grpc::CallbackServerContext* context, grpc::ByteBuffer* response, const ServiceParts& parts);
  absl::Status Submit(const grpc::ByteBuffer& bytes, const std::shared_ptr<KserveInferReactor>& self);
  absl::Status Fill(const CallSummary& summary);

  const ServiceParts& parts_;
  CallState call_;
  grpc::ByteBuffer* const response_;
  inference::ModelInferRequest request_;
  OptimizationReport report_;
  std::string text_;
  absl::Status held_;  // other than OK: text_ is more than calls may hold
  std::atomic<bool> ended_{false};
  std::shared_ptr<KserveInferReactor> self_;
};

// One ModelStreamInfer call: reads a request when the one before has been answered. Holds itself until OnDone; the
// listener of the request that runs holds it as well.
class KserveStreamReactor final : public QueuedStream<grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>>,
                                  public std::enable_shared_from_this<KserveStreamReactor> {
 public:
  static KserveStreamReactor* Start(grpc::CallbackServerContext* context, const ServiceParts& parts);
  KserveStreamReactor(grpc::CallbackServerContext* context, const ServiceParts& parts);

  void OnReadDone(bool ok) override;
  void OnDone() override { self_.reset(); }

 private:
  class Listener;

  absl::Status Begin();
  absl::Status Submit();
  // The request that ran has ended, or never began.
  void Answered(const absl::Status& status);
  void OnRevoked();

  const ServiceParts& parts_;
  grpc::CallbackServerContext* const context_;
  grpc::ByteBuffer incoming_;
  Mutex mutex_;  // A read and the token's end come from different threads.
  bool busy_ ABSL_GUARDED_BY(mutex_) = false;
  bool revoked_ ABSL_GUARDED_BY(mutex_) = false;
  bool began_ = false;  // The call itself was counted for its first request.
  std::shared_ptr<KserveStreamReactor> self_;
  std::unique_ptr<Grant::Hold> hold_;  // Goes first.
};

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_DOORS_KSERVE_REACTORS_H_
