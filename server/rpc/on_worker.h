#ifndef C3PO_SERVER_RPC_ON_WORKER_H_
#define C3PO_SERVER_RPC_ON_WORKER_H_

#include <grpcpp/support/server_callback.h>

#include <functional>

#include "absl/status/status.h"
#include "server/rpc/call_context.h"

namespace c3po {

// Runs `work` on the worker pool and finishes the call with what it returns, unless the call is not let in. gRPC's own
// threads are few and serve every call: what reads the store or a long text must not run on them. ResourceExhausted:
// the pool's queue is full. Request and response live until the call is finished.
grpc::ServerUnaryReactor* OnWorker(grpc::CallbackServerContext* context, const ServiceParts& parts, Metrics::Rpc rpc,
                                   std::function<absl::Status(CallState&)> work);

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_ON_WORKER_H_
