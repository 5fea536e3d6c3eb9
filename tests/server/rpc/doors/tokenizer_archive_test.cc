#include "server/rpc/doors/tokenizer_archive.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "index/base/sha256.h"

namespace c3po {
namespace {

uint32_t Number(const std::string& bytes, size_t at, int size) {
  uint32_t value = 0;
  for (int i = size - 1; i >= 0; --i)
    value = (value << 8) | static_cast<unsigned char>(bytes.at(at + static_cast<size_t>(i)));
  return value;
}

struct Entry {
  std::string contents;
  uint32_t crc = 0;
};

// A reader of its own, from the directory at the end, as readers of ZIP do it.
std::map<std::string, Entry> Unzip(const std::string& bytes) {
  std::map<std::string, Entry> files;
  const size_t end = bytes.size() - 22;
  EXPECT_EQ(Number(bytes, end, 4), 0x06054B50U);
  const uint32_t count = Number(bytes, end + 10, 2);
  size_t at = Number(bytes, end + 16, 4);
  EXPECT_EQ(at + Number(bytes, end + 12, 4), end);
  for (uint32_t i = 0; i < count; ++i) {
    EXPECT_EQ(Number(bytes, at, 4), 0x02014B50U);
    EXPECT_EQ(Number(bytes, at + 10, 2), 0U);  // Stored.
    const uint32_t crc = Number(bytes, at + 16, 4), size = Number(bytes, at + 24, 4),
                   name_size = Number(bytes, at + 28, 2);
    EXPECT_EQ(Number(bytes, at + 20, 4), size);
    const size_t local = Number(bytes, at + 42, 4);
    const std::string name = bytes.substr(at + 46, name_size);
    EXPECT_EQ(Number(bytes, local, 4), 0x04034B50U);
    EXPECT_EQ(bytes.substr(local + 4, 26), bytes.substr(at + 6, 26)) << "local header and directory differ";
    EXPECT_EQ(bytes.substr(local + 30, name_size), name);
    files[name] = {bytes.substr(local + 30 + name_size, size), crc};
    at += 46 + name_size;
  }
  return files;
}

TEST(ZipOf, HoldsEveryFileWithItsChecksum) {
  const auto zip = ZipOf({{"a.json", "123456789"}, {"empty", ""}, {"b.txt", std::string("x\0y", 3)}});
  ASSERT_TRUE(zip.ok()) << zip.status();
  const auto files = Unzip(*zip);
  ASSERT_EQ(files.size(), 3U);
  EXPECT_EQ(files.at("a.json").contents, "123456789");
  EXPECT_EQ(files.at("a.json").crc, 0xCBF43926U);  // The check value that catalogs of CRCs give for CRC-32.
  EXPECT_EQ(files.at("empty").contents, "");
  EXPECT_EQ(files.at("empty").crc, 0U);
  EXPECT_EQ(files.at("b.txt").contents, std::string("x\0y", 3));
}

class TokenizerArchiveTest : public testing::Test {
 protected:
  void Write(const std::string& name, const std::string& contents) { std::ofstream(folder_ / name) << contents; }
  void SetUp() override {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directory(folder_);
  }
  const std::filesystem::path folder_ = std::filesystem::path(testing::TempDir()) / "model";
  TokenizerArchive archive_;
};

TEST_F(TokenizerArchiveTest, HoldsWhatATokenizerNeedsAndNothingElse) {
  for (const char* name : {"tokenizer.json", "config.json", "chat_template.jinja", "model.safetensors", "secret.txt"})
    Write(name, absl::StrCat("of ", name));
  const auto archive = archive_.Get(folder_.string());
  ASSERT_TRUE(archive.ok()) << archive.status();
  const auto files = Unzip((*archive)->bytes);
  ASSERT_EQ(files.size(), 3U);
  for (const auto& [name, entry] : files) EXPECT_EQ(entry.contents, absl::StrCat("of ", name));
  EXPECT_EQ((*archive)->sha256, Sha256::HexOf((*archive)->bytes));
}

TEST_F(TokenizerArchiveTest, IsSharedWhileSomebodyHoldsItAndMadeAnewAfterwards) {
  Write("tokenizer.json", "old");
  auto first = archive_.Get(folder_.string());
  ASSERT_TRUE(first.ok());
  Write("tokenizer.json", "new");
  auto second = archive_.Get(folder_.string());
  ASSERT_TRUE(second.ok());
  EXPECT_EQ(*first, *second);
  const std::string old = (*first)->bytes;
  first->reset();
  second->reset();
  const auto third = archive_.Get(folder_.string());
  ASSERT_TRUE(third.ok());
  EXPECT_NE((*third)->bytes, old);
}

TEST_F(TokenizerArchiveTest, NamesAFileThatIsMissingOrNoFile) {
  EXPECT_TRUE(absl::IsNotFound(archive_.Get(folder_.string()).status()));
  Write("tokenizer.json", "x");
  std::filesystem::create_directory(folder_ / "config.json");
  const absl::Status folder = archive_.Get(folder_.string()).status();
  EXPECT_TRUE(absl::IsInvalidArgument(folder)) << folder;
  EXPECT_NE(folder.message().find("config.json"), std::string::npos);
}

}  // namespace
}  // namespace c3po
