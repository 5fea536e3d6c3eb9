#ifndef C3PO_SERVER_RPC_TLS_CREDENTIALS_H_
#define C3PO_SERVER_RPC_TLS_CREDENTIALS_H_

#include <grpcpp/security/server_credentials.h>

#include <memory>

#include "absl/status/statusor.h"
#include "server/config/server_config.h"

namespace c3po {

// The transport security that `config` asks for: none; TLS (tls_cert and tls_key); mutual TLS (and tls_client_ca:
// clients without a certificate that it signed are refused during the handshake). The files are looked at every two
// seconds, and new connections use what they hold then. Replace key and certificate together, by renaming the folder or
// a link to it: between two writes they do not match, and handshakes fail.
// InvalidArgument, naming the flag and the file: it cannot be read, is not PEM, or key and certificate do not match.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(const ServerConfig& config);

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_TLS_CREDENTIALS_H_
