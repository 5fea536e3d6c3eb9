#include "server/admission/access_control.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>
#include <tuple>
#include <utility>
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

TEST(AccessControl, ALineNamesCollectionsAndRates) {
  const auto line = [](const std::string& name, const std::string& fields) {
    return absl::StrCat(name, " references ", Sha256::HexOf(name), " ", fields, "\n");
  };
  const std::string path = Write(
      "fields", line("all", "") + line("some", "write=c read=a,b%20c") + line("writer", "write=c\tcalls/min=600") +
                    line("free", "tokens/min=unlimited calls/min=7") + line("none", "read=a"));
  const auto access = AccessControl::Load(path);
  ASSERT_TRUE(access.ok()) << access.status();
  const auto caller = [&](const std::string& name) { return *(*access)->Authenticate("Bearer " + name); };
  EXPECT_TRUE(caller("all").collections.Everything());
  EXPECT_FALSE(caller("all").rates.calls_per_minute.has_value());
  const CollectionAccess some = caller("some").collections;
  EXPECT_EQ(some.Readable(), (std::vector<std::string>{"a", "b c", "c"}));
  EXPECT_TRUE(some.MayWrite("c"));
  EXPECT_FALSE(some.MayWrite("a"));
  EXPECT_FALSE(caller("writer").collections.MayRead("a"));
  EXPECT_EQ(caller("writer").rates.calls_per_minute, 600);
  EXPECT_FALSE(caller("writer").rates.tokens_per_minute.has_value());
  EXPECT_EQ(caller("free").rates.tokens_per_minute, 0);
  EXPECT_EQ(caller("free").rates.calls_per_minute, 7);
  EXPECT_TRUE(caller("free").collections.Everything());
  EXPECT_FALSE(caller("none").collections.MayWrite("a"));
}

TEST(AccessControl, AWrongFieldIsNamedWithItsLineAndNotRepeated) {
  const std::string digest = Sha256::HexOf("t");
  for (const auto& [fields, says] :
       std::vector<std::pair<std::string, std::string>>{{"reads=a", "then any of read="},
                                                        {"s3cret", "then any of read="},
                                                        {"read=", "read=: every name"},
                                                        {"write=a,,s3cret", "write=: every name"},
                                                        {"read=s3cret%", "read=: a %"},
                                                        {"read=a read=s3cret", "read= is there twice"},
                                                        {"calls/min=0", "calls/min=: must be"},
                                                        {"calls/min=s3cret", "calls/min=: must be"},
                                                        {"tokens/min=-1", "tokens/min=: must be"},
                                                        {"tokens/min=1000000000001", "tokens/min=: must be"}}) {
    const std::string path = Write("wrong_field", absl::StrCat("ann generate ", digest, " ", fields, "\n"));
    const absl::Status status = AccessControl::Load(path).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << fields;
    EXPECT_NE(std::string(status.message()).find(absl::StrCat(path, ":1: ")), std::string::npos) << status;
    EXPECT_NE(std::string(status.message()).find(says), std::string::npos) << status;
    EXPECT_EQ(std::string(status.message()).find("s3cret"), std::string::npos) << status;
  }
}

TEST(AccessControl, ANameHasOneRate) {
  const auto load = [](const std::string& second) {
    const std::string path = Write("rates", absl::StrCat("ann generate ", Sha256::HexOf("old"), " calls/min=5\n",
                                                         "ann generate ", Sha256::HexOf("new"), second, "\n"));
    return AccessControl::Load(path).status();
  };
  EXPECT_TRUE(load(" calls/min=5 read=a").ok());
  for (const char* other : {"", " calls/min=6", " calls/min=5 tokens/min=9"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(load(other))) << other;
  }
}

