#ifndef C3PO_CLIENT_EVAL_EVALUATOR_H_
#define C3PO_CLIENT_EVAL_EVALUATOR_H_

#include <cstddef>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/cancellation.h"
#include "client/eval/item_runner.h"
#include "client/eval/run_folder.h"

namespace c3po {

// Told of each answer; one call at a time, on whichever thread had it.
class EvaluationListener {
 public:
  virtual ~EvaluationListener() = default;
  virtual void OnResult(const ItemResult& result) = 0;
  virtual void OnError(const std::string& task, const std::string& id, const std::string& method,
                       const absl::Status& error) = 0;
};

struct EvaluationOptions {
  int concurrency = 2;  // questions asked at a time, each by one method at a time
  // So many errors of one method in a row, and it is given up: something is wrong with it. The others go on; once all
  // are given up, something is wrong with the server, and the run ends. The first PERMISSION_DENIED, UNAUTHENTICATED or
  // UNIMPLEMENTED gives a method up.
  int errors_in_a_row_max = 5;
  Cancellation* cancellation = nullptr;  // Not owned; may be null.
};

struct EvaluationOutcome {
  size_t answered = 0;  // in this call
  size_t failed = 0;    // answers that ended with an error; asked again when the run is resumed
  bool cancelled = false;
  // Methods that were given up, with why: "oracle failed 1 time: ...".
  std::vector<absl::Status> given_up;
  absl::Status status;  // Why the run ended early: every method was given up, or a folder that cannot be written.
};

// Asks every question of the run by every method whose answer the folder lacks: all methods of a question before the
// next one, so that a run that is ended compares methods on the same questions. Blocks; starts `concurrency` threads.
EvaluationOutcome Evaluate(const RunDescription& run, ItemRunner& runner, RunFolder& folder,
                           EvaluationListener& listener, const EvaluationOptions& options = {});

// How many answers the run still lacks.
size_t MissingAnswers(const RunDescription& run, const RunFolder& folder);

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_EVALUATOR_H_
