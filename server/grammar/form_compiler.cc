#include "server/grammar/form_compiler.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/escaped_exception.h"
#include "index/base/status_macros.h"
#include "index/base/steady_time.h"
#include "server/grammar/form_check.h"

namespace c3po {
FormCompiler::FormCompiler(FormVocabulary vocabulary, Options options)
    : vocabulary_(std::move(vocabulary)),
      options_(std::move(options)),
      cache_(options_.cache_entries_max, options_.cache_bytes_max),
      process_({.messages = "forms",
                .work = "compiled a form",
                .retry_after = options_.retry_after,
                .reply_bytes_max = options_.reply_bytes_max,
                .on_killed = options_.on_killed,
                .start = [this](ReplacedChild& process) { return Start(process); }}),
      thread_(options_.waiting_max, "the queue is full: too many forms wait to be compiled",
              [this] { process_.End(); }) {}

FormCompiler::~FormCompiler() = default;

void FormCompiler::Stop() { thread_.Stop(); }

void FormCompiler::Compile(AnswerForm form, Check check, Done done) {
  if (const absl::Status refused = CheckForm(form); !refused.ok()) return done(refused);
  auto run = [this, form = std::move(form), check = std::move(check), done]() mutable {
    using FormPtr = std::shared_ptr<const CompiledForm>;
    auto compiled = CatchEscapedOr<FormPtr>(ThreadKind::kWorker, [&] { return Answer(form, check); });
    (void)CatchEscapedIn(ThreadKind::kWorker, [&] { done(std::move(compiled)); });
    check = nullptr;  // What the functions hold goes before another process starts.
    done = nullptr;
    process_.Renew();
  };
  thread_.Give({std::move(run), [done](const absl::Status& status) { done(status); }});
}

FormCompiler::Result FormCompiler::Answer(const AnswerForm& form, const Check& check) {
  if (check) C3PO_RETURN_IF_ERROR(check());
  const std::string bytes = BytesOf(form);
  if (const Result* known = cache_.Find(bytes)) return *known;
  C3PO_RETURN_IF_ERROR(EnsureEngine());
  const absl::StatusOr<std::string> reply = process_.Ask(bytes, options_.compile_max);
  if (absl::IsResourceExhausted(reply.status())) return reply.status();  // There is no process.
  Result result = TakeReply(form, reply.ok() ? ParseFormReply(*reply) : reply.status());
  // Other errors say nothing of the form.
  if (result.ok() || absl::IsInvalidArgument(result.status())) cache_.Keep(bytes, result);
  return result;
}

FormCompiler::Result FormCompiler::TakeReply(const AnswerForm& form, absl::StatusOr<FormReply> reply) {
  const auto at_fault = [&form](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(FieldOf(form), ": ", what));
  };
  if (absl::IsAborted(reply.status()))
    return at_fault(absl::StrCat("ends the process that compiles it (", reply.status().message(), ")"));
  if (absl::IsDeadlineExceeded(reply.status())) {
    process_.Kill("a form took too long");
    return at_fault(absl::StrCat("takes more than ", absl::FormatDuration(options_.compile_max), " to compile"));
  }
  if (!reply.ok()) {
    process_.Kill("a form was too large, or it wrote no reply");
    return at_fault(absl::StrCat("takes more than ", options_.reply_bytes_max >> 20, " MiB once it is compiled"));
  }
  switch (reply->kind) {
    case FormReply::Kind::kCompiled:
      return engine_->FromBytes(reply->text, form.kind);
    case FormReply::Kind::kRefused:
      return absl::InvalidArgumentError(reply->text);
    case FormReply::Kind::kNoMemory:
      break;
  }
  process_.Kill("a form took too much memory");
  return at_fault(absl::StrCat("takes more than ", options_.memory_bytes >> 20, " MiB to compile"));
}

absl::Status FormCompiler::EnsureEngine() {
  if (engine_ != nullptr) return absl::OkStatus();
  C3PO_ASSIGN_OR_RETURN(engine_, FormEngine::Create(vocabulary_));
  return absl::OkStatus();
}

absl::Status FormCompiler::Start(ReplacedChild& process) {
  const absl::Status started = [&]() -> absl::Status {
    LimitedChild::Options child;
    child.arguments = {options_.program, kFormProcessArgument};
    child.environment = {"LC_ALL=C.UTF-8", "OMP_NUM_THREADS=1"};
    child.memory_bytes = options_.memory_bytes;
    C3PO_RETURN_IF_ERROR(process.Launch(child));
    const absl::StatusOr<std::string> body = process.Exchange(BytesOf(vocabulary_), SteadyNow() + options_.start_max);
    if (absl::IsUnavailable(body.status())) return absl::UnavailableError(process.Ending());
    C3PO_RETURN_IF_ERROR(body.status());
    C3PO_ASSIGN_OR_RETURN(const FormReply reply, ParseFormReply(*body));
    return reply.kind == FormReply::Kind::kCompiled ? absl::OkStatus() : absl::InternalError(reply.text);
  }();
  if (started.ok()) return started;
  return absl::ResourceExhaustedError(
      absl::StrCat("structured_output: no process to compile forms in: ", started.message()));
}

}  // namespace c3po
