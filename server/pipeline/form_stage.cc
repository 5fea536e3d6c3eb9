// The stage of GenerationPipeline in which the form of the answers is compiled; most requests have none.
#include <atomic>
#include <functional>
#include <memory>
#include <utility>

#include "index/base/escaped_exception.h"
#include "index/base/status_macros.h"
#include "index/base/steady_time.h"
#include "server/grammar/form_compiler.h"
#include "server/pipeline/counted_call.h"
#include "server/pipeline/generation_pipeline.h"

namespace c3po {

absl::Status GenerationPipeline::CompileFirst(const std::shared_ptr<GenerateCall>& call,
                                              const std::shared_ptr<CountedCall>& counted,
                                              std::function<absl::Status()> then) const {
  if (!call->form) return then();
  if (parts_.forms == nullptr) {
    return absl::FailedPreconditionError("structured_output: this server compiles no forms");
  }
  const auto check = [context = call->context]() -> absl::Status {
    if (context.cancelled && context.cancelled->load(std::memory_order_relaxed)) {
      return absl::CancelledError("the client cancelled the request");
    }
    return SteadyNow() < context.deadline
               ? absl::OkStatus()
               : absl::DeadlineExceededError("the deadline passed before the answer's form was compiled");
  };
  const auto take = [this, call, counted,
                     then = std::move(then)](absl::StatusOr<std::shared_ptr<const CompiledForm>> compiled) {
    const absl::Status status = CatchEscaped(ThreadKind::kWorker, [&]() -> absl::Status {
      C3PO_ASSIGN_OR_RETURN(call->compiled_form, std::move(compiled));
      return OnWorker(then, [counted](const absl::Status& failed) { counted->OnDone(failed, CallSummary()); });
    });
    if (!status.ok()) counted->OnDone(status, CallSummary());
  };
  parts_.forms->Compile(*call->form, check, take);
  return absl::OkStatus();
}

}  // namespace c3po
