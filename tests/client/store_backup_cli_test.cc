// `c3po store backup` against a fake server: what it writes, and what it leaves when the stream is not what it should
// be.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/client/child_process.h"
#include "tests/client/fake_server.h"

namespace c3po {
namespace {

using ::testing::HasSubstr;

// SHA-256 of "abcdef" (coreutils' sha256sum).
constexpr char kDigestOfAbcdef[] = "bef57ec7f53a6d40beb640a780a639c83bc29ac8a9816f1fc6c5c6dcd93c4721";

class StoreBackupCliTest : public ::testing::Test {
 protected:
  StoreBackupCliTest() {
    std::filesystem::remove(file_);
    server_.on_backup = [this](grpc::ServerContext*, grpc::ServerWriter<v1::BackupStoreResponse>* writer) {
      for (size_t i = 0; i < chunks_.size(); ++i) {
        v1::BackupStoreResponse message;
        message.set_chunk(chunks_[i]);
        message.set_total_bytes(total_);
        if (i + 1 == chunks_.size()) message.set_sha256(digest_);
        writer->Write(message);
      }
      return status_;
    };
  }

  ChildResult Backup(const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments = {C3PO_CLI_BINARY, "store", "backup", file_};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return ChildProcess(arguments, "", {{"C3PO_SERVER", server_.address()}}).Wait();
  }

  std::string Contents() const {
    std::ifstream file(file_, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  void ExpectNothingNew(const std::string& contents = "") {
    EXPECT_EQ(Contents(), contents);
    EXPECT_FALSE(std::filesystem::exists(file_ + ".part"));
  }

  const std::string file_ = ::testing::TempDir() + "/references-backup.db";
  std::vector<std::string> chunks_ = {"abc", "def"};
  uint64_t total_ = 6;
  std::string digest_ = kDigestOfAbcdef;
  grpc::Status status_;
  FakeServer server_;
};

TEST_F(StoreBackupCliTest, TheFileIsWhatWasSent) {
  const ChildResult result = Backup();
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out, absl::StrCat(file_, ": 6 bytes, sha256 ", kDigestOfAbcdef, "\n"));
  ExpectNothingNew("abcdef");
}

TEST_F(StoreBackupCliTest, AFileThatIsThereStaysUnlessForced) {
  std::ofstream(file_) << "mine";
  const ChildResult refused = Backup();
  EXPECT_EQ(refused.exit_code, 4);
  EXPECT_THAT(refused.err, HasSubstr("--force"));
  ExpectNothingNew("mine");
  EXPECT_EQ(Backup({"--force"}).exit_code, 0);
  ExpectNothingNew("abcdef");
}

TEST_F(StoreBackupCliTest, WhatIsNotWholeLeavesNothing) {
  total_ = 7;  // The stream ends well and too soon.
  EXPECT_EQ(Backup().exit_code, 1);
  ExpectNothingNew();
  total_ = 6;
  chunks_ = {"abc", "deg"};
  EXPECT_THAT(Backup().err, HasSubstr("nothing is kept"));
  ExpectNothingNew();
  chunks_ = {};
  EXPECT_EQ(Backup().exit_code, 1);
  ExpectNothingNew();
  chunks_ = {"abc"};
  status_ = grpc::Status(grpc::StatusCode::PERMISSION_DENIED, "the method needs the role administer");
  EXPECT_EQ(Backup().exit_code, 10);
  ExpectNothingNew();
}

}  // namespace
}  // namespace c3po
