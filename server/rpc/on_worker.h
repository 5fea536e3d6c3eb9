#ifndef C3PO_SERVER_RPC_ON_WORKER_H_
#define C3PO_SERVER_RPC_ON_WORKER_H_

#include <grpcpp/support/server_callback.h>

#include <functional>
#include <utility>

#include "absl/status/status.h"
#include "server/rpc/call_context.h"
#include "server/rpc/wire.h"

namespace c3po {

// Runs `job` on the worker pool, and `failed` with what it returns other than OK. ResourceExhausted: the pool's queue
// is full, and neither runs.
absl::Status GiveToWorker(const ServiceParts& parts, std::function<absl::Status()> job,
                          std::function<void(const absl::Status&)> failed);

// What a unary call does on a worker, and the bytes of its answer afterwards.
struct WorkerJob {
  std::function<absl::Status(CallState&)> work;
  std::function<size_t()> answer_bytes;
};
grpc::ServerUnaryReactor* StartOnWorker(grpc::CallbackServerContext* context, const ServiceParts& parts,
                                        Metrics::Rpc rpc, size_t request_bytes, WorkerJob job);

// Runs `work` on the worker pool, under admission, and finishes the call with what it returns, unless the call is not
// let in or was cancelled. gRPC's own threads are few and serve every call: what reads the store or a long text must
// not run on them. `work` looks at CallState::CheckCancelled where it is long. ResourceExhausted: the pool's queue is
// full, the caller has its share, or of request and answer more bytes are held than may be. InvalidArgument: the answer
// is larger than kMessageBytesMax. Request and response live until the call is finished.
template <typename Request, typename Response>
grpc::ServerUnaryReactor* OnWorker(grpc::CallbackServerContext* context, const ServiceParts& parts, Metrics::Rpc rpc,
                                   const Request& request, const Response* response,
                                   std::function<absl::Status(CallState&)> work) {
  return StartOnWorker(context, parts, rpc, BytesOf(request),
                       {std::move(work), [response] { return BytesOf(*response); }});
}

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_ON_WORKER_H_
