#include "server/grammar/form_compiler.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/escaped_exception.h"
#include "index/base/status_macros.h"
#include "index/base/steady_time.h"
#include "server/grammar/byte_fields.h"
#include "server/grammar/form_check.h"

namespace c3po {
namespace {

constexpr size_t kLengthBytes = 4;

}  // namespace

FormCompiler::FormCompiler(FormVocabulary vocabulary, Options options)
    : vocabulary_(std::move(vocabulary)),
      options_(std::move(options)),
      cache_(options_.cache_entries_max, options_.cache_bytes_max),
      thread_([this] { Run(); }) {}

FormCompiler::~FormCompiler() { Stop(); }

void FormCompiler::Stop() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  if (thread_.joinable()) thread_.join();
}

void FormCompiler::Compile(AnswerForm form, Check check, Done done) {
  absl::Status refused = CheckForm(form);
  if (refused.ok()) {
    absl::MutexLock lock(&mu_);
    if (stopping_) {
      refused = absl::UnavailableError("the server is shutting down");
    } else if (jobs_.size() >= options_.waiting_max) {
      refused = absl::ResourceExhaustedError("the queue is full: too many forms wait to be compiled");
    } else {
      jobs_.push_back({std::move(form), std::move(check), std::move(done)});
      return;
    }
  }
  done(refused);
}

void FormCompiler::Run() {
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
    using FormPtr = std::shared_ptr<const CompiledForm>;
    auto form = CatchEscapedOr<FormPtr>(ThreadKind::kWorker, [&] { return Answer(job); });
    (void)CatchEscapedIn(ThreadKind::kWorker, [&] { job.done(std::move(form)); });
    job = Job();  // What its functions hold goes before the next one is waited for.
    if (std::exchange(start_anew_, false)) (void)CatchEscaped(ThreadKind::kWorker, [this] { return EnsureProcess(); });
  }
  process_.reset();  // Here, as this thread started it.
}

void FormCompiler::Kill(absl::string_view why) {
  const std::string ending = process_->End();
  process_.reset();
  if (options_.on_killed) options_.on_killed(absl::StrCat(why, " (", ending, ")"));
}

FormCompiler::Result FormCompiler::Answer(const Job& job) {
  if (job.check) C3PO_RETURN_IF_ERROR(job.check());
  const std::string bytes = BytesOf(job.form);
  if (const Result* known = cache_.Find(bytes)) return *known;
  C3PO_RETURN_IF_ERROR(EnsureEngine());
  Result result = CompileInProcess(job.form, bytes);
  // Other errors say nothing of the form.
  if (result.ok() || absl::IsInvalidArgument(result.status())) cache_.Keep(bytes, result);
  return result;
}

// What died while it compiled is tried once more, as somebody else may have killed it.
FormCompiler::Result FormCompiler::CompileInProcess(const AnswerForm& form, const std::string& bytes) {
  absl::Duration left = options_.compile_max;
  for (const bool last : {false, true}) {
    C3PO_RETURN_IF_ERROR(EnsureProcess());
    const absl::Time start = SteadyNow();
    absl::StatusOr<FormReply> reply = Exchange(bytes, start + left);
    if (!absl::IsUnavailable(reply.status())) return TakeReply(form, std::move(reply));
    left -= SteadyNow() - start;
    const std::string ending = process_->End();
    Kill("it ended while it compiled a form");
    if (last || left <= absl::ZeroDuration()) {
      start_anew_ = true;
      return absl::InvalidArgumentError(
          absl::StrCat(FieldOf(form), ": ends the process that compiles it (", ending, ")"));
    }
  }
  return absl::InternalError("not reached");
}

FormCompiler::Result FormCompiler::TakeReply(const AnswerForm& form, absl::StatusOr<FormReply> reply) {
  const auto at_fault = [&form](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(FieldOf(form), ": ", what));
  };
  if (absl::IsDeadlineExceeded(reply.status())) {
    start_anew_ = true;
    Kill("a form took too long");
    return at_fault(absl::StrCat("takes more than ", absl::FormatDuration(options_.compile_max), " to compile"));
  }
  if (!reply.ok()) {
    start_anew_ = true;
    Kill("a form was too large, or it wrote no reply");
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
  start_anew_ = true;
  Kill("a form took too much memory");
  return at_fault(absl::StrCat("takes more than ", options_.memory_bytes >> 20, " MiB to compile"));
}

absl::StatusOr<FormReply> FormCompiler::Exchange(absl::string_view body, absl::Time deadline) {
  C3PO_RETURN_IF_ERROR(process_->Write(Framed(body), deadline));
  std::string head, reply;
  C3PO_RETURN_IF_ERROR(process_->Read(kLengthBytes, deadline, &head));
  absl::string_view number = head;
  const uint32_t length = *TakeNumber(number);
  if (length > options_.reply_bytes_max) return absl::OutOfRangeError("a reply of too many bytes");
  C3PO_RETURN_IF_ERROR(process_->Read(length, deadline, &reply));
  return ParseFormReply(reply);
}

absl::Status FormCompiler::EnsureEngine() {
  if (engine_ != nullptr) return absl::OkStatus();
  C3PO_ASSIGN_OR_RETURN(engine_, FormEngine::Create(vocabulary_));
  return absl::OkStatus();
}

absl::Status FormCompiler::EnsureProcess() {
  if (process_ != nullptr) {
    if (!process_->HasEnded()) return absl::OkStatus();
    Kill("it ended between two forms");
  }
  if (SteadyNow() - start_failed_at_ < options_.retry_after) return start_failure_;
  const absl::Status started = StartProcess();
  if (started.ok()) return started;
  process_.reset();
  start_failed_at_ = SteadyNow();
  start_failure_ = absl::ResourceExhaustedError(
      absl::StrCat("structured_output: no process to compile forms in: ", started.message()));
  return start_failure_;
}

absl::Status FormCompiler::StartProcess() {
  LimitedChild::Options child;
  child.arguments = {options_.program, kFormProcessArgument};
  child.environment = {"LC_ALL=C.UTF-8", "OMP_NUM_THREADS=1"};
  child.memory_bytes = options_.memory_bytes;
  C3PO_ASSIGN_OR_RETURN(process_, LimitedChild::Start(child));
  const absl::StatusOr<FormReply> reply = Exchange(BytesOf(vocabulary_), SteadyNow() + options_.start_max);
  if (absl::IsUnavailable(reply.status())) return absl::UnavailableError(process_->End());
  C3PO_RETURN_IF_ERROR(reply.status());
  return reply->kind == FormReply::Kind::kCompiled ? absl::OkStatus() : absl::InternalError(reply->text);
}

}  // namespace c3po
