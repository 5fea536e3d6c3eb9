#include "server/text/jinja_renderer.h"

#include <dirent.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/notification.h"
#include "index/base/steady_time.h"
#include "server/text/conversation.h"

// Templates and conversations that want to do harm, and processes that die: what each caller gets, and the next one.

namespace c3po {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;

const char* const kHarmless = "{{ messages[0].content }}";
constexpr char kEndless[] =
    "{% if messages[0].content == 'loop' %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor "
    "%}"
    "{% endif %}{{ messages[0].content }}";

std::string Asked(const std::string& content, absl::string_view name = "default") {
  return RenderRequest({{{"user", content, ""}}, {}, {}, "", true}, name, absl::UnixEpoch());
}

class Rendering {
 public:
  explicit Rendering(const std::string& text, JinjaRenderer::Options options = {})
      : renderer_(nlohmann::json{{"default", text}, {"harmless", kHarmless}}.dump(), "{}",
                  WithLog(std::move(options))) {}

  absl::StatusOr<std::string> operator()(const std::string& content = "x", absl::string_view name = "default") {
    absl::Notification rendered;
    absl::StatusOr<std::string> prompt;
    renderer_.Render(Asked(content, name), nullptr, [&](absl::StatusOr<std::string> result) {
      prompt = std::move(result);
      rendered.Notify();
    });
    rendered.WaitForNotification();
    return prompt;
  }
  JinjaRenderer& renderer() { return renderer_; }
  int killed() const { return killed_; }

 private:
  JinjaRenderer::Options WithLog(JinjaRenderer::Options options) {
    options.on_killed = [this](absl::string_view) { ++killed_; };
    return options;
  }

  std::atomic<int> killed_{0};
  JinjaRenderer renderer_;
};

// Processes of Python that this one started and that live.
std::vector<pid_t> Children() {
  std::vector<pid_t> children;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    std::ifstream stat(entry.path() / "stat");
    std::string pid, name, state, parent;
    if (!(stat >> pid >> name >> state >> parent)) continue;
    if (parent == absl::StrCat(getpid()) && absl::StrContains(name, "python") && state != "Z")
      children.push_back(std::stoi(pid));
  }
  return children;
}

int OpenDescriptors() {
  int count = 0;
  DIR* const folder = opendir("/proc/self/fd");
  while (readdir(folder) != nullptr) ++count;
  closedir(folder);
  return count;
}

TEST(JinjaRenderer, ALoopWithoutEndCostsOneSecondAndTheNextConversationNothing) {
  Rendering render(kEndless);
  ASSERT_EQ(*render("first"), "first");
  const absl::Time start = SteadyNow();
  const auto looped = render("loop");
  const absl::Duration took = SteadyNow() - start;
  EXPECT_EQ(looped.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(looped.status().message()), HasSubstr("chat: the model's chat template takes more than 1s"));
  EXPECT_GE(took, absl::Seconds(1));
  EXPECT_LE(took, absl::Seconds(3)) << "one second, on a machine that is busy";
  EXPECT_EQ(*render("next"), "next");
  EXPECT_EQ(render.killed(), 1);
}

// Jinja computes constants when it compiles.
TEST(JinjaRenderer, AConstantWithoutEndCostsItsCallerOneSecond) {
  Rendering render("{{ 9 ** (9 ** (9 ** 9)) }}");
  EXPECT_THAT(std::string(render().status().message()), HasSubstr("takes more than 1s"));
  EXPECT_EQ(*render("ok", "harmless"), "ok");
}

TEST(JinjaRenderer, MemoryBombsEndAtTheLimit) {
  const char* bombs[] = {
      "{{ 'a' * 10 ** 10 }}",
      "{% set ns = namespace(a=messages[0].content) %}{% for i in range(60) %}{% set ns.a = ns.a + ns.a %}"
      "{% endfor %}",
      "{{ '%1000000000d' | format(1) }}", "{{ '{:>1000000000}'.format(1) }}",
      "{{ ([[0] * 1000000] * 1000000) | sum(start=[]) | length }}"};
  for (const char* bomb : bombs) {
    Rendering render(bomb);
    const auto prompt = render();
    EXPECT_EQ(prompt.status().code(), absl::StatusCode::kInvalidArgument) << bomb << prompt.status();
    EXPECT_THAT(
        std::string(prompt.status().message()),
        AnyOf(HasSubstr("takes more than 512 MiB"), HasSubstr("takes more than 1s"), HasSubstr("ends its process")))
        << bomb;
    EXPECT_EQ(*render("ok", "harmless"), "ok") << bomb;
  }
}

