#ifndef C3PO_CLIENT_CLI_EXIT_CODE_H_
#define C3PO_CLIENT_CLI_EXIT_CODE_H_

#include "absl/status/status.h"

namespace c3po {

// How `c3po` ends; scripts rely on these numbers, and `c3po --help` prints them.
enum ExitCode : int {
  kExitOk = 0,
  kExitOther = 1,
  kExitUsage = 2,  // Flags, arguments, or a local file that cannot be read.
  kExitUnavailable = 3,
  kExitInvalidArgument = 4,
  kExitNotFound = 5,
  kExitFailedPrecondition = 6,
  kExitResourceExhausted = 7,
  kExitDeadlineExceeded = 8,
  kExitCancelled = 9,
  kExitPermission = 10,  // UNAUTHENTICATED or PERMISSION_DENIED.
};

inline ExitCode ExitCodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return kExitOk;
    case absl::StatusCode::kUnavailable:
      return kExitUnavailable;
    case absl::StatusCode::kInvalidArgument:
      return kExitInvalidArgument;
    case absl::StatusCode::kNotFound:
      return kExitNotFound;
    case absl::StatusCode::kFailedPrecondition:
      return kExitFailedPrecondition;
    case absl::StatusCode::kResourceExhausted:
      return kExitResourceExhausted;
    case absl::StatusCode::kDeadlineExceeded:
      return kExitDeadlineExceeded;
    case absl::StatusCode::kCancelled:
      return kExitCancelled;
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kPermissionDenied:
      return kExitPermission;
    default:
      return kExitOther;
  }
}

inline constexpr char kExitCodeHelp[] =
    "Exit codes: 0 ok, 1 other, 2 usage, 3 unavailable, 4 invalid argument, 5 not found, 6 failed precondition,\n"
    "7 resource exhausted, 8 deadline exceeded, 9 cancelled (Ctrl-C), 10 unauthenticated or permission denied";

}  // namespace c3po

#endif  // C3PO_CLIENT_CLI_EXIT_CODE_H_
