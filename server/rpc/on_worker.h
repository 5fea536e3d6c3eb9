#ifndef C3PO_SERVER_RPC_ON_WORKER_H_
#define C3PO_SERVER_RPC_ON_WORKER_H_

#include <grpcpp/support/server_callback.h>

#include <cstdint>
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

// Runs `next` once this server has seen `generation` of the references (0: any; StoreFollower::WhenSeen): at once,
// here, where it has, and returns what that returns; else OK, and `next` is a job of the worker pool later. `failed`
// hears what that returns other than OK, or why the generation has not come, which names `field`. `context` is of the
// call that waits. InvalidArgument "FIELD: ...": no store gets that far.
inline constexpr char kOptimizationsGeneration[] = "optimization.min_index_generation";
absl::Status OnceSeen(const ServiceParts& parts, const char* field, uint64_t generation, const CallContext& context,
                      std::function<absl::Status()> next, std::function<void(const absl::Status&)> failed);

// StoreAwayError: the store is known not to answer. OK too where nobody watches it.
absl::Status CheckStoreReachable(const ServiceParts& parts);

// What a unary call does on a worker, and the bytes of its answer afterwards.
struct WorkerJob {
  std::function<absl::Status(CallState&)> work;
  std::function<size_t()> answer_bytes;
  bool needs_store = false;           // It is refused while the store is away, and runs on a worker of store_calls.
  uint64_t min_index_generation = 0;  // OnceSeen
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

// The same of work that reads or changes the store itself.
template <typename Request, typename Response>
grpc::ServerUnaryReactor* OnStoreWorker(grpc::CallbackServerContext* context, const ServiceParts& parts,
                                        Metrics::Rpc rpc, const Request& request, const Response* response,
                                        std::function<absl::Status(CallState&)> work,
                                        uint64_t min_index_generation = 0) {
  return StartOnWorker(
      context, parts, rpc, BytesOf(request),
      {std::move(work), [response] { return BytesOf(*response); }, /*needs_store=*/true, min_index_generation});
}

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_ON_WORKER_H_