TEST(JinjaRenderer, RecursionEndsAtPythonsLimit) {
  for (const char* recursion : {"{% macro r(x) %}{{ r(x) }}{% endmacro %}{{ r(1) }}",
                                "{% for a in messages recursive %}{{ loop(messages) }}{% endfor %}"}) {
    Rendering render(recursion);
    const auto prompt = render();
    EXPECT_THAT(std::string(prompt.status().message()), HasSubstr("RecursionError")) << recursion;
    EXPECT_EQ(*render("ok", "harmless"), "ok");
  }
  // A template whose text nests as deep meets the parser's.
  Rendering render(absl::StrCat("{{ ", std::string(100000, '('), "1", std::string(100000, ')'), " }}"));
  EXPECT_FALSE(render().ok());
  EXPECT_EQ(*render("ok", "harmless"), "ok");
}

TEST(JinjaRenderer, TheSandboxHolds) {
  const char* escapes[] = {"{{ ''.__class__.__mro__[1].__subclasses__() }}",
                           "{{ messages.__class__ }}",
                           "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
                           "{{ lipsum.__globals__['os'] }}",
                           "{{ raise_exception.__globals__ }}",
                           "{{ strftime_now.__globals__ }}",
                           "{{ self.__init__.__globals__ }}",
                           "{{ (''|attr('__class__'))|attr('__mro__') }}",
                           "{{ '{0.__class__}'.format(1) }}",
                           "{{ ('{0.__cl' ~ 'ass__.__mro__}').format(1) }}",
                           "{{ ''|attr('format')|attr('__globals__') }}",
                           "{% set f = '{0.__class__.__mro__}'.format %}{{ f(1) }}",
                           "{{ ['{0.__class__}'] | map('format', 1) | list }}",
                           "{{ messages.append(1) }}",
                           "{{ messages[0].update({'a': 1}) }}",
                           "{{ messages.__setitem__(0, 1) }}",
                           "{% import 'os' as os %}",
                           "{% include '/etc/passwd' %}",
                           "{% extends '/etc/passwd' %}"};
  for (const char* escape : escapes) {
    Rendering render(escape);
    const auto prompt = render();
    // Undefined, hence nothing, or an error: never what stands behind it.
    if (prompt.ok()) {
      EXPECT_THAT(*prompt, ::testing::Not(AnyOf(HasSubstr("class"), HasSubstr("root:"), HasSubstr("uid="),
                                                HasSubstr("function"), HasSubstr("module"))))
          << escape;
    } else {
      EXPECT_EQ(prompt.status().code(), absl::StatusCode::kInvalidArgument) << escape << prompt.status();
    }
    EXPECT_EQ(*render("ok", "harmless"), "ok") << escape;
  }
}

TEST(JinjaRenderer, NothingOfOneConversationIsInTheNext) {
  Rendering render(
      "{% set ns = namespace(a=0) %}{% set ns.a = ns.a + 1 %}{{ ns.a }}{{ seen is defined }}"
      "{% set seen = messages[0].content %}{{ joiner('x')() }}");
  EXPECT_EQ(*render("secret"), "1False");
  EXPECT_EQ(*render("other"), "1False");
}

TEST(JinjaRenderer, GiantPromptsAreRefused) {
  JinjaRenderer::Options options;
  options.output_characters_max = 1000;
  Rendering render("{% for i in range(messages[0].content | int) %}\U0001f600{% endfor %}", options);
  EXPECT_EQ(render("1000")->size(), 4000u);
  const auto giant = render("1001");
  EXPECT_EQ(giant.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(giant.status().message()), HasSubstr("writes more than 1000 characters"));
  EXPECT_EQ(*render("0"), "");
  EXPECT_EQ(render.killed(), 0);
}

TEST(JinjaRenderer, LargePromptsComeWhole) {
  JinjaRenderer::Options options;
  options.render_max = absl::Seconds(60);  // On a machine that is busy.
  Rendering render(kHarmless, options);
  std::string text;
  for (int i = 0; text.size() < (size_t{6} << 20); ++i) absl::StrAppend(&text, i, "\"\\\n\u2028\U0001f600");
  const auto prompt = render(text);
  ASSERT_TRUE(prompt.ok()) << prompt.status();
  EXPECT_TRUE(*prompt == text);
}

