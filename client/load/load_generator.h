#ifndef C3PO_CLIENT_LOAD_LOAD_GENERATOR_H_
#define C3PO_CLIENT_LOAD_LOAD_GENERATOR_H_

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/c3po_client.h"
#include "client/cancellation.h"
#include "client/load/load_plan.h"
#include "client/load/load_report.h"
#include "client/load/prompt_source.h"

namespace c3po {

struct LoadProgress {
  absl::Duration elapsed;  // warm-up included
  int in_flight = 0;
  LoadRecorder::Glance so_far;
};

// Puts the load on the server with Generate calls, each tried once, and returns when the last has ended. Blocks; a
// thread per call in flight. `on_progress` runs on the calling thread, ten times a second.
//   Closed loop: `concurrency` callers; one that was refused pauses as LoadOptions::refused_pause says.
//   Open loop: calls arrive at planned moments; one for which no thread is left waits, and its latencies count from the
//   moment
// that was planned.
// When `interrupt` is cancelled, no further call is sent, those in flight are cancelled and counted apart, and what was
// recorded is returned. InvalidArgument: the options'.
absl::StatusOr<LoadReport> RunLoad(Client& client, const PromptSource& prompts, const LoadOptions& options,
                                   Cancellation& interrupt, absl::FunctionRef<void(const LoadProgress&)> on_progress);

}  // namespace c3po

#endif  // C3PO_CLIENT_LOAD_LOAD_GENERATOR_H_