TEST(AccessControl, AnEmptiedFileIsToldAndLeavesTheOldOneInForce) {
  const std::string path = Write("emptied_tokens", Line("alice", "generate", "old"));
  const auto access = AccessControl::Load(path);
  ASSERT_TRUE(access.ok());
  for (const char* emptied : {"", "\n", "# nobody any more\n"}) {
    std::ofstream(path) << emptied;
    (*access)->LookAgain();
    EXPECT_EQ((*access)->refusal().message(), absl::StrCat(path, ":1: holds no token")) << emptied;
    EXPECT_TRUE((*access)->Authenticate("Bearer old").ok());
    EXPECT_TRUE(absl::IsUnauthenticated((*access)->Authenticate("").status()));
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

TEST(AccessControl, AFileOfTooManyTokensIsRefusedAndOneOfTheMostIsTaken) {
  std::string text;
  for (size_t i = 0; i < AccessControl::kTokensMax; ++i) text += Line("caller", "generate", absl::StrCat("t", i));
  const std::string path = Write("many_tokens", text);
  const auto access = AccessControl::Load(path);
  ASSERT_TRUE(access.ok()) << access.status();
  EXPECT_TRUE((*access)->Authenticate(absl::StrCat("Bearer t", AccessControl::kTokensMax - 1)).ok());
  Write("many_tokens", text + "# one more\n" + Line("caller", "generate", "more"));
  (*access)->LookAgain();
  EXPECT_EQ((*access)->refusal().message(), absl::StrCat(path, ":10002: holds more than 10000 tokens"));
  EXPECT_TRUE((*access)->Authenticate("Bearer t0").ok());
}

TEST(AccessControl, TheSameTokenTwiceIsRefused) {
  const std::string path = Write("twice", Line("alice", "generate", "t") + "# between\n" +
                                              absl::AsciiStrToUpper(Line("", "", "t")).insert(0, "bob administer"));
  const auto access = AccessControl::Load(path);
  EXPECT_TRUE(absl::IsInvalidArgument(access.status()));
  EXPECT_EQ(access.status().message(), absl::StrCat(path, ":3: \"bob\" has the same token as \"alice\" on line 1"));
}

// At a reload the line that is new is at fault, wherever it stands.
TEST(AccessControl, OfTwoLinesThatContradictEachOtherTheNewOneIsNamedFirst) {
  const std::string path = Write("contradicting", Line("alice", "generate", "t"));
  const auto access = AccessControl::Load(path);
  ASSERT_TRUE(access.ok());
  const auto refusal = [&](const std::string& text) {
    Write("contradicting", text);
    (*access)->LookAgain();
    return std::string((*access)->refusal().message());
  };
  const std::string alice = Line("alice", "generate", "t"), bob = Line("bob", "generate", "t");
  EXPECT_EQ(refusal(alice + bob), path + ":2: \"bob\" has the same token as \"alice\" on line 1");
  EXPECT_EQ(refusal(bob + alice), path + ":1: \"bob\" has the same token as \"alice\" on line 2");
  EXPECT_EQ(refusal(bob + Line("bob", "generate", "t")), path + ":2: \"bob\" has the same token as \"bob\" on line 1");
  const auto with_rate = [](const std::string& token, int rate) {
    return absl::StrCat("carol generate ", Sha256::HexOf(token), " calls/min=", rate, "\n");
  };
  const std::string said = "\"carol\": calls/min= and tokens/min= must be those of its line ";
  EXPECT_EQ(refusal(with_rate("a", 5) + with_rate("b", 6)), path + ":2: " + said + "1");
  EXPECT_EQ(refusal(with_rate("a", 5)), "");
  EXPECT_EQ(refusal(with_rate("a", 5) + with_rate("b", 6)), path + ":2: " + said + "1");
  EXPECT_EQ(refusal(with_rate("b", 6) + with_rate("a", 5)), path + ":1: " + said + "2");
  EXPECT_EQ(refusal(with_rate("a", 5) + "carol generate 0\n").find("carol"), std::string::npos)
      << "a word that lost its place may be a token";
}

TEST(AccessControl, TheGrantOfATokenEndsWithWhatItAllowed) {
  const auto line = [](const std::string& token, const std::string& role, const std::string& fields) {
    return absl::StrCat("ann ", role, " ", Sha256::HexOf(token), " ", fields, "\n");
  };
  const std::string path = Write("granting", "");
  for (const auto& [before, after, ends] : std::vector<std::tuple<std::string, std::string, bool>>{
           {line("t", "references", "read=a write=b"), "# moved\n" + line("t", "references", "write=b read=a"), false},
           {line("t", "references", "calls/min=5"), line("t", "references", "calls/min=6"), false},
           {line("t", "references", ""), line("t", "generate", ""), true},
           {line("t", "references", ""), line("t", "references", "read=*"), true},
           {line("t", "references", "read=a"), line("t", "references", "read=b"), true},
           {line("t", "references", ""), line("other", "references", ""), true},
           {line("t", "references", ""), absl::StrCat("ben references ", Sha256::HexOf("t"), "\n"), true},
           {line("t", "references", ""), "not a line\n", false}}) {
    Write("granting", before);
    const auto access = AccessControl::Load(path);
    ASSERT_TRUE(access.ok()) << access.status();
    int told = 0;
    const auto hold = (*access)->Authenticate("Bearer t")->grant->Watch([&] { ++told; });
    (*access)->LookAgain();
    EXPECT_EQ(told, 0) << "nothing has changed";
    Write("granting", after);
    (*access)->LookAgain();
    EXPECT_EQ(told, ends ? 1 : 0) << before << after;
    Write("granting", line("other", "generate", ""));
    (*access)->LookAgain();
    EXPECT_EQ(told, 1) << "the grant was kept";
  }
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
  // What would make the reading wait is refused.
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  (*access)->LookAgain();
  EXPECT_TRUE((*access)->Authenticate("Bearer new").ok());
  EXPECT_NE(std::string((*access)->refusal().message()).find(path + ": is a FIFO"), std::string::npos);
}

}  // namespace
}  // namespace c3po
