#include "server/rpc/tls_credentials.h"

#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>
#include <openssl/err.h>
#include <openssl/ssl.h>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr unsigned int kLookAgainSeconds = 2;

// gRPC itself only logs what is wrong with the files, and then fails every handshake.
absl::Status CheckFiles(const ServerConfig& config) {
  const std::unique_ptr<SSL_CTX, void (*)(SSL_CTX*)> context(SSL_CTX_new(TLS_server_method()), SSL_CTX_free);
  if (!context) return absl::InternalError("TLS cannot be set up");
  const auto wrong = [](absl::string_view flag, const std::string& path, absl::string_view what) {
    ERR_clear_error();
    return absl::InvalidArgumentError(absl::StrCat("--", flag, ": ", path, ": ", what));
  };
  if (SSL_CTX_use_certificate_chain_file(context.get(), config.tls_cert.c_str()) != 1)
    return wrong("tls-cert", config.tls_cert, "is not a readable certificate chain in PEM");
  if (SSL_CTX_use_PrivateKey_file(context.get(), config.tls_key.c_str(), SSL_FILETYPE_PEM) != 1)
    return wrong("tls-key", config.tls_key, "is not a readable private key in PEM, or not the certificate's");
  if (SSL_CTX_check_private_key(context.get()) != 1)
    return wrong("tls-key", config.tls_key, "is not the key of the certificate");
  if (!config.tls_client_ca.empty() &&
      SSL_CTX_load_verify_locations(context.get(), config.tls_client_ca.c_str(), nullptr) != 1)
    return wrong("tls-client-ca", config.tls_client_ca, "is not a readable list of certificates in PEM");
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(const ServerConfig& config) {
  if (config.tls_cert.empty()) return grpc::InsecureServerCredentials();
  C3PO_RETURN_IF_ERROR(CheckFiles(config));
  namespace tls = grpc::experimental;
  tls::TlsServerCredentialsOptions options(std::make_shared<tls::FileWatcherCertificateProvider>(
      config.tls_key, config.tls_cert, config.tls_client_ca, kLookAgainSeconds));
  options.watch_identity_key_cert_pairs();
  if (config.tls_client_ca.empty()) {
    options.set_cert_request_type(GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE);
  } else {
    options.watch_root_certs();
    options.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  }
  return tls::TlsServerCredentials(options);
}

}  // namespace c3po