TEST(JinjaRenderer, WhatTheTemplateRaisesIsTold) {
  Rendering render("{{ raise_exception('roles: ' + messages[0].content) }}");
  const auto prompt = render("no");
  EXPECT_EQ(prompt.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(prompt.status().message(), "chat: the model's chat template refuses this conversation: roles: no");
  EXPECT_LE(render(std::string(1 << 20, 'x')).status().message().size(), 1000u);
}

TEST(JinjaRenderer, OddTextsAreErrorsOrUnicode) {
  EXPECT_THAT(std::string(Rendering("{{ '\\ud800' }}")().status().message()), HasSubstr("UnicodeEncodeError"));
  EXPECT_THAT(std::string(Rendering("{{ raise_exception('\\ud800') }}")().status().message()), HasSubstr("refuses"));
  EXPECT_EQ(*Rendering("{{ messages[0].content }}\\0")(std::string("a\0b", 3)), std::string("a\0b\\0", 5));
}

TEST(JinjaRenderer, AProcessThatWasKilledIsReplaced) {
  Rendering render(kHarmless);
  for (int round = 0; round < 3; ++round) {
    ASSERT_EQ(*render("a"), "a");
    const std::vector<pid_t> children = Children();
    ASSERT_EQ(children.size(), 1u);
    kill(children[0], SIGKILL);
  }
  EXPECT_EQ(*render("b"), "b");
  EXPECT_EQ(render.killed(), 3);
}

// Killed while it renders: somebody else's doing, so the conversation is tried once more.
TEST(JinjaRenderer, AConversationOutlivesTheKillOfItsProcess) {
  JinjaRenderer::Options options;
  options.render_max = absl::Seconds(20);
  Rendering render(
      "{% for i in range(3000) %}{% for j in range(1000) %}{% endfor %}{% endfor %}{{ messages[0].content }}", options);
  ASSERT_TRUE(render("warm", "harmless").ok());
  const std::vector<pid_t> children = Children();
  ASSERT_EQ(children.size(), 1u);
  std::thread killer([&] {
    absl::SleepFor(absl::Milliseconds(20));
    kill(children[0], SIGKILL);
  });
  const auto prompt = render("survives");
  killer.join();
  EXPECT_EQ(*prompt, "survives");
}

TEST(JinjaRenderer, AProcessThatIsStoppedIsReplacedAfterOneSecond) {
  Rendering render(kHarmless);
  ASSERT_EQ(*render("a"), "a");
  kill(Children().at(0), SIGSTOP);
  EXPECT_THAT(std::string(render("b").status().message()), HasSubstr("takes more than 1s"));
  EXPECT_EQ(*render("c"), "c");
}

TEST(JinjaRenderer, AHundredConversationsAtOnce) {
  Rendering render(kHarmless);
  constexpr int kThreads = 10, kEach = 10;
  std::atomic<int> right{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kEach; ++i) {
        const std::string content = absl::StrCat(t, " ", i);
        const auto prompt = render(content);
        if (prompt.ok() && *prompt == content) ++right;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(right, kThreads * kEach);
  EXPECT_EQ(Children().size(), 1u);
  EXPECT_EQ(render.killed(), 0) << "its process outlives the threads that ask";
}

TEST(JinjaRenderer, TheQueueIsBoundedAndWhoNoLongerWantsIsNotRendered) {
  JinjaRenderer::Options options;
  options.waiting_max = 2;
  Rendering render(kEndless, options);
  ASSERT_TRUE(render("warm").ok());
  absl::BlockingCounter done(4);
  std::vector<absl::StatusOr<std::string>> results(4);
  for (int i = 0; i < 4; ++i) {
    const JinjaRenderer::Check check = [i] { return i == 1 ? absl::CancelledError("gone") : absl::OkStatus(); };
    render.renderer().Render(Asked(i == 0 ? "loop" : "x"), check, [&, i](absl::StatusOr<std::string> result) {
      results[i] = std::move(result);
      done.DecrementCount();
    });
    while (i == 0 && Children().empty()) absl::SleepFor(absl::Milliseconds(1));
    if (i == 0) absl::SleepFor(absl::Milliseconds(100));  // Until the loop is taken from the queue.
  }
  done.Wait();
  EXPECT_EQ(results[0].status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(results[1].status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(*results[2], "x");
  EXPECT_EQ(results[3].status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(JinjaRenderer, StoppingAnswersThoseThatWait) {
  Rendering render(kEndless);
  ASSERT_TRUE(render("warm").ok());
  std::atomic<int> answered{0}, unavailable{0};
  for (int i = 0; i < 5; ++i) {
    render.renderer().Render(Asked(i == 0 ? "loop" : "x"), nullptr, [&](const absl::StatusOr<std::string>& result) {
      ++answered;
      if (absl::IsUnavailable(result.status())) ++unavailable;
    });
  }
  render.renderer().Stop();
  EXPECT_EQ(answered, 5);
  EXPECT_GE(unavailable, 4);
  EXPECT_TRUE(Children().empty());
  render.renderer().Render(Asked("x"), nullptr,
                           [&](const auto& result) { EXPECT_TRUE(absl::IsUnavailable(result.status())); });
}

TEST(JinjaRenderer, LeavesNoDescriptorAndNoProcessBehind) {
  const int before = OpenDescriptors();
  {
    Rendering render(kHarmless);
    for (int i = 0; i < 5; ++i) {
      ASSERT_TRUE(render().ok());
      kill(Children().at(0), SIGKILL);
    }
    ASSERT_TRUE(render().ok());
  }
  EXPECT_EQ(OpenDescriptors(), before);
  EXPECT_TRUE(Children().empty());
}

// What the process has: three descriptors, two variables, a group of its own, and limits.
TEST(JinjaRenderer, TheProcessHasNothingOfThisOne) {
  setenv("C3PO_SECRET", "in the environment", 1);
  const int secret = open("/etc/hostname", O_RDONLY);  // Without O_CLOEXEC.
  Rendering render(kHarmless);
  ASSERT_TRUE(render().ok());
  const std::string process = absl::StrCat("/proc/", Children().at(0), "/");
  int descriptors = 0;
  for (const auto& entry : std::filesystem::directory_iterator(process + "fd")) {
    (void)entry;
    ++descriptors;
  }
  EXPECT_EQ(descriptors, 3);
  std::ifstream environ(process + "environ");
  const std::string variables((std::istreambuf_iterator<char>(environ)), std::istreambuf_iterator<char>());
  EXPECT_THAT(variables, ::testing::Not(HasSubstr("SECRET")));
  EXPECT_EQ(std::count(variables.begin(), variables.end(), '\0'), 2);
  EXPECT_EQ(std::filesystem::read_symlink(process + "cwd"), "/");
  EXPECT_EQ(getpgid(Children().at(0)), Children().at(0));
  std::ifstream limits(process + "limits");
  const std::string text((std::istreambuf_iterator<char>(limits)), std::istreambuf_iterator<char>());
  EXPECT_THAT(text, ::testing::ContainsRegex("Max address space +536870912 +536870912"));
  EXPECT_THAT(text, ::testing::ContainsRegex("Max file size +0 +0"));
  EXPECT_THAT(text, ::testing::ContainsRegex("Max open files +3 +3"));
  EXPECT_THAT(text, ::testing::ContainsRegex("Max processes +0 +0"));
  EXPECT_THAT(text, ::testing::ContainsRegex("Max core file size +0 +0"));
  EXPECT_THAT(text, ::testing::ContainsRegex("Max cpu time +[1-9]"));
  close(secret);
}

TEST(JinjaReply, AnythingButAReplyIsRefused) {
  EXPECT_EQ(ParseJinjaReply(R"({"prompt": "a\u00e9"})")->text, "aé");
  EXPECT_EQ(ParseJinjaReply(R"({"refused": ""})")->kind, JinjaReply::Kind::kRefused);
  for (const std::string& wrong :
       {std::string(""), std::string("{}"), std::string("[]"), std::string(R"({"prompt": 1})"),
        std::string(R"({"prompt": "a", "ready": "b"})"), std::string(R"({"other": "a"})"),
        std::string(R"({"prompt": "a"}x)"), std::string("{\"prompt\": \"\xff\"}"),
        std::string(R"({"prompt": "\ud800"})"), std::string(R"("prompt")"), std::string(1000000, '['),
        std::string("{\"prompt\": \"")}) {
    EXPECT_EQ(ParseJinjaReply(wrong).status().code(), absl::StatusCode::kInvalidArgument) << wrong.substr(0, 50);
  }
}

}  // namespace
}  // namespace c3po
