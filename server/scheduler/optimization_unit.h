#ifndef C3PO_SERVER_SCHEDULER_OPTIMIZATION_UNIT_H_
#define C3PO_SERVER_SCHEDULER_OPTIMIZATION_UNIT_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
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
  struct Member {
    Sequence* sequence = nullptr;
    std::shared_ptr<OptimizationTask> task;  // holds what the evaluation reads
    size_t evaluations = 0;                  // its own; they follow those of the members before it
    int64_t rows = 0;                        // of these
    double seconds = 0;                      // of these so far, its share by rows
  };
  std::vector<Member> members;          // none: nothing to do
  std::vector<Evaluation> evaluations;  // of the members, in order; none: OptimizationTask::Step of the only one
  std::unique_ptr<EvaluationRun> run;   // of the evaluations, once begun
  bool Holds(const Sequence* sequence) const;
};

// The units that have begun, of evaluations that cost more than streams may wait for. Between two parts of one, streams
// and other units run.
class OptimizationUnits {
 public:
  // Of those that are optimizing and have been granted their memory: the one that has waited the longest for a turn, of
  // the caller that has had the least time; and with it, if it waits for an evaluation, all that wait for one too and
  // fit; the first whatever its rows. Where the first is of a unit that has begun, that one. Each has a turn at least
  // once in as many of its caller's as that has sequences. Null: there is nothing to do. Holds until the next call.
  OptimizationUnit* Next(absl::Span<const std::unique_ptr<Sequence>> running);

  struct Outcome {
    Sequence* sequence;
    absl::StatusOr<bool> finished;  // whether its task is, or what failed, which is no other's failure
  };
  // Runs as much of it as costs about `row_layers`. Outcomes, in the order of its members, once it is done; none
  // before. Of a pass over several evaluations each sequence's timings get its share by rows.
  std::vector<Outcome> Advance(OptimizationUnit* unit, int64_t row_layers, ModelRunner& model,
                               const std::function<absl::Time()>& now);

  // The sequence has ended, or gave its place back; what it waits for is found again when it asks again. A unit that it
  // shared begins anew for the others: its objective is not evaluated for nobody while it asks it for something else.
  void Leave(const Sequence* sequence);

  size_t begun() const { return units_.size(); }

 private:
  OptimizationUnit* Begun(const Sequence* sequence);
  bool Join(Sequence& sequence, OptimizationUnit& unit) const;

  void Charge(const OptimizationUnit::Member& member, double seconds);
  absl::string_view CallerInTurn(absl::Span<const std::unique_ptr<Sequence>> running);

  std::vector<std::unique_ptr<OptimizationUnit>> units_;
  std::map<std::string, double, std::less<>> seconds_;  // that each caller with a sequence there has had
  int64_t turn_ = 0;                                    // units that were chosen, and sequences that came
};

}  // namespace c3po

#endif  // C3PO_SERVER_SCHEDULER_OPTIMIZATION_UNIT_H_
