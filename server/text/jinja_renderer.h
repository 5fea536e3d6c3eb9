#ifndef C3PO_SERVER_TEXT_JINJA_RENDERER_H_
#define C3PO_SERVER_TEXT_JINJA_RENDERER_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/process/job_thread.h"
#include "server/process/replaced_child.h"
#include "server/text/jinja_reply.h"

namespace c3po {

// Renders chat templates by Jinja itself, in one long-lived process of Python (process/replaced_child.h) that runs
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
  void Render(std::string request, Check check, Done done);

  // Waits for the conversation that is being rendered; those that wait hear Unavailable. Ends the process.
  void Stop();

 private:
  absl::StatusOr<std::string> Answer(const std::string& request, const Check& check);
  absl::StatusOr<std::string> TakeReply(absl::StatusOr<JinjaReply> reply);
  absl::Status Start(ReplacedChild& process);

  const Options options_;
  const std::string first_message_;
  ReplacedChild child_;  // Of the thread alone.
  JobThread thread_;     // Ends first.
};

}  // namespace c3po

#endif  // C3PO_SERVER_TEXT_JINJA_RENDERER_H_
