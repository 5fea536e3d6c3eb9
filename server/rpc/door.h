#ifndef C3PO_SERVER_RPC_DOOR_H_
#define C3PO_SERVER_RPC_DOOR_H_

#include <grpcpp/impl/service_type.h>

#include <functional>
#include <memory>
#include <string>

#include "server/rpc/call_context.h"

namespace c3po {

// A service whose protocol others define (server/rpc/doors): it turns a request into the pipeline's and back. Its calls
// pass the same Entrance as all others do, by a CallState.
struct Door {
  std::string service;  // Full name, "vllm.grpc.engine.VllmEngine": health knows it.
  std::unique_ptr<grpc::Service> handler;
};

// `parts` outlive the door; only calls that the entrance lets in may look at what is loaded.
using MakeDoor = std::function<Door(const ServiceParts& parts)>;

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_DOOR_H_
