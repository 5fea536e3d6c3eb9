#include "server/rpc/doors/http/byte_stream.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <sys/socket.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "boost/asio/buffer.hpp"
#include "boost/asio/generic/stream_protocol.hpp"
#include "boost/asio/post.hpp"
#include "boost/asio/ssl/stream.hpp"
#include "boost/asio/write.hpp"

namespace c3po {
namespace {

namespace asio = boost::asio;
using boost::system::error_code;
using Socket = asio::generic::stream_protocol::socket;

// A client whose machine has vanished says nothing; its call must not run for hours.
constexpr int kKeepaliveSeconds = 60, kKeepaliveProbeSeconds = 20, kKeepaliveProbes = 1;

std::string PeerOf(int descriptor) {
  sockaddr_storage address = {};
  socklen_t size = sizeof(address);
  char text[INET6_ADDRSTRLEN] = "";
  if (getpeername(descriptor, reinterpret_cast<sockaddr*>(&address), &size) != 0) return "";
  if (address.ss_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(address);
    inet_ntop(AF_INET, &v4.sin_addr, text, sizeof(text));
    return absl::StrCat("ipv4:", text, ":", ntohs(v4.sin_port));
  }
  if (address.ss_family != AF_INET6) return "unix:";
  const auto& v6 = reinterpret_cast<const sockaddr_in6&>(address);
  inet_ntop(AF_INET6, &v6.sin6_addr, text, sizeof(text));
  constexpr absl::string_view kMapped = "::ffff:";
  if (IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr)) {
    return absl::StrCat("ipv4:", absl::string_view(text).substr(kMapped.size()), ":", ntohs(v6.sin6_port));
  }
  return absl::StrCat("ipv6:%5B", text, "%5D:", ntohs(v6.sin6_port));
}

Socket SocketOf(asio::io_context& loop, int descriptor) {
  sockaddr_storage own = {};
  socklen_t size = sizeof(own);
  getsockname(descriptor, reinterpret_cast<sockaddr*>(&own), &size);
  if (own.ss_family == AF_INET || own.ss_family == AF_INET6) {
    const auto set = [descriptor](int level, int option, int value) {
      setsockopt(descriptor, level, option, &value, sizeof(value));
    };
    set(IPPROTO_TCP, TCP_NODELAY, 1);
    set(SOL_SOCKET, SO_KEEPALIVE, 1);
    set(IPPROTO_TCP, TCP_KEEPIDLE, kKeepaliveSeconds);
    set(IPPROTO_TCP, TCP_KEEPINTVL, kKeepaliveProbeSeconds);
    set(IPPROTO_TCP, TCP_KEEPCNT, kKeepaliveProbes);
  }
  return Socket(loop, asio::generic::stream_protocol(own.ss_family, 0), descriptor);
}

// What is done holds the stream: Asio looks at it once more when it was closed amid an operation.
class PlainStream final : public ByteStream {
 public:
  PlainStream(std::string peer, Socket socket) : ByteStream(std::move(peer)), socket_(std::move(socket)) {}
  void Handshake(Done done) override {
    asio::post(socket_.get_executor(), [done = std::move(done)] { done(true, 0); });
  }
  void Read(absl::Span<char> into, Done done) override {
    socket_.async_read_some(
        asio::buffer(into.data(), into.size()),
        [self = shared_from_this(), done = std::move(done)](error_code error, size_t bytes) { done(!error, bytes); });
  }
  void Write(absl::string_view bytes, Done done) override {
    asio::async_write(socket_, asio::buffer(bytes.data(), bytes.size()),
                      [self = shared_from_this(), done = std::move(done)](error_code error, size_t written) {
                        done(!error, written);
                      });
  }
  void EndWriting() override {
    error_code ignored;
    socket_.shutdown(Socket::shutdown_send, ignored);
  }
  void Close() override {
    error_code ignored;
    socket_.close(ignored);
  }
  std::string CertificateName() const override { return ""; }

 private:
  Socket socket_;
};

// The name that gRPC calls x509_common_name: the first one of the subject.
std::string CommonNameOf(SSL* ssl) {
  X509* const certificate = SSL_get1_peer_certificate(ssl);
  if (certificate == nullptr) return "";
  std::string name;
  const X509_NAME* const subject = X509_get_subject_name(certificate);
  const int index = X509_NAME_get_index_by_NID(subject, NID_commonName, -1);
  unsigned char* text = nullptr;
  if (index >= 0) {
    const int size = ASN1_STRING_to_UTF8(&text, X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, index)));
    if (size > 0) name.assign(reinterpret_cast<const char*>(text), static_cast<size_t>(size));
    if (size >= 0) OPENSSL_free(text);
  }
  X509_free(certificate);
  return name;
}

