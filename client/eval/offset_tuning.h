#ifndef C3PO_CLIENT_EVAL_OFFSET_TUNING_H_
#define C3PO_CLIENT_EVAL_OFFSET_TUNING_H_

#include <cstdint>
#include <functional>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "client/c3po_client.h"
#include "client/eval/item_runner.h"
#include "client/eval/method.h"
#include "client/eval/task.h"

namespace c3po {

struct OffsetTuningOptions {
  uint32_t references_max = 0;  // of each collection, a seeded sample; 0: all
  // Told as references are scored for a method of a collection; may be null.
  std::function<void(const EvalMethod& method, const std::string& collection, const v1::TuneOffsetResponse& progress)>
      on_progress;
};

// Has the server fit the label offsets that methods of a run ask for (use_offset) and that it does not hold yet, for
// the collections of the tasks with choices. Where a collection can have none (FailedPrecondition: its references share
// no labels, or are too few), the outcome says why; the method is asked without it there. Other errors are the
// server's.
absl::StatusOr<ClientItemRunner::WithoutOffset> TuneOffsets(Client& client, absl::Span<const Task> tasks,
                                                            absl::Span<const EvalMethod> methods,
                                                            const OffsetTuningOptions& options,
                                                            const CallOptions& call_options);

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_OFFSET_TUNING_H_
