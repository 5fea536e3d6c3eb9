#ifndef C3PO_SERVER_RPC_DOORS_HTTP_BYTE_STREAM_H_
#define C3PO_SERVER_RPC_DOORS_HTTP_BYTE_STREAM_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "boost/asio/io_context.hpp"
#include "boost/asio/ssl/context.hpp"
#include "index/base/mutex.h"
#include "server/rpc/tls_files.h"

namespace c3po {

// A connection's bytes, encrypted or not. All of it belongs to the thread that runs its loop, which also calls what is
// done, once each, after Close too. At most one Read and one Write are under way.
class ByteStream : public std::enable_shared_from_this<ByteStream> {
 public:
  using Done = std::function<void(bool ok, size_t bytes)>;

  // Takes over `descriptor`, a connected socket. `tls` null: plain.
  static std::shared_ptr<ByteStream> Take(boost::asio::io_context& loop, int descriptor,
                                          std::shared_ptr<boost::asio::ssl::context> tls);
  virtual ~ByteStream() = default;

  virtual void Handshake(Done done) = 0;
  // At least one byte; not ok: the peer has ended, or the connection is broken. `into` lives until then.
  virtual void Read(absl::Span<char> into, Done done) = 0;
  // All of it. `bytes` live until then.
  virtual void Write(absl::string_view bytes, Done done) = 0;
  // Tells the peer that nothing follows.
  virtual void EndWriting() = 0;
  virtual void Close() = 0;

  // After the handshake: the common name of the client's certificate, which was verified; empty: it has none.
  virtual std::string CertificateName() const = 0;
  // As gRPC writes it: "ipv4:10.0.0.7:51002", "ipv6:%5B::1%5D:51002", "unix:".
  const std::string& peer() const { return peer_; }

 protected:
  explicit ByteStream(std::string peer) : peer_(std::move(peer)) {}

 private:
  const std::string peer_;
};

// What handshakes begin with, made of files that may be replaced while the server runs. Thread-safe.
class TlsContexts {
 public:
  explicit TlsContexts(std::shared_ptr<const TlsFiles> files) : files_(std::move(files)) {}
  // Of the files in force. TLS 1.2 or later; where they hold authorities, a client without a certificate of theirs is
  // refused. Internal: OpenSSL does not take what TlsFiles did.
  absl::StatusOr<std::shared_ptr<boost::asio::ssl::context>> Current();

 private:
  const std::shared_ptr<const TlsFiles> files_;
  Mutex mutex_;
  std::shared_ptr<const TlsMaterial> material_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<boost::asio::ssl::context> context_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_DOORS_HTTP_BYTE_STREAM_H_