class TlsStream final : public ByteStream {
 public:
  TlsStream(std::string peer, Socket socket, std::shared_ptr<asio::ssl::context> tls)
      : ByteStream(std::move(peer)), tls_(std::move(tls)), stream_(std::move(socket), *tls_) {}
  void Handshake(Done done) override {
    stream_.async_handshake(asio::ssl::stream_base::server,
                            [self = shared_from_this(), done = std::move(done)](error_code error) { done(!error, 0); });
  }
  void Read(absl::Span<char> into, Done done) override {
    stream_.async_read_some(
        asio::buffer(into.data(), into.size()),
        [self = shared_from_this(), done = std::move(done)](error_code error, size_t bytes) { done(!error, bytes); });
  }
  void Write(absl::string_view bytes, Done done) override {
    asio::async_write(stream_, asio::buffer(bytes.data(), bytes.size()),
                      [self = shared_from_this(), done = std::move(done)](error_code error, size_t written) {
                        done(!error, written);
                      });
  }
  // The alert goes out without a wait for the peer's, which may never come.
  void EndWriting() override {
    stream_.async_shutdown([self = shared_from_this()](error_code) {});
  }
  void Close() override {
    error_code ignored;
    stream_.lowest_layer().close(ignored);
  }
  std::string CertificateName() const override {
    return CommonNameOf(const_cast<asio::ssl::stream<Socket>&>(stream_).native_handle());
  }

 private:
  const std::shared_ptr<asio::ssl::context> tls_;
  asio::ssl::stream<Socket> stream_;
};

// HTTP/1.1 of what a client offers; one that offers something else alone goes on without.
int ChooseProtocol(SSL*, const unsigned char** out, unsigned char* out_size, const unsigned char* offered,
                   unsigned int offered_size, void*) {
  static constexpr unsigned char kHttp11[] = {8, 'h', 't', 't', 'p', '/', '1', '.', '1'};
  unsigned char* chosen = nullptr;
  const int found = SSL_select_next_proto(&chosen, out_size, kHttp11, sizeof(kHttp11), offered, offered_size);
  *out = chosen;
  return found == OPENSSL_NPN_NEGOTIATED ? SSL_TLSEXT_ERR_OK : SSL_TLSEXT_ERR_NOACK;
}

absl::StatusOr<std::shared_ptr<asio::ssl::context>> MakeContext(const TlsMaterial& material) {
  auto context = std::make_shared<asio::ssl::context>(asio::ssl::context::tls_server);
  SSL_CTX* const raw = context->native_handle();
  SSL_CTX_set_min_proto_version(raw, TLS1_2_VERSION);
  SSL_CTX_set_options(raw, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
  SSL_CTX_set_mode(raw, SSL_MODE_RELEASE_BUFFERS);
  SSL_CTX_set_alpn_select_cb(raw, ChooseProtocol, nullptr);
  static constexpr unsigned char kSessions[] = "c3pod";
  SSL_CTX_set_session_id_context(raw, kSessions, sizeof(kSessions));
  error_code error;
  context->use_certificate_chain(asio::buffer(material.certificates), error);
  if (!error) context->use_private_key(asio::buffer(material.key), asio::ssl::context::pem, error);
  if (!error && !material.client_ca.empty()) {
    context->add_certificate_authority(asio::buffer(material.client_ca), error);
    if (!error) context->set_verify_mode(asio::ssl::verify_peer | asio::ssl::verify_fail_if_no_peer_cert, error);
  }
  if (error) return absl::InternalError(absl::StrCat("TLS: ", error.message()));
  return context;
}

}  // namespace

std::shared_ptr<ByteStream> ByteStream::Take(asio::io_context& loop, int descriptor,
                                             std::shared_ptr<asio::ssl::context> tls) {
  std::string peer = PeerOf(descriptor);
  Socket socket = SocketOf(loop, descriptor);
  if (tls == nullptr) return std::make_shared<PlainStream>(std::move(peer), std::move(socket));
  return std::make_shared<TlsStream>(std::move(peer), std::move(socket), std::move(tls));
}

absl::StatusOr<std::shared_ptr<asio::ssl::context>> TlsContexts::Current() {
  std::shared_ptr<const TlsMaterial> now = files_->current();
  const MutexLock lock(mutex_);
  if (now == material_) return context_;
  auto made = MakeContext(*now);
  if (!made.ok()) return made.status();
  material_ = std::move(now);
  context_ = *made;
  return context_;
}

}  // namespace c3po
