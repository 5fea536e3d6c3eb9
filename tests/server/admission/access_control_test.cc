#include "server/admission/access_control.h"

#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "index/base/sha256.h"

namespace c3po {
namespace {

std::string Write(const std::string& name, const std::string& text) {
  const std::string path = testing::TempDir() + "/" + name;
  std::ofstream(path) << text;
  return path;
}

std::string Line(const std::string& name, const std::string& role, const std::string& token) {
  return absl::StrCat(name, " ", role, " ", Sha256::HexOf(token), "\n");
}

TEST(AccessControl, ATokenGivesItsNameAndRoleAndNothingElseIsLetIn) {
  const std::string path =
      Write("tokens", absl::StrCat("# who\n\n", Line("alice", "generate", "t-1"), Line("bob", "administer", "t-2"),
                                   "carol\treferences  ", absl::AsciiStrToUpper(Sha256::HexOf("t-3")), "\r\n"));
  const auto access = AccessControl::Load(path);
  ASSERT_TRUE(access.ok()) << access.status();
  const auto alice = (*access)->Authenticate("Bearer t-1");
  ASSERT_TRUE(alice.ok());
  EXPECT_EQ(alice->name, "alice");
  EXPECT_EQ(alice->role, Role::kGenerate);
  EXPECT_EQ((*access)->Authenticate("bearer  t-2")->role, Role::kAdminister);
  EXPECT_EQ((*access)->Authenticate("Bearer t-3")->name, "carol");
  for (const std::string& wrong :
       {std::string(), std::string("t-1"), std::string("Basic t-1"), std::string("Bearer "), std::string("Bearer t-"),
        std::string("Bearer t-11"), absl::StrCat("Bearer ", Sha256::HexOf("t-1"))}) {
    EXPECT_TRUE(absl::IsUnauthenticated((*access)->Authenticate(wrong).status())) << wrong;
  }
}

TEST(AccessControl, AWrongFileIsNamedWithItsLine) {
  const std::string digest = Sha256::HexOf("t");
  const std::vector<std::string> wrong = {"",
                                          "# nobody\n",
                                          "alice generate\n",
                                          absl::StrCat("alice generate ", digest, " more\n"),
                                          absl::StrCat("al/ice generate ", digest, "\n"),
                                          absl::StrCat("alice root ", digest, "\n"),
                                          absl::StrCat("alice generate ", digest.substr(1), "\n"),
                                          absl::StrCat("alice generate ", digest.substr(1), "g\n")};
  for (const std::string& text : wrong) {
    const std::string path = Write("wrong_tokens", text);
    const auto access = AccessControl::Load(path);
    EXPECT_TRUE(absl::IsInvalidArgument(access.status())) << text;
    EXPECT_NE(std::string(access.status().message()).find(absl::StrCat(path, ":1: ")), std::string::npos);
  }
  EXPECT_TRUE(absl::IsNotFound(AccessControl::Load(testing::TempDir() + "/no_such_tokens").status()));
}

TEST(AccessControl, TheSameTokenTwiceIsRefused) {
  const std::string path = Write("twice", Line("alice", "generate", "t") + "# between\n" +
                                              absl::AsciiStrToUpper(Line("", "", "t")).insert(0, "bob administer"));
  const auto access = AccessControl::Load(path);
  EXPECT_TRUE(absl::IsInvalidArgument(access.status()));
  EXPECT_EQ(access.status().message(), absl::StrCat(path, ":3: the same token as alice's"));
}

TEST(AccessControl, AChangedFileIsReadAgainAndAWrongOneChangesNothing) {
  const std::string path = Write("changing_tokens", Line("alice", "generate", "old"));
  Metrics metrics("model", "0");
  const auto says = [&](const std::string& line) {
    return metrics.PrometheusText().find(line + "\n") != std::string::npos;
  };
  const auto access = AccessControl::Load(path, &metrics);
  ASSERT_TRUE(access.ok());
  const auto change = [&](const std::string& text) {
    const auto before = std::filesystem::last_write_time(path);
    std::ofstream(path) << text;
    std::filesystem::last_write_time(path, before);  // A clock that stands still, or was set back.
    (*access)->LookAgain();
  };
  change("alice generate\n");
  EXPECT_TRUE((*access)->Authenticate("Bearer old").ok());
  EXPECT_NE(std::string((*access)->refusal().message()).find("must be NAME ROLE SHA256"), std::string::npos);
  EXPECT_TRUE(says("c3po_reload_failed{files=\"tokens\"} 1"));
  EXPECT_TRUE(says("c3po_reloads_total{files=\"tokens\",result=\"refused\"} 1"));
  change(Line("alice", "references", "new"));
  EXPECT_EQ((*access)->Authenticate("Bearer new")->role, Role::kReferences);
  EXPECT_TRUE(absl::IsUnauthenticated((*access)->Authenticate("Bearer old").status()));
  EXPECT_TRUE((*access)->refusal().ok());
  EXPECT_TRUE(says("c3po_reload_failed{files=\"tokens\"} 0"));
  (*access)->LookAgain();
  EXPECT_TRUE(says("c3po_reloads_total{files=\"tokens\",result=\"loaded\"} 1")) << "nothing has changed";
  std::filesystem::remove(path);
  (*access)->LookAgain();
  EXPECT_TRUE((*access)->Authenticate("Bearer new").ok());
  EXPECT_NE(std::string((*access)->refusal().message()).find("cannot be read"), std::string::npos);
}

}  // namespace
}  // namespace c3po
