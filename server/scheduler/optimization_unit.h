#ifndef C3PO_SERVER_SCHEDULER_OPTIMIZATION_UNIT_H_
#define C3PO_SERVER_SCHEDULER_OPTIMIZATION_UNIT_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "server/scheduler/sequence.h"
#include "server/types/model_runner.h"
#include "server/types/neighborhood_objective.h"

namespace c3po {

// Rows of the evaluations that run as one pass. A pass of a few rows waits for the weights to be read, so that more of
// them cost little; beyond, it computes more than it waits, and would only hold up running streams for longer.
inline constexpr int64_t kEvaluationRowsMax = 32;

// What optimization does next: the evaluations that several sequences wait for, in one pass, or what the task of a
// single one does itself.
struct OptimizationUnit {
  std::vector<Sequence*> sequences;     // none: nothing to do
  std::vector<Evaluation> evaluations;  // one per sequence; none: OptimizationTask::Step of the only one
};

// Of those that are optimizing, in turn from running[next] on: the first, and with it, if it waits for an evaluation,
// all that wait for one too and fit; the first whatever its rows. `next` becomes the first that was passed over, so
// that each has a turn at least once in as many units as there are sequences.
OptimizationUnit NextOptimizationUnit(absl::Span<const std::unique_ptr<Sequence>> running, size_t& next);

// Runs it: of each of its sequences whether the task is finished, or what failed, which is no other's failure. Of a
// pass over several evaluations each sequence's timings get its share by rows.
std::vector<absl::StatusOr<bool>> RunOptimizationUnit(const OptimizationUnit& unit, ModelRunner& model,
                                                      const std::function<absl::Time()>& now);

}  // namespace c3po

#endif  // C3PO_SERVER_SCHEDULER_OPTIMIZATION_UNIT_H_
