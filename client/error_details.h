#ifndef C3PO_CLIENT_ERROR_DETAILS_H_
#define C3PO_CLIENT_ERROR_DETAILS_H_

#include <grpcpp/support/status.h>

#include <optional>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace c3po {

// Folds a server's error into one line: its message, the google.rpc.BadRequest violations that the message does not
// already name ("field: description; ..."), and google.rpc.ErrorInfo's reason:
//   INVALID_ARGUMENT: optimization.k: must be at least 1 [reason INVALID_FIELD]
// Control characters become spaces. Same code as `status`; OK for OK. Details that do not parse are left out.
absl::Status FoldStatus(const grpc::Status& status);

// The retry_delay of google.rpc.RetryInfo, if the status carries one that is not negative.
std::optional<absl::Duration> RetryDelayOf(const grpc::Status& status);

}  // namespace c3po

#endif  // C3PO_CLIENT_ERROR_DETAILS_H_
