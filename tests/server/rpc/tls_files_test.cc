#include "server/rpc/tls_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/index/store/random_reference.h"

namespace c3po {
namespace {

using ::testing::HasSubstr;

std::string TextOf(BIO* bio) {
  char* data = nullptr;
  const auto size = static_cast<size_t>(BIO_get_mem_data(bio, &data));
  std::string text(data, size);
  BIO_free(bio);
  return text;
}

// A key and a certificate of it that it signed itself, both PEM.
struct Pair {
  std::string certificate, key;
};

Pair MakePair(absl::Duration valid_for = absl::Hours(24)) {
  EVP_PKEY* key = EVP_EC_gen("P-256");
  X509* certificate = X509_new();
  ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1);
  X509_gmtime_adj(X509_getm_notBefore(certificate), -86400 * 30);
  X509_gmtime_adj(X509_getm_notAfter(certificate), absl::ToInt64Seconds(valid_for));
  X509_NAME* name = X509_get_subject_name(certificate);
  X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, reinterpret_cast<const unsigned char*>("test"), -1, -1, 0);
  X509_set_issuer_name(certificate, name);
  X509_set_pubkey(certificate, key);
  X509_sign(certificate, key, EVP_sha256());
  BIO* certificate_text = BIO_new(BIO_s_mem());
  BIO* key_text = BIO_new(BIO_s_mem());
  PEM_write_bio_X509(certificate_text, certificate);
  PEM_write_bio_PrivateKey(key_text, key, nullptr, nullptr, 0, nullptr, nullptr);
  X509_free(certificate);
  EVP_PKEY_free(key);
  return {TextOf(certificate_text), TextOf(key_text)};
}

class TlsFilesTest : public testing::Test {
 protected:
  static void Write(const std::string& path, const std::string& text) { std::ofstream(path) << text; }

  void Load(bool mutual = false) {
    Write(paths_.certificates, old_.certificate);
    Write(paths_.key, old_.key);
    if (mutual) {
      paths_.client_ca = folder_.File("ca.pem");
      Write(paths_.client_ca, old_.certificate);
    }
    auto files = TlsFiles::Load(paths_, &metrics_);
    ASSERT_TRUE(files.ok()) << files.status();
    files_ = *std::move(files);
  }

  // What the server goes on with after a look; the old pair unless it says otherwise.
  std::string InForce() {
    files_->LookAgain();
    const auto current = files_->current();
    if (current->certificates == old_.certificate && current->key == old_.key) return "old";
    return current->certificates == next_.certificate && current->key == next_.key ? "next" : "neither";
  }
  std::string Refusal() { return std::string(files_->refusal().message()); }
  bool MetricsSay(const std::string& line) { return metrics_.PrometheusText().find(line + "\n") != std::string::npos; }

  ScratchFolder folder_;
  TlsFiles::Paths paths_{folder_.File("cert.pem"), folder_.File("key.pem"), ""};
  const Pair old_ = MakePair(), next_ = MakePair();
  Metrics metrics_{"model", "0"};
  std::unique_ptr<TlsFiles> files_;
};

TEST_F(TlsFilesTest, ACertificateBeforeItsKeyWaitsForIt) {
  ASSERT_NO_FATAL_FAILURE(Load());
  EXPECT_EQ(InForce(), "old");
  EXPECT_TRUE(MetricsSay("c3po_reload_failed{files=\"tls\"} 0"));
  Write(paths_.certificates, next_.certificate);
  EXPECT_EQ(InForce(), "old");
  EXPECT_THAT(Refusal(), HasSubstr("--tls-key"));
  EXPECT_THAT(Refusal(), HasSubstr("is not the key of the certificate"));
  EXPECT_EQ(InForce(), "old");
  EXPECT_TRUE(MetricsSay("c3po_reload_failed{files=\"tls\"} 1"));
  EXPECT_TRUE(MetricsSay("c3po_reloads_total{files=\"tls\",result=\"refused\"} 1"));  // Once for each refusal.
  Write(paths_.key, next_.key);
  EXPECT_EQ(InForce(), "next");
  EXPECT_EQ(Refusal(), "");
  EXPECT_TRUE(MetricsSay("c3po_reload_failed{files=\"tls\"} 0"));
  EXPECT_TRUE(MetricsSay("c3po_reloads_total{files=\"tls\",result=\"loaded\"} 1"));
}

