#ifndef C3PO_SERVER_RPC_TLS_FILES_H_
#define C3PO_SERVER_RPC_TLS_FILES_H_

#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/metrics/metrics.h"

namespace c3po {

// What handshakes need, all in PEM.
struct TlsMaterial {
  std::string certificates;  // The chain, the server's own first.
  std::string key;           // Of the first certificate.
  std::string client_ca;     // Who signs clients' certificates; empty: clients need none.
  absl::Time expires;        // The server's own certificate.
};

// The certificate, key and client authorities of a server, kept whole while their files are replaced: what is in force
// changes only to files that can be read, that hold PEM from end to end, whose key is the certificate's, and that have
// not expired. Until then the old ones stay, one line is logged for each new refusal (event tls_refused, then
// tls_loaded), and the metrics of watched files tell. Files are compared by content. Thread-safe.
class TlsFiles {
 public:
  struct Paths {
    std::string certificates, key;
    std::string client_ca;  // Empty: none.
  };

  // `metrics` may be null and outlives it. InvalidArgument, naming the flag and the file: it cannot be read, is not
  // PEM, or key and certificate do not match. Expired ones are logged and taken: there is nothing better to serve with.
  static absl::StatusOr<std::unique_ptr<TlsFiles>> Load(const Paths& paths, Metrics* metrics);

  // Reads the files again, and takes what they hold if it is sound.
  void LookAgain();

  std::shared_ptr<const TlsMaterial> current() const;
  // Why the files are not what is in force; OK: they are.
  absl::Status refusal() const;

 private:
  TlsFiles(Paths paths, Metrics* metrics) : paths_(std::move(paths)), metrics_(metrics) {}
  absl::StatusOr<TlsMaterial> Read() const;
  void Take(TlsMaterial material) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const Paths paths_;
  Metrics* const metrics_;
  mutable absl::Mutex mu_;
  std::shared_ptr<const TlsMaterial> current_ ABSL_GUARDED_BY(mu_);
  absl::Status refusal_ ABSL_GUARDED_BY(mu_);
};

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_TLS_FILES_H_
