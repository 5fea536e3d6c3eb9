#include "index/base/durable_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace c3po {
namespace {

using ::testing::HasSubstr;

// What would make an opening wait, or a reader allocate without end, is refused by name. Had it waited, the test would
// end by its time limit.
class DurableFileTest : public ::testing::Test {
 protected:
  static std::string File(const std::string& name) { return ::testing::TempDir() + "/" + name; }
  static std::string Contents(const std::string& path) { return ReadWholeFile(path, 1000).value_or("unreadable"); }
  static void ExpectRefused(const std::string& path, const std::string& what) {
    const absl::Status status = ReadWholeFile(path, 1000).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(path + ": " + what));
  }
};

TEST_F(DurableFileTest, WhatIsNoRegularFileIsRefusedByItsKind) {
  ASSERT_EQ(mkfifo(File("fifo").c_str(), 0600), 0);
  ExpectRefused(File("fifo"), "is a FIFO");
  std::filesystem::create_directory(File("folder"));
  ExpectRefused(File("folder"), "is a folder");
  ExpectRefused("/dev/zero", "is a device");
  const int listener = socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  File("socket").copy(address.sun_path, sizeof(address.sun_path) - 1);
  ASSERT_EQ(bind(listener, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  ExpectRefused(File("socket"), "is a socket");
  close(listener);
  std::filesystem::create_symlink(File("fifo"), File("link_to_fifo"));
  ExpectRefused(File("link_to_fifo"), "is a FIFO");
  EXPECT_EQ(ReadWholeFile(File("absent"), 1000).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(DurableFileTest, AFileBeyondItsBoundIsRefusedBeforeMemoryIsTakenForIt) {
  std::ofstream(File("sparse")) << "begin";
  ASSERT_EQ(truncate(File("sparse").c_str(), off_t{1} << 42), 0);  // More than any machine's memory.
  ExpectRefused(File("sparse"), "has 4398046511104 bytes, at most 1000 are taken");
  std::ofstream(File("full")) << std::string(1000, 'x');
  EXPECT_EQ(Contents(File("full")), std::string(1000, 'x'));
  std::filesystem::create_symlink(File("full"), File("link_to_full"));
  EXPECT_EQ(Contents(File("link_to_full")), std::string(1000, 'x'));
  ASSERT_EQ(truncate(File("full").c_str(), 1001), 0);
  ExpectRefused(File("full"), "has 1001 bytes");
}

TEST_F(DurableFileTest, WritingReplacesWhateverHasTheNames) {
  const std::string path = File("written");
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  ASSERT_EQ(mkfifo((path + ".tmp").c_str(), 0600), 0);
  ASSERT_TRUE(WriteFileDurably(path, "one").ok());
  EXPECT_EQ(Contents(path), "one");
  std::ofstream(File("other")) << "somebody else's";
  std::filesystem::create_symlink(File("other"), path + ".tmp");
  ASSERT_TRUE(WriteFileDurably(path, "two").ok());
  EXPECT_EQ(Contents(path), "two");
  EXPECT_EQ(Contents(File("other")), "somebody else's");
  EXPECT_FALSE(std::filesystem::exists(path + ".tmp"));
  std::filesystem::create_directory(path + ".tmp");
  EXPECT_FALSE(WriteFileDurably(path, "three").ok());
  EXPECT_EQ(Contents(path), "two");
}

}  // namespace
}  // namespace c3po
