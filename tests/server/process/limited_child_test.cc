#include "server/process/limited_child.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "index/base/steady_time.h"

namespace c3po {
namespace {

using ::testing::HasSubstr;

LimitedChild::Options Shell(const std::string& script) {
  LimitedChild::Options options;
  options.arguments = {"/bin/sh", "-c", script};
  return options;
}

absl::Time In(double seconds) { return SteadyNow() + absl::Seconds(seconds); }

TEST(LimitedChild, ReadsWhatItIsWritten) {
  auto child = LimitedChild::Start(Shell("exec cat"));
  ASSERT_TRUE(child.ok()) << child.status();
  std::string sent, read;
  for (int i = 0; i < 10000; ++i) absl::StrAppend(&sent, i, " ");
  ASSERT_TRUE((*child)->Write(sent, In(30)).ok());
  ASSERT_TRUE((*child)->Read(sent.size(), In(30), &read).ok());
  EXPECT_EQ(read, sent);
  EXPECT_FALSE((*child)->HasEnded());
  EXPECT_EQ((*child)->End(), "signal 9");
  EXPECT_TRUE((*child)->HasEnded());
}

TEST(LimitedChild, AChildThatNeitherReadsNorWritesIsWaitedForUntilTheDeadline) {
  auto child = LimitedChild::Start(Shell("exec sleep 60"));
  ASSERT_TRUE(child.ok()) << child.status();
  const absl::Time start = SteadyNow();
  std::string read;
  EXPECT_EQ((*child)->Read(1, In(0.1), &read).code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ((*child)->Write(std::string(1 << 24, 'x'), In(0.1)).code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_GE(SteadyNow() - start, absl::Seconds(0.2));
  EXPECT_LE(SteadyNow() - start, absl::Seconds(30));
}

TEST(LimitedChild, TellsThatAndHowItEnded) {
  auto child = LimitedChild::Start(Shell("exit 7"));
  ASSERT_TRUE(child.ok()) << child.status();
  std::string read;
  EXPECT_EQ((*child)->Read(1, In(30), &read).code(), absl::StatusCode::kUnavailable);
  while (!(*child)->HasEnded()) absl::SleepFor(absl::Milliseconds(1));
  // The system may take a moment longer to close what the process had open.
  absl::Status written;
  for (int i = 0; i < 10'000 && written.ok(); ++i) {
    written = (*child)->Write("x", In(30));
    if (written.ok()) absl::SleepFor(absl::Milliseconds(1));
  }
  EXPECT_EQ(written.code(), absl::StatusCode::kUnavailable) << "and no SIGPIPE";
  EXPECT_EQ((*child)->End(), "exit code 7");
}

TEST(LimitedChild, AProgramThatCannotRunIsNamed) {
#ifdef C3PO_THREAD_SANITIZED
  GTEST_SKIP() << "ThreadSanitizer makes a fork of vfork, whose child cannot say what failed";
#endif
  LimitedChild::Options options;
  options.arguments = {"/nonexistent/program"};
  EXPECT_EQ(LimitedChild::Start(options).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(LimitedChild::Start(options).status().message()), HasSubstr("/nonexistent/program: "));
  options.arguments = {"/etc/passwd"};
  EXPECT_EQ(LimitedChild::Start(options).status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(waitpid(-1, nullptr, WNOHANG), -1) << "no child is left";
}

TEST(LimitedChild, HasWhatItIsGivenAndNoMore) {
  LimitedChild::Options options =
      Shell("pwd; ulimit -v; ulimit -n; ulimit -f; ulimit -c; echo $A$HOME; echo lost >&2; read x");
  options.environment = {"A=b"};
  options.memory_bytes = int64_t{64} << 20;
  options.descriptors_max = 20;
  auto child = LimitedChild::Start(options);
  ASSERT_TRUE(child.ok()) << child.status();
  const std::string expected = "/\n65536\n20\n0\n0\nb\n";
  std::string read;
  ASSERT_TRUE((*child)->Read(expected.size(), In(30), &read).ok()) << read;
  EXPECT_EQ(read, expected);
  EXPECT_EQ(getpgid((*child)->pid()), (*child)->pid());
}

// What it started itself goes with it: it is of its group.
TEST(LimitedChild, EndsWithAllOfItsGroup) {
  if (getuid() != 0) GTEST_SKIP() << "only root's may start a process";
  auto child = LimitedChild::Start(Shell("sleep 1000 & echo $!; wait"));
  ASSERT_TRUE(child.ok()) << child.status();
  std::string pid, part;
  while ((*child)->Read(1, In(30), &part).ok() && part != "\n") pid += part;
  (*child)->End();
  const std::string stat = absl::StrCat("/proc/", pid, "/stat");
  for (int tries = 0; tries < 5000; ++tries) {  // Until init has taken it, or it is a zombie of somebody's.
    std::ifstream file(stat);
    std::string number, name, state;
    if (!(file >> number >> name >> state) || state == "Z") return;
    absl::SleepFor(absl::Milliseconds(1));
  }
  ADD_FAILURE() << pid << " lives";
}

// Without this process, however it ends.
TEST(LimitedChild, DiesWithItsParent) {
  int report[2];
  ASSERT_EQ(pipe(report), 0);
  const pid_t parent = fork();
  if (parent == 0) {
    auto child = LimitedChild::Start(Shell("exec sleep 1000"));
    const pid_t pid = child.ok() ? (*child)->pid() : 0;
    if (write(report[1], &pid, sizeof pid) != sizeof pid) _exit(1);
    pause();
    _exit(0);
  }
  pid_t child = 0;
  ASSERT_EQ(read(report[0], &child, sizeof child), static_cast<ssize_t>(sizeof child));
  ASSERT_GT(child, 0);
  kill(parent, SIGKILL);
  waitpid(parent, nullptr, 0);
  for (int tries = 0; tries < 5000; ++tries) {
    std::ifstream file(absl::StrCat("/proc/", child, "/stat"));
    std::string number, name, state;
    if (!(file >> number >> name >> state) || state == "Z") {
      close(report[0]);
      close(report[1]);
      return;
    }
    absl::SleepFor(absl::Milliseconds(1));
  }
  ADD_FAILURE() << child << " lives";
}

}  // namespace
}  // namespace c3po
