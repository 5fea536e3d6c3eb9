#include "server/process/process_signals.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <string>

#include "gtest/gtest.h"
#include "server/process/descriptor_limit.h"

namespace c3po {
namespace {

// A child process with the signals' object; what `run` and the callbacks say comes back letter by letter.
class Child {
 public:
  using Say = std::function<void(char)>;

  explicit Child(const std::function<void(ProcessSignals&, const Say&)>& run) {
    int ends[2];
    EXPECT_EQ(pipe(ends), 0);
    pid_ = fork();
    if (pid_ == 0) {
      const Say say = [to = ends[1]](char letter) { (void)!write(to, &letter, 1); };
      {
        ProcessSignals signals([&] { say('e'); });
        signals.OnReload([&] { say('h'); });
        run(signals, say);
      }
      _exit(42);
    }
    close(ends[1]);
    from_ = ends[0];
  }
  ~Child() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    close(from_);
  }

  // The next letter; '\0': the child has ended.
  char Next() {
    char letter = '\0';
    return read(from_, &letter, 1) == 1 ? letter : '\0';
  }
  void Send(int signal) { EXPECT_EQ(kill(pid_, signal), 0); }
  int ExitCode() {
    int status = 0;
    EXPECT_EQ(waitpid(pid_, &status, 0), pid_);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

 private:
  pid_t pid_ = 0;
  int from_ = -1;
};

void Forever() {
  while (true) pause();
}

TEST(ProcessSignals, AStopBeforeAnythingIsServedEndsTheProcessAtOnce) {
  Child child([](ProcessSignals&, const Child::Say& say) {
    say('s');
    Forever();
  });
  EXPECT_EQ(child.Next(), 's');
  child.Send(SIGTERM);
  EXPECT_EQ(child.Next(), 'e');
  EXPECT_EQ(child.ExitCode(), 0);
}

TEST(ProcessSignals, TheFirstStopIsAwaitedAndTheSecondEndsTheProcess) {
  for (const int signal : {SIGTERM, SIGINT}) {
    Child child([](ProcessSignals& signals, const Child::Say& say) {
      signals.Serving();
      say('s');
      signals.AwaitStop();
      say('d');
      Forever();
    });
    EXPECT_EQ(child.Next(), 's');
    child.Send(signal);
    EXPECT_EQ(child.Next(), 'd');
    child.Send(signal);
    EXPECT_EQ(child.Next(), 'e');
    EXPECT_EQ(child.ExitCode(), 128 + signal);
  }
}

TEST(ProcessSignals, AProcessThatEndsItselfIsStoppedAsByASignal) {
  Child child([](ProcessSignals& signals, const Child::Say& say) {
    signals.Serving();
    signals.StopServing();
    signals.AwaitStop();
    say('d');
    Forever();
  });
  EXPECT_EQ(child.Next(), 'd');
  child.Send(SIGTERM);  // It is the second.
  EXPECT_EQ(child.Next(), 'e');
  EXPECT_EQ(child.ExitCode(), 128 + SIGTERM);
}

TEST(ProcessSignals, HangUpReloadsAndEndsNothing) {
  Child child([](ProcessSignals& signals, const Child::Say& say) {
    signals.Serving();
    say('s');
    signals.AwaitStop();
    signals.OnReload(nullptr);
    say('d');
  });
  EXPECT_EQ(child.Next(), 's');
  child.Send(SIGHUP);
  EXPECT_EQ(child.Next(), 'h');
  child.Send(SIGHUP);
  EXPECT_EQ(child.Next(), 'h');
  child.Send(SIGPIPE);
  child.Send(SIGTERM);
  EXPECT_EQ(child.Next(), 'd');
  EXPECT_EQ(child.Next(), '\0');  // The destructor's own signal reloads nothing.
  EXPECT_EQ(child.ExitCode(), 42);
}

TEST(DescriptorLimit, IsRaisedTowardsTheHardLimitAndNeverLowered) {
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit low = {std::min<rlim_t>(200, before.rlim_max), before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  const int64_t raised = RaiseDescriptorLimit();
  EXPECT_EQ(raised, static_cast<int64_t>(std::min<rlim_t>(65536, before.rlim_max)));
  rlimit after;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &after), 0);
  EXPECT_EQ(static_cast<int64_t>(after.rlim_cur), raised);
  EXPECT_EQ(after.rlim_max, before.rlim_max);
  EXPECT_EQ(RaiseDescriptorLimit(), raised);
  setrlimit(RLIMIT_NOFILE, &before);
}

}  // namespace
}  // namespace c3po
