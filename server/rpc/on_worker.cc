#include "server/rpc/on_worker.h"

#include <memory>
#include <utility>

namespace c3po {

grpc::ServerUnaryReactor* OnWorker(grpc::CallbackServerContext* context, const ServiceParts& parts, Metrics::Rpc rpc,
                                   std::function<absl::Status(CallState&)> work) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  auto call = std::make_shared<CallState>(context, parts, rpc);
  if (!call->entry().ok()) {
    reactor->Finish(call->End(call->entry()));
    return reactor;
  }
  const bool taken = parts.pipeline_parts.workers->Submit(
      [reactor, call, work = std::move(work)] { reactor->Finish(call->End(work(*call))); });
  if (!taken)
    reactor->Finish(call->End(absl::ResourceExhaustedError("the queue is full: too many requests wait for a worker")));
  return reactor;
}

}  // namespace c3po
