#include "server/rpc/tls_files.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <ctime>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "index/base/durable_file.h"
#include "index/base/status_macros.h"
#include "server/metrics/logging.h"

namespace c3po {
namespace {

constexpr int64_t kPemBytesMax = int64_t{4} << 20;  // The authorities of a whole distribution have 0.3 MB.

template <auto Free>
struct Deleter {
  template <typename T>
  void operator()(T* pointer) const {
    Free(pointer);
  }
};
using Bio = std::unique_ptr<BIO, Deleter<BIO_free_all>>;
using Certificate = std::unique_ptr<X509, Deleter<X509_free>>;
using PrivateKey = std::unique_ptr<EVP_PKEY, Deleter<EVP_PKEY_free>>;

Bio BioOf(const std::string& pem) { return Bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size()))); }

// A key under a passphrase must not ask for it on a terminal.
int NoPassphrase(char*, int, int, void*) { return 0; }

// Every certificate of the text. Nothing: none, or one of them is broken.
std::optional<std::vector<Certificate>> CertificatesOf(const std::string& pem) {
  const Bio bio = BioOf(pem);
  std::vector<Certificate> certificates;
  while (X509* certificate = PEM_read_bio_X509_AUX(bio.get(), nullptr, NoPassphrase, nullptr)) {
    certificates.emplace_back(certificate);
  }
  const bool at_end = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
  ERR_clear_error();
  if (!at_end || certificates.empty()) return std::nullopt;
  return certificates;
}

absl::Time ExpiryOf(const X509* certificate) {
  std::tm time = {};
  if (ASN1_TIME_to_tm(X509_get0_notAfter(certificate), &time) != 1) return absl::InfiniteFuture();
  return absl::FromTM(time, absl::UTCTimeZone());
}

absl::Status Wrong(absl::string_view flag, const std::string& path, absl::string_view what) {
  ERR_clear_error();
  return absl::InvalidArgumentError(absl::StrCat("--", flag, ": ", path, ": ", what));
}

absl::StatusOr<std::string> ReadPem(absl::string_view flag, const std::string& path) {
  absl::StatusOr<std::string> text = ReadWholeFile(path, kPemBytesMax);
  if (!text.ok()) return Wrong(flag, path, absl::StrCat("cannot be read: ", text.status().message()));
  return text;
}

}  // namespace

absl::StatusOr<TlsMaterial> TlsFiles::Read() const {
  TlsMaterial material;
  C3PO_ASSIGN_OR_RETURN(material.certificates, ReadPem("tls-cert", paths_.certificates));
  C3PO_ASSIGN_OR_RETURN(material.key, ReadPem("tls-key", paths_.key));
  const auto certificates = CertificatesOf(material.certificates);
  if (!certificates) return Wrong("tls-cert", paths_.certificates, "is not a whole chain of certificates in PEM");
  const Bio bio = BioOf(material.key);
  const PrivateKey key(PEM_read_bio_PrivateKey(bio.get(), nullptr, NoPassphrase, nullptr));
  if (!key) return Wrong("tls-key", paths_.key, "is not a private key in PEM without a passphrase");
  if (X509_check_private_key(certificates->front().get(), key.get()) != 1) {
    return Wrong("tls-key", paths_.key, absl::StrCat("is not the key of the certificate in ", paths_.certificates));
  }
  material.expires = ExpiryOf(certificates->front().get());
  if (paths_.client_ca.empty()) return material;
  C3PO_ASSIGN_OR_RETURN(material.client_ca, ReadPem("tls-client-ca", paths_.client_ca));
  if (!CertificatesOf(material.client_ca)) {
    return Wrong("tls-client-ca", paths_.client_ca, "is not a whole list of certificates in PEM");
  }
  return material;
}

absl::StatusOr<std::unique_ptr<TlsFiles>> TlsFiles::Load(const Paths& paths, Metrics* metrics) {
  auto files = std::unique_ptr<TlsFiles>(new TlsFiles(paths, metrics));
  C3PO_ASSIGN_OR_RETURN(TlsMaterial material, files->Read());
  if (material.expires <= absl::Now()) {
    Log(LogLevel::kWarning, "tls_expired", "",
        {{"file", paths.certificates}, {"expired", absl::FormatTime(material.expires, absl::UTCTimeZone())}});
  }
  const absl::MutexLock lock(&files->mu_);
  files->Take(std::move(material));
  return files;
}

void TlsFiles::Take(TlsMaterial material) {
  current_ = std::make_shared<const TlsMaterial>(std::move(material));
  if (metrics_ != nullptr) metrics_->SetCertificateExpiry(absl::ToDoubleSeconds(current_->expires - absl::UnixEpoch()));
}

void TlsFiles::LookAgain() {
  absl::StatusOr<TlsMaterial> read = Read();
  const absl::MutexLock lock(&mu_);
  const bool same = read.ok() && read->certificates == current_->certificates && read->key == current_->key &&
                    read->client_ca == current_->client_ca;
  if (read.ok() && !same && read->expires <= absl::Now()) {
    read = Wrong("tls-cert", paths_.certificates,
                 absl::StrCat("expired on ", absl::FormatTime(read->expires, absl::UTCTimeZone())));
  }
  const absl::Status before = std::exchange(refusal_, read.status());
  if (metrics_ != nullptr) metrics_->SetReloadFailed(Metrics::WatchedFile::kTls, !read.ok());
  if (!read.ok()) {
    if (refusal_ == before) return;
    Log(LogLevel::kWarning, "tls_refused", "",
        {{"reason", refusal_.message()}, {"in_force_until", absl::FormatTime(current_->expires, absl::UTCTimeZone())}});
  } else if (same) {
    return;
  } else {
    Take(*std::move(read));
    Log(LogLevel::kInfo, "tls_loaded", "", {{"expires", absl::FormatTime(current_->expires, absl::UTCTimeZone())}});
  }
  if (metrics_ != nullptr) metrics_->CountReload(Metrics::WatchedFile::kTls, refusal_.ok());
}

std::shared_ptr<const TlsMaterial> TlsFiles::current() const {
  const absl::MutexLock lock(&mu_);
  return current_;
}

absl::Status TlsFiles::refusal() const {
  const absl::MutexLock lock(&mu_);
  return refusal_;
}

}  // namespace c3po
