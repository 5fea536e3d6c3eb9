#ifndef C3PO_SERVER_RPC_DOORS_VLLM_GENERATE_REACTOR_H_
#define C3PO_SERVER_RPC_DOORS_VLLM_GENERATE_REACTOR_H_

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "c3po/v1/options.pb.h"
#include "server/pipeline/generation_types.h"
#include "server/rpc/doors/running_calls.h"
#include "server/rpc/doors/vllm_request.h"
#include "server/rpc/queued_stream.h"

namespace c3po {

// One VllmEngine.Generate call. With `stream` a message per token, and one at the end of each answer; without, only the
// latter, which then has all ids. Method and decision of the optimization, and the state of the references that it is
// of, are trailing metadata: c3po-method, c3po-gate and c3po-index-generation. A call that was aborted by its id ends
// well, its answers with the finish reason "abort".
//
// Lives until gRPC is done with it and the pipeline has let go of it, whichever is later: it holds itself until OnDone.
class VllmGenerateReactor final : public QueuedStream<grpc::ServerWriteReactor<grpc::ByteBuffer>>,
                                  public GenerationListener {
 public:
  // `parts` and `running` outlive the call.
  static VllmGenerateReactor* Start(grpc::CallbackServerContext* context, const grpc::ByteBuffer& request,
                                    const ServiceParts& parts, RunningCalls* running);

  void OnOptimization(const OptimizationReport& report) override;
  void OnChunk(TextChunk chunk) override;
  void OnScores(std::vector<ContinuationScore>) override {}
  void OnDone(const absl::Status& status, const CallSummary& summary) override;
  void OnDone() override { self_.reset(); }

 private:
  // Of a call without `stream`: what it will answer.
  struct Answer {
    google::protobuf::RepeatedField<uint32_t> ids;
    vllm_engine::OutputLogProbs logprobs;
  };

  VllmGenerateReactor(grpc::CallbackServerContext* context, const ServiceParts& parts, RunningCalls* running);
  absl::Status Begin(const grpc::ByteBuffer& bytes, const std::shared_ptr<VllmGenerateReactor>& self);
  absl::Status Submit(const vllm_engine::GenerateRequest& request, const v1::OptimizationOptions& options,
                      const CallContext& context, std::shared_ptr<GenerationListener> listener);
  absl::StatusOr<GenerateCall> Read(const vllm_engine::GenerateRequest& request,
                                    const v1::OptimizationOptions& options);
  void Keep(const TextChunk& chunk);
  void SendEnds(const CallSummary& summary, bool aborted);

  const ServiceParts& parts_;
  RunningCalls* const running_;
  grpc::CallbackServerContext* const context_;
  // Of the request; set before the pipeline has it.
  bool stream_ = false;
  int top_logprobs_ = -1;
  std::vector<std::string> stops_;
  std::vector<Answer> answers_;
  std::vector<int> tokens_;  // of each answer, so far
  size_t kept_bytes_ = 0;    // of answers_, counted as the call's
  std::atomic<bool> aborted_{false};
  std::shared_ptr<VllmGenerateReactor> self_;
  std::unique_ptr<RunningCalls::Place> place_;  // Goes first.
};

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_DOORS_VLLM_GENERATE_REACTOR_H_
