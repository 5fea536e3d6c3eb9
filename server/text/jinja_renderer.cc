#include "server/text/jinja_renderer.h"

#include <array>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/escaped_exception.h"
#include "index/base/status_macros.h"
#include "index/base/steady_time.h"
#include "server/text/jinja_renderer_source.h"

namespace c3po {
namespace {

constexpr size_t kEscapedCharacterBytesMax = 6;  // "\u001f"
constexpr size_t kReplyBytesBeside = 4096;       // What a reply is beside its text, or an error.

absl::Status NeedsPython(absl::string_view why) {
  return absl::FailedPreconditionError(
      absl::StrCat("chat: this model's chat template, or what the conversation has beside turns, takes Jinja to "
                   "render, and there is "
                   "none: ",
                   why,
                   ". Install Debian's package python3-jinja2 where c3pod runs, or name a Python that has jinja2 by "
                   "--chat-python; a "
                   "raw prompt works without"));
}

// Nothing of this process's environment but the time zone, which strftime_now tells.
std::vector<std::string> ChildEnvironment() {
  std::vector<std::string> environment = {"LC_ALL=C.UTF-8"};
  const char* zone = std::getenv("TZ");
  environment.push_back(absl::StrCat("TZ=", zone != nullptr ? zone : ":/etc/localtime"));
  return environment;
}

}  // namespace

JinjaRenderer::JinjaRenderer(absl::string_view templates_json, absl::string_view special_tokens_json, Options options)
    : options_(std::move(options)),
      first_message_(absl::StrCat("{\"templates\":", templates_json, ",\"special_tokens\":", special_tokens_json,
                                  ",\"output_characters_max\":", options_.output_characters_max, "}")),
      child_({.messages = "conversations",
              .work = "rendered a conversation",
              .retry_after = options_.retry_after,
              .reply_bytes_max = options_.output_characters_max * kEscapedCharacterBytesMax + kReplyBytesBeside,
              .on_killed = options_.on_killed,
              .start = [this](ReplacedChild& child) { return Start(child); }}),
      thread_(options_.waiting_max, "the queue is full: too many conversations wait to be rendered",
              [this] { child_.End(); }) {}

JinjaRenderer::~JinjaRenderer() = default;

void JinjaRenderer::Stop() { thread_.Stop(); }

void JinjaRenderer::Render(std::string request, Check check, Done done) {
  auto run = [this, request = std::move(request), check = std::move(check), done]() mutable {
    auto prompt = CatchEscapedOr<std::string>(ThreadKind::kWorker, [&] { return Answer(request, check); });
    (void)CatchEscapedIn(ThreadKind::kWorker, [&] { done(std::move(prompt)); });
    check = nullptr;  // What the functions hold goes before another process starts.
    done = nullptr;
    child_.Renew();
  };
  thread_.Give({std::move(run), [done](const absl::Status& status) { done(status); }});
}

absl::StatusOr<std::string> JinjaRenderer::Answer(const std::string& request, const Check& check) {
  if (check) C3PO_RETURN_IF_ERROR(check());
  const absl::StatusOr<std::string> reply = child_.Ask(request, options_.render_max);
  if (reply.ok()) return TakeReply(ParseJinjaReply(*reply));
  if (!absl::IsAborted(reply.status())) return TakeReply(reply.status());
  return absl::InvalidArgumentError(absl::StrCat(
      "chat: the model's chat template ends its process at this conversation (", reply.status().message(), ")"));
}

absl::StatusOr<std::string> JinjaRenderer::TakeReply(absl::StatusOr<JinjaReply> reply) {
  using Kind = JinjaReply::Kind;
  const auto at_fault = [](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat("chat: the model's chat template ", what));
  };
  const absl::Status& status = reply.status();
  if (absl::IsDeadlineExceeded(status)) {
    child_.Kill("a conversation took too long");
    return at_fault(absl::StrCat("takes more than ", absl::FormatDuration(options_.render_max)));
  }
  if (absl::IsOutOfRange(status) || absl::IsInvalidArgument(status)) {
    child_.Kill("it wrote no reply");
    return at_fault("broke its process");
  }
  C3PO_RETURN_IF_ERROR(reply.status());
  switch (reply->kind) {
    case Kind::kPrompt:
      return std::move(reply->text);
    case Kind::kRefused:
      return at_fault(absl::StrCat("refuses this conversation: ", reply->text));
    case Kind::kFailed:
      return at_fault(absl::StrCat("fails at this conversation: ", reply->text));
    case Kind::kMalformed:
      return absl::FailedPreconditionError(
          absl::StrCat("chat: the model's chat template is no Jinja: ", reply->text, "; send a raw prompt"));
    case Kind::kTooLong:
      return at_fault(absl::StrCat("writes ", reply->text));
    case Kind::kNoMemory:
      child_.Kill("a conversation took too much memory");
      return at_fault(absl::StrCat("takes more than ", options_.memory_bytes >> 20, " MiB"));
    case Kind::kReady:
    case Kind::kMissing:
      break;
  }
  child_.Kill("it wrote no reply");
  return at_fault("broke its process");
}

absl::Status JinjaRenderer::Start(ReplacedChild& process) {
  // -I: nothing of the user's or of the folder at hand is imported. -B: no bytecode is written.
  LimitedChild::Options child;
  child.arguments = {options_.python, "-I", "-B", "-X", "utf8", "-c", kJinjaRendererSource};
  child.environment = ChildEnvironment();
  child.memory_bytes = options_.memory_bytes;
  const absl::Status started = process.Launch(child);
  if (absl::IsResourceExhausted(started)) return started;
  if (!started.ok()) return NeedsPython(started.message());
  const absl::StatusOr<std::string> body = process.Exchange(first_message_, SteadyNow() + options_.start_max);
  if (absl::IsDeadlineExceeded(body.status())) {
    return absl::ResourceExhaustedError(
        absl::StrCat("chat: ", options_.python, " did not start within ", absl::FormatDuration(options_.start_max)));
  }
  const absl::StatusOr<JinjaReply> reply = body.ok() ? ParseJinjaReply(*body) : body.status();
  if (reply.ok() && reply->kind == JinjaReply::Kind::kReady) return absl::OkStatus();
  if (reply.ok() && reply->kind == JinjaReply::Kind::kMissing) {
    return NeedsPython(absl::StrCat(options_.python, ": ", reply->text));
  }
  return NeedsPython(absl::StrCat(options_.python, " ended with ", process.Ending()));
}

}  // namespace c3po
