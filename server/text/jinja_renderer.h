#ifndef C3PO_SERVER_TEXT_JINJA_RENDERER_H_
#define C3PO_SERVER_TEXT_JINJA_RENDERER_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/process/limited_child.h"
#include "server/text/jinja_reply.h"

namespace c3po {

// Renders chat templates by Jinja itself, in one long-lived process of Python (process/limited_child.h) that runs
// jinja_renderer.py, whose text is part of this program. Conversations go there one after the other. A template is
// given to it over the pipe alone: no shell and no file ever has its text.
//
// A conversation has `render_max`. One that takes longer costs its own caller that, and those behind it no more: the
// process is killed and another one is started. So is a process that died. What died while it rendered is tried once
// more, as somebody else may have killed it.
//
// Thread-safe. Nothing is started before the first conversation.
class JinjaRenderer {
 public:
  struct Options {
    std::string python = "/usr/bin/python3";  // With the package jinja2.
    absl::Duration render_max = absl::Seconds(1);
    absl::Duration start_max = absl::Seconds(10);     // For Python to start and to import jinja2.
    absl::Duration retry_after = absl::Seconds(5);    // A start that failed is not tried again sooner.
    int64_t memory_bytes = int64_t{512} << 20;        // The process's address space.
    size_t output_characters_max = size_t{16} << 20;  // Of one prompt.
    size_t waiting_max = 256;                         // Conversations that wait; beyond: ResourceExhausted.
    std::function<void(absl::string_view why)> on_killed = nullptr;  // From the renderer's thread.
  };
  // templates_json: an object, name to text. special_tokens_json: an object, the variables that every conversation has.
  JinjaRenderer(absl::string_view templates_json, absl::string_view special_tokens_json, Options options);
  // Ends as Stop does.
  ~JinjaRenderer();

  using Check = std::function<absl::Status()>;
  using Done = std::function<void(absl::StatusOr<std::string>)>;
  // `done` hears the prompt of `request` (RenderRequest) once, from the renderer's thread, or from this one where the
  // request is not taken; it must not block. `check` is asked right before, and its error is the result then.
  //   InvalidArgument "chat: ...": the template refuses or fails at it, took too long, too much memory, wrote too much
  //   FailedPrecondition "chat: ...": the template is no Jinja, or there is no Python with jinja2; with what to install
  //   ResourceExhausted: waiting_max wait already, or no process can be started now
  //   Unavailable: Stop was called
  void Render(std::string request, Check check, Done done) ABSL_LOCKS_EXCLUDED(mu_);

  // Waits for the conversation that is being rendered; those that wait hear Unavailable. Ends the process.
  void Stop() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Job {
    std::string request;
    Check check;
    Done done;
  };

  void Run();
  absl::StatusOr<std::string> Answer(const Job& job);
  absl::StatusOr<std::string> TakeReply(absl::StatusOr<JinjaReply> reply);
  absl::Status EnsureChild();
  absl::Status StartChild();
  absl::StatusOr<JinjaReply> Exchange(absl::string_view message, absl::Time deadline);
  void Kill(absl::string_view why);

  const Options options_;
  const std::string first_message_;
  // Of the renderer's thread alone.
  std::unique_ptr<LimitedChild> child_;
  bool start_anew_ = false;  // As one was killed, and the next conversation should find another.
  absl::Status start_failure_;
  absl::Time start_failed_at_ = absl::InfinitePast();

  absl::Mutex mu_;
  std::deque<Job> jobs_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_TEXT_JINJA_RENDERER_H_
