#ifndef C3PO_SERVER_RPC_GRPC_STATUS_H_
#define C3PO_SERVER_RPC_GRPC_STATUS_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace c3po {

// The code that a client is told; codes outside the documented list are defects of ours, INTERNAL.
grpc::StatusCode ToGrpcCode(absl::StatusCode code);

// What the wire says of a status besides its message, whatever the protocol. Pure and thread-safe.
// A reason of proto/c3po/v1/errors.md; of a status other than OK.
std::string ReasonOnWire(const absl::Status& status);
// "optimization.critical_layers[2]" of "optimization.critical_layers[2]: layer 99 does not exist"; empty when the
// message begins otherwise. Also metadata's keys, "c3po-method".
absl::string_view FieldOfMessage(absl::string_view message);
// When to try again: of a ResourceExhausted, and of an Unavailable that says so or is of a store that is away. Half a
// second where it does not say, a second of a store. Nothing: of any other status.
std::optional<absl::Duration> PauseOf(const absl::Status& status);
// The message, cut so that clients' limits let it through.
absl::string_view MessageOnWire(const absl::Status& status);

// The only way from absl::Status to the wire. A status other than OK carries google.rpc.Status details: ErrorInfo with
// a reason of proto/c3po/v1/errors.md; BadRequest when an InvalidArgument's message begins with a dotted field path
// ("optimization.k:
// ..."); RetryInfo where PauseOf has something, and then `context` (may be null) gets trailing metadata
// grpc-retry-pushback-ms. The message is cut at 1024 bytes, so that clients' limit of metadata lets it through.
grpc::Status ToGrpcStatus(const absl::Status& status, grpc::CallbackServerContext* context);

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_GRPC_STATUS_H_
