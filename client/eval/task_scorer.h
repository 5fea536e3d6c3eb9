#ifndef C3PO_CLIENT_EVAL_TASK_SCORER_H_
#define C3PO_CLIENT_EVAL_TASK_SCORER_H_

#include <functional>
#include <vector>

#include "client/eval/calibration.h"
#include "client/eval/item_runner.h"

namespace c3po {

// Scores the items of one task by an ItemRunner, several at a time. The first error ends a call.
class TaskScorer : public CalibrationScorer {
 public:
  using OnAnswer = std::function<void(const v1::OptimizationOptions&, const TaskItem&, const ItemResult&)>;

  // `task` and `runner` are not owned and outlive this object. `on_answer` is told of each answer as it comes, one at a
  // time, also of those whose call is then ended by another's error; may be null.
  TaskScorer(const Task* task, ItemRunner* runner, int concurrency, OnAnswer on_answer)
      : task_(*task), runner_(*runner), concurrency_(concurrency), on_answer_(std::move(on_answer)) {}

  absl::StatusOr<std::vector<ItemResult>> Score(const v1::OptimizationOptions& options,
                                                absl::Span<const size_t> questions) override;

 private:
  const Task& task_;
  ItemRunner& runner_;
  const int concurrency_;
  const OnAnswer on_answer_;
};

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_TASK_SCORER_H_
