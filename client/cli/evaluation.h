#ifndef C3PO_CLIENT_CLI_EVALUATION_H_
#define C3PO_CLIENT_CLI_EVALUATION_H_

#include <CLI/CLI.hpp>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "c3po/v1/options.pb.h"
#include "client/cli/session.h"
#include "client/eval/run_folder.h"
#include "client/eval/task.h"

namespace c3po {

// What `eval` and `ablate` share: which questions, of which collections, how many at a time, and where the answers go.
struct EvaluationFlags {
  std::vector<std::string> tasks;  // files, or names of the suite
  std::string suite;
  std::vector<std::string> groups;
  std::string labels_file;
  std::string metric;
  std::string extraction;
  std::vector<std::string> stop;
  std::optional<int> max_tokens;
  std::string out;
  std::string report;
  uint64_t limit = 0;  // questions per task; 0: all
  std::optional<uint64_t> seed;
  int concurrency = 2;
  uint32_t shots = 0;  // 0: as many as the methods that optimize
  // References per task whose labels the model alone scores, for the row label-offset of the report; 0: none.
  uint64_t offset_references = 200;
  bool resume = false;
  bool import = false;
  bool include_references = false;       // ask questions that are among the references, too
  v1::OptimizationOptions optimization;  // of all methods that optimize
};

// The flags of EvaluationFlags, and those of `ask` that make up `optimization` (without --method).
void AddEvaluationFlags(CLI::App& command, EvaluationFlags* flags);

// The tasks with their questions. NotFound, InvalidArgument as client/eval/task_file.h.
absl::StatusOr<std::vector<Task>> LoadTasks(const EvaluationFlags& flags);

// Puts the tasks' reference files into their collections, with progress on stderr.
absl::Status ImportTaskReferences(Session& session, const std::vector<Task>& tasks);

// Looks for questions that are among the references and leaves them out unless flags say otherwise; then asks all that
// the folder lacks, with live progress on stderr; then has the references of label tasks scored, as far as the folder
// lacks it; then prints the tables to stdout and writes the HTML
// report, if one is wanted. Cancelled after Ctrl-C, when the tables show what is there; an error when any answer
// failed.
absl::Status RunEvaluation(Session& session, const EvaluationFlags& flags, const std::string& out, RunDescription run);

}  // namespace c3po

#endif  // C3PO_CLIENT_CLI_EVALUATION_H_
