#ifndef C3PO_CLIENT_CLI_CALIBRATION_QUESTIONS_H_
#define C3PO_CLIENT_CLI_CALIBRATION_QUESTIONS_H_

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "c3po/v1/options.pb.h"
#include "c3po/v1/reference.pb.h"
#include "client/cli/session.h"
#include "client/eval/calibration.h"
#include "client/eval/task.h"

namespace c3po {

struct CalibrateFlags {
  std::string collection;
  std::string references;
  std::string heldout;
  std::string metric;
  size_t questions = 60;
  double budget_seconds = 1800;
  uint64_t seed = 0;
  int concurrency = 2;
  double cost_weight = CalibrationSettings().cost_weight;
  uint32_t offset_references = 200;  // that the stored offset is fitted to; 0: all
  std::string state;
  bool fresh = false;
  bool dry_run = false;
  bool json = false;
  v1::OptimizationOptions fixed;

  // Where sentences go: with --json, stdout is the document's alone.
  std::FILE* said() const { return json ? stderr : stdout; }
};

// The collection's samples with their ids: from the server, or from a file that is imported first. Errors are the
// server's or the file's.
absl::StatusOr<std::vector<v1::Reference>> ReadPool(Session& session, const CalibrateFlags& flags);

// A prior is judged by references that it was not fitted to, so only these stay in `pool`, even where they are somewhat
// fewer than the questions wanted. Where they are fewer than half, all stay, that is said, and the prior is not tried.
// Whether it is.
bool KeepWhatPriorDidNotSee(const v1::GetCollectionResponse& collection, const CalibrateFlags& flags,
                            std::vector<v1::Reference>* pool);

// Leave-one-out questions: a sample of `pool`, each with the ids of all references that have its prompt. Those with
// choices where there are any.
Task LeaveOneOutTask(const std::vector<v1::Reference>& pool, const std::vector<v1::Reference>& references,
                     const CalibrateFlags& flags);

// Numbers the task's questions for the search. The user's own questions, if given, follow them and check; those that
// are among the references are left out, which is said. Errors: the file's, the server's; FailedPrecondition: none is
// left.
absl::Status AddHeldout(Session& session, const CalibrateFlags& flags, Task* task, CalibrationSettings* settings);

}  // namespace c3po

#endif  // C3PO_CLIENT_CLI_CALIBRATION_QUESTIONS_H_
