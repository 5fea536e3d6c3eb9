#include "server/scheduler/optimization_unit.h"

#include <numeric>
#include <optional>
#include <utility>

namespace c3po {

OptimizationUnit NextOptimizationUnit(absl::Span<const std::unique_ptr<Sequence>> running, size_t& next) {
  OptimizationUnit unit;
  int64_t rows = 0;
  std::optional<size_t> passed_over;
  const size_t begin = next;
  for (size_t i = 0; i < running.size(); ++i) {
    const size_t index = (begin + i) % running.size();
    Sequence& sequence = *running[index];
    if (sequence.stage != Sequence::Stage::kOptimizing) continue;
    const bool first = unit.sequences.empty();
    if (first) next = (index + 1) % running.size();
    std::optional<Evaluation> wanted;
    if (first || !unit.evaluations.empty()) wanted = sequence.task->Ask();
    if (wanted && (first || rows + wanted->objective->rows() <= kEvaluationRowsMax)) {
      rows += wanted->objective->rows();
      unit.sequences.push_back(&sequence);
      unit.evaluations.push_back(*std::move(wanted));
    } else if (first) {
      unit.sequences.push_back(&sequence);
    } else if (!passed_over) {
      passed_over = index;
    }
  }
  if (passed_over) next = *passed_over;
  return unit;
}

std::vector<absl::StatusOr<bool>> RunOptimizationUnit(const OptimizationUnit& unit, ModelRunner& model,
                                                      const std::function<absl::Time()>& now) {
  std::vector<absl::StatusOr<bool>> finished;
  const absl::Time start = now();
  if (unit.evaluations.empty()) {
    Sequence& sequence = *unit.sequences.front();
    finished.push_back(sequence.task->Step());
    sequence.timings.optimization_seconds += absl::ToDoubleSeconds(now() - start);
    return finished;
  }
  const auto results = model.EvaluateTogether(unit.evaluations);
  const double seconds = absl::ToDoubleSeconds(now() - start);
  std::vector<int64_t> rows;  // Asked before anything is told: an objective may end with its task.
  for (const Evaluation& evaluation : unit.evaluations) rows.push_back(evaluation.objective->rows());
  const double all_rows = static_cast<double>(std::accumulate(rows.begin(), rows.end(), int64_t{0}));
  for (size_t i = 0; i < unit.sequences.size(); ++i) {
    Sequence& sequence = *unit.sequences[i];
    const double share = seconds * static_cast<double>(rows[i]) / all_rows;
    const absl::Time told = now();
    finished.push_back(results[i].ok() ? sequence.task->Tell(*results[i], share)
                                       : absl::StatusOr<bool>(results[i].status()));
    sequence.timings.optimization_seconds += share + absl::ToDoubleSeconds(now() - told);
  }
  return finished;
}

}  // namespace c3po
