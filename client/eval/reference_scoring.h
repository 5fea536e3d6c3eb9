#ifndef C3PO_CLIENT_EVAL_REFERENCE_SCORING_H_
#define C3PO_CLIENT_EVAL_REFERENCE_SCORING_H_

#include <cstddef>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/c3po_client.h"
#include "client/cancellation.h"
#include "client/eval/item_runner.h"
#include "client/eval/reference_scores.h"
#include "client/eval/task.h"

namespace c3po {

// Scores of the labels on a task's references by the model alone, what a label offset is fitted to. Each costs one
// Score call with METHOD_NONE, as a question asked of method none does.

// References read of one collection; of a larger one the first.
inline constexpr size_t kReferencesListedMax = 20000;

// The labels of a task by its questions (label_task.h).
std::vector<std::string> LabelsOf(const Task& task);

// The references of the task's collection whose answer is one of its labels, and whose choices, where they have some,
// are the labels, too; none of them scored yet. Those without choices get the first question's. Empty where the task
// has no labels, or where the collection does not exist or may not be read. Other errors are the server's.
absl::StatusOr<std::vector<ReferenceScore>> ListLabelledReferences(Client& client, const Task& task,
                                                                   const CallOptions& options);

struct ReferenceScoringOptions {
  size_t scored_max = 200;  // Of a task, those that the file holds scored included.
  int concurrency = 2;
  Cancellation* cancellation = nullptr;  // Not owned; may be null.
  // Told how many are done, one call at a time; may be null.
  std::function<void(size_t)> on_progress;
};

// The references that are to be scored and are not, of each task the first `scored_max` in the order of
// ShuffledOrder(count, 0), so that a larger bound goes on with what a smaller one has.
std::vector<size_t> ReferencesToScore(const ReferenceScoreFile& file, size_t scored_max);

struct ReferenceScoringOutcome {
  size_t scored = 0;  // in this call
  size_t failed = 0;  // references that the model gives no numbers for, or that it cannot read; left without scores
};

// Scores ReferencesToScore and keeps each in the file as it comes. Blocks; starts `concurrency` threads. An Internal or
// InvalidArgument error is one reference's; any other ends the call: Cancelled, the server's, or the file's.
absl::StatusOr<ReferenceScoringOutcome> ScoreReferences(const std::vector<Task>& tasks, ItemRunner& runner,
                                                        ReferenceScoreFile& file,
                                                        const ReferenceScoringOptions& options);

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_REFERENCE_SCORING_H_
