#ifndef C3PO_SERVER_RPC_GRPC_STATUS_H_
#define C3PO_SERVER_RPC_GRPC_STATUS_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include "absl/status/status.h"

namespace c3po {

// The code that a client is told; codes outside the documented list are defects of ours, INTERNAL.
grpc::StatusCode ToGrpcCode(absl::StatusCode code);

// The only way from absl::Status to the wire. A status other than OK carries google.rpc.Status details: ErrorInfo with
// a reason of proto/c3po/v1/errors.md; BadRequest when an InvalidArgument's message begins with a dotted field path
// ("optimization.k:
// ..."); RetryInfo for ResourceExhausted, and then `context` (may be null) gets trailing metadata
// grpc-retry-pushback-ms. The message is cut at 1024 bytes, so that clients' limit of metadata lets it through.
grpc::Status ToGrpcStatus(const absl::Status& status, grpc::CallbackServerContext* context);

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_GRPC_STATUS_H_
