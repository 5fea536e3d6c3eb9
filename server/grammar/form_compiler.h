#ifndef C3PO_SERVER_GRAMMAR_FORM_COMPILER_H_
#define C3PO_SERVER_GRAMMAR_FORM_COMPILER_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/grammar/form_cache.h"
#include "server/grammar/form_engine.h"
#include "server/grammar/form_process.h"
#include "server/grammar/form_vocabulary.h"
#include "server/process/job_thread.h"
#include "server/process/replaced_child.h"

namespace c3po {

// Compiles forms off the engine's thread, one after the other, in one long-lived process (process/replaced_child.h)
// that runs RunFormProcess of this same program, and keeps what came of them.
//
// A form has `compile_max` and the process's memory: however an expression multiplies, one that takes longer costs its
// own caller that, and those behind it no more; the process is killed and another one is started. What is read here of
// its reply is bounded by `reply_bytes_max`. What is not bounded here is the time that a compiled form takes for each
// token: see TokenMatcher.
//
// Thread-safe. Nothing is started before the first form.
class FormCompiler {
 public:
  struct Options {
    std::string program = "/proc/self/exe";
    absl::Duration compile_max = absl::Seconds(5);
    absl::Duration start_max = absl::Seconds(20);   // For the process to start and to sort the vocabulary.
    absl::Duration retry_after = absl::Seconds(5);  // A start that failed is not tried again sooner.
#ifdef C3PO_SANITIZED
    int64_t memory_bytes = -1;  // RLIM_INFINITY: a sanitizer's shadow is address space too.
#else
    int64_t memory_bytes = int64_t{3} << 30;  // The process's address space, shared libraries included.
#endif
    size_t reply_bytes_max = size_t{16} << 20;  // Of one compiled form.
    size_t waiting_max = 256;                   // Forms that wait; beyond: ResourceExhausted.
    size_t cache_entries_max = 256;
    int64_t cache_bytes_max = int64_t{128} << 20;
    std::function<void(absl::string_view why)> on_killed = nullptr;  // From the compiler's thread.
  };
  FormCompiler(FormVocabulary vocabulary, Options options);
  // Ends as Stop does.
  ~FormCompiler();

  using Check = std::function<absl::Status()>;
  using Done = std::function<void(absl::StatusOr<std::shared_ptr<const CompiledForm>>)>;
  // `done` hears the compiled form once, from the compiler's thread, or from this one where the form is not taken; it
  // must not block. `check` is asked right before it is compiled, and its error is the result then.
  //   InvalidArgument "structured_output.FIELD: ...": as CheckForm and FormEngine::Compile; takes too long, too much
  //   memory, or gives too much
  //   ResourceExhausted: waiting_max wait already, or no process can be started now
  //   Unavailable: Stop was called
  void Compile(AnswerForm form, Check check, Done done);

  // Waits for the form that is being compiled; those that wait hear Unavailable. Ends the process.
  void Stop();

 private:
  using Result = FormCache::Result;

  Result Answer(const AnswerForm& form, const Check& check);
  Result TakeReply(const AnswerForm& form, absl::StatusOr<FormReply> reply);
  absl::Status EnsureEngine();
  absl::Status Start(ReplacedChild& process);

  const FormVocabulary vocabulary_;
  const Options options_;
  // Of the thread alone.
  std::unique_ptr<FormEngine> engine_;  // Reads what the process compiled.
  FormCache cache_;
  ReplacedChild process_;
  JobThread thread_;  // Ends first.
};

}  // namespace c3po

#endif  // C3PO_SERVER_GRAMMAR_FORM_COMPILER_H_
