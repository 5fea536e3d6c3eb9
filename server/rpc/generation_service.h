#ifndef C3PO_SERVER_RPC_GENERATION_SERVICE_H_
#define C3PO_SERVER_RPC_GENERATION_SERVICE_H_

#include "c3po/v1/generation.grpc.pb.h"
#include "server/rpc/call_context.h"

namespace c3po {

// c3po.v1.GenerationService over the pipeline. Reactors never wait: what the engine produces is queued per call, one
// write is in flight, and a cancelled call only sets a flag that the scheduler reads at its next step. A client that
// stops reading is cut off (QueuedStream).
class GenerationService final
    : public v1::GenerationService::WithRawCallbackMethod_Generate<
          v1::GenerationService::WithRawCallbackMethod_Score<v1::GenerationService::WithRawCallbackMethod_Tokenize<
              v1::GenerationService::WithCallbackMethod_Detokenize<v1::GenerationService::Service>>>> {
 public:
  explicit GenerationService(const ServiceParts& parts) : parts_(parts) {}

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* Score(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context, const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override;

 private:
  const ServiceParts& parts_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_GENERATION_SERVICE_H_
