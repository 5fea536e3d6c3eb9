#include "server/pipeline/counted_call.h"

#include <utility>

#include "index/base/escaped_exception.h"
#include "index/base/steady_time.h"

namespace c3po {
namespace {

Metrics::FinishedReason ReasonOf(const absl::Status& status, const CallSummary& summary) {
  if (absl::IsCancelled(status) || absl::IsDeadlineExceeded(status)) return Metrics::FinishedReason::kAbort;
  if (!status.ok()) return Metrics::FinishedReason::kError;
  return summary.finish_reason == FinishReason::kStop ? Metrics::FinishedReason::kStop
                                                      : Metrics::FinishedReason::kLength;
}

void ObserveStages(const StageTimings& timings, Metrics& metrics) {
  using Stage = Metrics::Stage;
  metrics.ObserveStage(Stage::kQueue, timings.queue_seconds);
  metrics.ObserveStage(Stage::kTokenize, timings.tokenize_seconds);
  metrics.ObserveStage(Stage::kEmbed, timings.embed_seconds);
  metrics.ObserveStage(Stage::kRetrieval, timings.retrieval_seconds);
  metrics.ObserveStage(Stage::kPrefill, timings.prefill_seconds);
  metrics.ObserveStage(Stage::kOptimization, timings.optimization_seconds);
  metrics.ObserveStage(Stage::kOptimizationWait, timings.optimization_wait_seconds);
  metrics.ObserveStage(Stage::kDecode, timings.decode_seconds);
}

}  // namespace

CountedCall::CountedCall(Metrics* metrics, absl::Time arrival, std::shared_ptr<GenerationListener> listener,
                         std::shared_ptr<CallTrace> trace)
    : metrics_(metrics), arrival_(arrival), listener_(std::move(listener)), stages_(std::move(trace), arrival) {
  if (metrics_ != nullptr) metrics_->RequestStarted();
}

CountedCall::~CountedCall() {
  if (ended_.load()) return;
  (void)CatchEscapedIn(ThreadKind::kWorker,
                       [this] { OnDone(absl::InternalError("the call was lost"), CallSummary()); });
}

void CountedCall::CountEnd(const absl::Status& status, const CallSummary& summary) {
  if (ended_.exchange(true)) return;
  (void)CatchEscapedIn(ThreadKind::kWorker, [&] { stages_.NoteEnd(status, summary); });  // The end has to be told.
  if (metrics_ == nullptr) return;
  metrics_->CountFinished(ReasonOf(status, summary));
  metrics_->ObserveRequestLatency(absl::ToDoubleSeconds(SteadyNow() - arrival_));
  if (status.ok()) ObserveStages(summary.timings, *metrics_);
}

}  // namespace c3po
