#ifndef C3PO_SERVER_PIPELINE_STAGE_TRACE_H_
#define C3PO_SERVER_PIPELINE_STAGE_TRACE_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/pipeline/generation_types.h"
#include "server/trace/call_trace.h"
#include "server/types/model_runner.h"

namespace c3po {

// What a call asks for, as attributes of its span: OpenTelemetry's `gen_ai.*` (semantic conventions for generative AI).
// No text of the prompt. Nothing where the call is not traced.
void TraceRequest(const GenerateCall& call, const ModelShape& shape);
void TraceRequest(const ScoreCall& call, const ModelShape& shape);

// Work of a worker's for a call, which may be null, from `begin` until now: a span `name`, and before it a span "queue"
// over the time since the last one. Of a name that is there already the span becomes longer: work done in slices.
void TraceWork(CallTrace* trace, absl::string_view name, absl::Time begin);

// The spans of one call's stages, one after the other:
//   queue ▶ render, tokenize, embed, retrieve ▶ queue ▶ prefill ▶ (retrieve) ▶ optimize ▶ decode
// What workers do is told by TraceWork as it happens; the rest is told at the call's end, by what the scheduler saw of
// it (SequenceTimings): its instants are the sums of consecutive durations from the call's arrival on. Of a call that
// fails, the stage that it had reached lasts to its end. "optimize" holds the waiting for turns, which is an attribute.
// One thread at a time.
class StageTrace {
 public:
  // `trace` null: the call is not traced, and nothing is done.
  StageTrace(std::shared_ptr<CallTrace> trace, absl::Time arrival) : trace_(std::move(trace)), arrival_(arrival) {}

  void NoteReport(const OptimizationReport& report);
  // Once, last, before the call's own span ends.
  void NoteEnd(const absl::Status& status, const CallSummary& summary);

 private:
  void NoteUsage(const CallSummary& summary);
  void NoteEngine(const absl::Status& status, const CallSummary& summary);

  const std::shared_ptr<CallTrace> trace_;
  const absl::Time arrival_;
  bool optimizes_ = false;
  SpanAttributes optimization_;  // of the span "optimize"
};

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_STAGE_TRACE_H_
