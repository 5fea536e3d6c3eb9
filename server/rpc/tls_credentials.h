#ifndef C3PO_SERVER_RPC_TLS_CREDENTIALS_H_
#define C3PO_SERVER_RPC_TLS_CREDENTIALS_H_

#include <grpcpp/security/server_credentials.h>

#include <memory>

#include "server/rpc/tls_files.h"

namespace c3po {

// Transport security by `files`: TLS; where they hold authorities of clients, mutual TLS, and clients without a
// certificate signed by one of these are refused during the handshake. Each new connection takes what is in force at
// that moment; those that exist keep what they began with. The caller keeps the credentials until the
// server is gone: gRPC keeps a part of them only.
std::shared_ptr<grpc::ServerCredentials> MakeTlsCredentials(std::shared_ptr<const TlsFiles> files);

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_TLS_CREDENTIALS_H_
