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

constexpr size_t kLengthBytes = 4;
constexpr size_t kEscapedCharacterBytesMax = 6;  // "\u001f"
constexpr size_t kReplyBytesBeside = 4096;       // What a reply is beside its text, or an error.

std::string Framed(absl::string_view body) {
  std::string message;
  for (const int shift : {24, 16, 8, 0}) message.push_back(static_cast<char>(body.size() >> shift));
  message.append(body.data(), body.size());
  return message;
}

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
      thread_([this] { Run(); }) {}

JinjaRenderer::~JinjaRenderer() { Stop(); }

void JinjaRenderer::Stop() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  if (thread_.joinable()) thread_.join();
}

void JinjaRenderer::Render(std::string request, Check check, Done done) {
  absl::Status refused;
  {
    absl::MutexLock lock(&mu_);
    if (stopping_) {
      refused = absl::UnavailableError("the server is shutting down");
    } else if (jobs_.size() >= options_.waiting_max) {
      refused = absl::ResourceExhaustedError("the queue is full: too many conversations wait to be rendered");
    } else {
      jobs_.push_back({std::move(request), std::move(check), std::move(done)});
      return;
    }
  }
  done(refused);
}

void JinjaRenderer::Run() {
  while (true) {
    std::deque<Job> left;
    Job job;
    {
      const auto wakes = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return stopping_ || !jobs_.empty(); };
      absl::MutexLock lock(&mu_, absl::Condition(&wakes));
      if (stopping_) {
        left.swap(jobs_);
      } else {
        job = std::move(jobs_.front());
        jobs_.pop_front();
      }
    }
    for (const Job& unserved : left) {
      (void)CatchEscapedIn(ThreadKind::kWorker,
                           [&] { unserved.done(absl::UnavailableError("the server is shutting down")); });
    }
    if (job.done == nullptr) break;
    auto prompt = CatchEscapedOr<std::string>(ThreadKind::kWorker, [&] { return Answer(job); });
    (void)CatchEscapedIn(ThreadKind::kWorker, [&] { job.done(std::move(prompt)); });
    job = Job();  // What its functions hold goes before the next one is waited for.
    if (std::exchange(start_anew_, false)) (void)CatchEscaped(ThreadKind::kWorker, [this] { return EnsureChild(); });
  }
  child_.reset();  // Here, as this thread started it.
}

void JinjaRenderer::Kill(absl::string_view why) {
  const std::string ending = child_->End();
  child_.reset();
  if (options_.on_killed) options_.on_killed(absl::StrCat(why, " (", ending, ")"));
}

absl::StatusOr<std::string> JinjaRenderer::Answer(const Job& job) {
  if (job.check) C3PO_RETURN_IF_ERROR(job.check());
  absl::Duration left = options_.render_max;
  for (const bool last : {false, true}) {
    C3PO_RETURN_IF_ERROR(EnsureChild());
    const absl::Time start = SteadyNow();
    absl::StatusOr<JinjaReply> reply = Exchange(job.request, start + left);
    if (!absl::IsUnavailable(reply.status())) return TakeReply(std::move(reply));
    left -= SteadyNow() - start;
    const std::string ending = child_->End();
    Kill("it ended while it rendered a conversation");
    if (last || left <= absl::ZeroDuration()) {
      start_anew_ = true;
      return absl::InvalidArgumentError(
          absl::StrCat("chat: the model's chat template ends its process at this conversation (", ending, ")"));
    }
  }
  return absl::InternalError("not reached");
}

absl::StatusOr<std::string> JinjaRenderer::TakeReply(absl::StatusOr<JinjaReply> reply) {
  using Kind = JinjaReply::Kind;
  const auto at_fault = [](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat("chat: the model's chat template ", what));
  };
  const absl::StatusCode code = reply.status().code();
  if (code == absl::StatusCode::kDeadlineExceeded || code == absl::StatusCode::kInvalidArgument) {
    start_anew_ = true;
    Kill(code == absl::StatusCode::kDeadlineExceeded ? "a conversation took too long" : "it wrote no reply");
    if (code == absl::StatusCode::kInvalidArgument) return at_fault("broke its process");
    return at_fault(absl::StrCat("takes more than ", absl::FormatDuration(options_.render_max)));
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
      start_anew_ = true;
      Kill("a conversation took too much memory");
      return at_fault(absl::StrCat("takes more than ", options_.memory_bytes >> 20, " MiB"));
    case Kind::kReady:
    case Kind::kMissing:
      break;
  }
  start_anew_ = true;
  Kill("it wrote no reply");
  return at_fault("broke its process");
}

absl::StatusOr<JinjaReply> JinjaRenderer::Exchange(absl::string_view message, absl::Time deadline) {
  C3PO_RETURN_IF_ERROR(child_->Write(Framed(message), deadline));
  std::string head, body;
  C3PO_RETURN_IF_ERROR(child_->Read(kLengthBytes, deadline, &head));
  size_t length = 0;
  for (const char byte : head) length = length << 8 | static_cast<unsigned char>(byte);
  if (length > options_.output_characters_max * kEscapedCharacterBytesMax + kReplyBytesBeside) {
    return absl::InvalidArgumentError("a reply of too many bytes");
  }
  C3PO_RETURN_IF_ERROR(child_->Read(length, deadline, &body));
  return ParseJinjaReply(body);
}

absl::Status JinjaRenderer::EnsureChild() {
  if (child_ != nullptr) {
    if (!child_->HasEnded()) return absl::OkStatus();
    Kill("it ended between two conversations");
  }
  if (SteadyNow() - start_failed_at_ < options_.retry_after) return start_failure_;
  absl::Status started = StartChild();
  if (started.ok()) return started;
  child_.reset();
  start_failed_at_ = SteadyNow();
  start_failure_ = started;
  return started;
}

absl::Status JinjaRenderer::StartChild() {
  // -I: nothing of the user's or of the folder at hand is imported. -B: no bytecode is written.
  LimitedChild::Options child;
  child.arguments = {options_.python, "-I", "-B", "-X", "utf8", "-c", kJinjaRendererSource};
  child.environment = ChildEnvironment();
  child.memory_bytes = options_.memory_bytes;
  auto started = LimitedChild::Start(child);
  if (absl::IsResourceExhausted(started.status())) return started.status();
  if (!started.ok()) return NeedsPython(started.status().message());
  child_ = *std::move(started);
  const absl::StatusOr<JinjaReply> reply = Exchange(first_message_, SteadyNow() + options_.start_max);
  if (absl::IsDeadlineExceeded(reply.status())) {
    return absl::ResourceExhaustedError(
        absl::StrCat("chat: ", options_.python, " did not start within ", absl::FormatDuration(options_.start_max)));
  }
  if (reply.ok() && reply->kind == JinjaReply::Kind::kReady) return absl::OkStatus();
  if (reply.ok() && reply->kind == JinjaReply::Kind::kMissing) {
    return NeedsPython(absl::StrCat(options_.python, ": ", reply->text));
  }
  return NeedsPython(absl::StrCat(options_.python, " ended with ", child_->End()));
}

}  // namespace c3po
