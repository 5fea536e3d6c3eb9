#ifndef C3PO_SERVER_RPC_LEARNING_REACTORS_H_
#define C3PO_SERVER_RPC_LEARNING_REACTORS_H_

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "server/rpc/call_context.h"

namespace c3po {

// Reactors of ReferenceService.TunePrior, AmortizeShifts and TuneOffset: progress as it is made, then the status. They
// delete themselves when gRPC and the work are both done with them.
grpc::ServerWriteReactor<grpc::ByteBuffer>* StartTunePrior(grpc::CallbackServerContext* context,
                                                           const grpc::ByteBuffer& request, const ServiceParts& parts);
grpc::ServerWriteReactor<grpc::ByteBuffer>* StartAmortizeShifts(grpc::CallbackServerContext* context,
                                                                const grpc::ByteBuffer& request,
                                                                const ServiceParts& parts);

grpc::ServerWriteReactor<grpc::ByteBuffer>* StartTuneOffset(grpc::CallbackServerContext* context,
                                                            const grpc::ByteBuffer& request, const ServiceParts& parts);

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_LEARNING_REACTORS_H_
