#ifndef C3PO_SERVER_PIPELINE_COUNTED_CALL_H_
#define C3PO_SERVER_PIPELINE_COUNTED_CALL_H_

#include <atomic>
#include <memory>

#include "absl/time/time.h"
#include "server/metrics/metrics.h"
#include "server/pipeline/generation_types.h"
#include "server/pipeline/stage_trace.h"

namespace c3po {

// The accounting and the trace's stages of one call that was let in: begun once, ended once, whichever way it ends.
// Passes everything on to the call's listener, which hears of the end after it was counted. Events as
// GenerationListener's.
class CountedCall final : public GenerationListener {
 public:
  // Counts the call as begun. `metrics` may be null, and outlives this. `trace` null: the call is not traced.
  CountedCall(Metrics* metrics, absl::Time arrival, std::shared_ptr<GenerationListener> listener,
              std::shared_ptr<CallTrace> trace = nullptr);
  // A call that nobody ended, as where an exception lost it, is counted as an error, and its listener hears Internal.
  ~CountedCall() override;
  CountedCall(const CountedCall&) = delete;
  CountedCall& operator=(const CountedCall&) = delete;

  void OnOptimization(const OptimizationReport& report) override {
    stages_.NoteReport(report);
    listener_->OnOptimization(report);
  }
  void OnChunk(TextChunk chunk) override { listener_->OnChunk(std::move(chunk)); }
  void OnPrompt(std::vector<SampledToken> prompt) override { listener_->OnPrompt(std::move(prompt)); }
  void OnScores(std::vector<ContinuationScore> scores) override { listener_->OnScores(std::move(scores)); }
  void OnRoutes(RoutedExperts prompt) override { listener_->OnRoutes(std::move(prompt)); }
  void OnDone(const absl::Status& status, const CallSummary& summary) override {
    CountEnd(status, summary);
    listener_->OnDone(status, summary);
  }

  // Counts the end of a call whose listener is told otherwise. What comes after the first count changes nothing.
  void CountEnd(const absl::Status& status, const CallSummary& summary);

 private:
  Metrics* const metrics_;
  const absl::Time arrival_;
  const std::shared_ptr<GenerationListener> listener_;
  StageTrace stages_;
  std::atomic<bool> ended_{false};
};

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_COUNTED_CALL_H_