TEST_F(TlsFilesTest, AKeyBeforeItsCertificateWaitsToo) {
  ASSERT_NO_FATAL_FAILURE(Load());
  Write(paths_.key, next_.key);
  EXPECT_EQ(InForce(), "old");
  Write(paths_.certificates, next_.certificate);
  EXPECT_EQ(InForce(), "next");
}

TEST_F(TlsFilesTest, WhatIsNotWholeIsRefusedAndNamed) {
  ASSERT_NO_FATAL_FAILURE(Load());
  const std::string whole = next_.certificate + next_.certificate;
  // Garbage, nothing, and a file that is being written, cut at any of these places.
  for (const std::string& text :
       {std::string("garbage"), std::string(), std::string("\xff\x00\x01", 3), whole.substr(0, 20),
        whole.substr(0, next_.certificate.size() / 2), whole.substr(0, whole.size() * 3 / 4)}) {
    Write(paths_.certificates, text);
    Write(paths_.key, next_.key);
    EXPECT_EQ(InForce(), "old") << text;
    EXPECT_THAT(Refusal(), HasSubstr("--tls-cert")) << text;
    Write(paths_.certificates, next_.certificate);
    Write(paths_.key, text);
    EXPECT_EQ(InForce(), "old") << text;
    EXPECT_THAT(Refusal(), HasSubstr("--tls-key")) << text;
  }
  std::filesystem::remove(paths_.key);
  EXPECT_EQ(InForce(), "old");
  EXPECT_THAT(Refusal(), HasSubstr("cannot be read"));
  ASSERT_EQ(mkfifo(paths_.key.c_str(), 0600), 0);
  EXPECT_EQ(InForce(), "old");
  EXPECT_THAT(Refusal(), HasSubstr("is a FIFO"));
  std::filesystem::remove(paths_.key);
  // The old ones again: nothing is wrong any more.
  Write(paths_.certificates, old_.certificate);
  Write(paths_.key, old_.key);
  EXPECT_EQ(InForce(), "old");
  EXPECT_TRUE(files_->refusal().ok());
  EXPECT_TRUE(MetricsSay("c3po_reload_failed{files=\"tls\"} 0"));
}

TEST_F(TlsFilesTest, AChainIsTakenWhole) {
  ASSERT_NO_FATAL_FAILURE(Load());
  Write(paths_.certificates, next_.certificate + old_.certificate);
  Write(paths_.key, next_.key);
  files_->LookAgain();
  EXPECT_EQ(files_->current()->certificates, next_.certificate + old_.certificate);
}

TEST_F(TlsFilesTest, AnExpiredOneDoesNotTakeThePlaceOfOneThatIsNot) {
  ASSERT_NO_FATAL_FAILURE(Load());
  const Pair expired = MakePair(-absl::Hours(1));
  Write(paths_.certificates, expired.certificate);
  Write(paths_.key, expired.key);
  EXPECT_EQ(InForce(), "old");
  EXPECT_THAT(Refusal(), HasSubstr("expired on"));
  const double now = absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch());
  EXPECT_NEAR(absl::ToDoubleSeconds(files_->current()->expires - absl::UnixEpoch()), now + 86400, 60);
  EXPECT_THAT(metrics_.PrometheusText(), HasSubstr("c3po_tls_certificate_expiry_timestamp_seconds 1"));
}

TEST_F(TlsFilesTest, ClientAuthoritiesAreReplacedWithTheRestOrNotAtAll) {
  ASSERT_NO_FATAL_FAILURE(Load(/*mutual=*/true));
  Write(paths_.client_ca, "garbage");
  Write(paths_.certificates, next_.certificate);
  Write(paths_.key, next_.key);
  EXPECT_EQ(InForce(), "old");
  EXPECT_EQ(files_->current()->client_ca, old_.certificate);
  EXPECT_THAT(Refusal(), HasSubstr("--tls-client-ca"));
  Write(paths_.client_ca, next_.certificate);
  EXPECT_EQ(InForce(), "next");
  EXPECT_EQ(files_->current()->client_ca, next_.certificate);
}

TEST_F(TlsFilesTest, AtTheStartAnythingWrongIsAnErrorThatNamesTheFlag) {
  Write(paths_.certificates, old_.certificate);
  Write(paths_.key, next_.key);
  const auto mismatched = TlsFiles::Load(paths_, nullptr);
  EXPECT_EQ(mismatched.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(mismatched.status().message()), HasSubstr("--tls-key"));
}

}  // namespace
}  // namespace c3po
