#ifndef C3PO_CLIENT_EVAL_KNOWN_QUESTIONS_H_
#define C3PO_CLIENT_EVAL_KNOWN_QUESTIONS_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "client/c3po_client.h"
#include "client/eval/method.h"
#include "client/eval/task.h"

namespace c3po {

// Questions that are among the references: their nearest neighbor holds the answer, so that re-mixing, a vote and a
// learned shift look better on them than they are on new questions.

// Embeddings this near are of one text, up to rounding; distances are in [0, 2].
inline constexpr double kSameTextDistanceMax = 1e-4;

// Whether a prompt is a reference's: the same text but for white space at its ends, or an embedding at distance 0.
bool IsSameText(absl::string_view prompt, absl::string_view reference, double distance);

// Whether the collection holds the prompt as a reference, by one search. False where the collection does not exist
// or the prompt cannot be embedded. Other errors are the server's.
absl::StatusOr<bool> IsAmongReferences(Client& client, const std::string& collection, const std::string& prompt,
                                       const CallOptions& options);

// The collections whose references the methods read for a task, each once: none for the model as it is and the oracle.
// A subset of the task's collection (EvalMethod::collection_suffix) is not named beside it.
std::vector<std::string> CollectionsRead(const Task& task, absl::Span<const EvalMethod> methods);

// For each item of the task whether it is among the references of one of the collections, asked `concurrency` at a
// time. `on_progress` is told how many items are done, one call at a time. The first error of a search ends it.
absl::StatusOr<std::vector<bool>> FindKnownQuestions(Client& client, const Task& task,
                                                     absl::Span<const std::string> collections, int concurrency,
                                                     const std::function<void(size_t)>& on_progress,
                                                     const CallOptions& options);

// Takes the items that are known out of the task. How many that were.
size_t LeaveOut(const std::vector<bool>& known, Task* task);

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_KNOWN_QUESTIONS_H_
