#ifndef C3PO_CLIENT_CLI_SESSION_H_
#define C3PO_CLIENT_CLI_SESSION_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/c3po_client.h"
#include "client/cancellation.h"
#include "client/cli/terminal.h"

namespace c3po {

inline constexpr int kTimeoutSeconds = 300;

// What one run of `c3po` has in hand: filled by the global flags, then used by the command that was chosen.
struct Session {
  std::string server = "127.0.0.1:50051";
  bool tls = false;  // Also implied by any of the files.
  TlsFiles tls_files;
  std::string token_file;
  bool insecure_token = false;            // send it unencrypted beyond this machine
  std::string token;                      // of the environment; `token_file` wins
  std::optional<double> timeout_seconds;  // Of each call; 0: none; not set: the command's default.
  std::string command_line;               // as it could be typed again
  Terminal terminal;
  Cancellation cancellation;  // Ctrl-C
  // The chosen command, run once the whole command line has been read.
  std::function<absl::Status(Session&)> command;
  std::unique_ptr<Client> client;  // Set before `command` runs.

  CallOptions call_options(absl::Duration default_timeout = absl::Seconds(kTimeoutSeconds)) {
    CallOptions options;
    options.timeout = timeout_seconds ? absl::Seconds(*timeout_seconds) : default_timeout;
    if (options.timeout <= absl::ZeroDuration()) options.timeout = absl::InfiniteDuration();
    options.cancellation = &cancellation;
    return options;
  }
};

}  // namespace c3po

#endif  // C3PO_CLIENT_CLI_SESSION_H_
