#ifndef C3PO_CLIENT_EVAL_TASK_FILE_H_
#define C3PO_CLIENT_EVAL_TASK_FILE_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "client/eval/task.h"

namespace c3po {

// What a file does not say itself; a field that is not set keeps the format's own.
struct TaskFileOptions {
  std::string name;         // Empty: the file's name without its extension, or its folder's for "heldout.jsonl".
  std::string labels_file;  // PIQA's labels: one number a line, one line per question.
  std::optional<Metric> metric;
  std::optional<std::string> extraction;
  std::vector<std::string> stop;  // Empty: the format's own.
  std::optional<int> max_tokens;
};

// Reads a benchmark's questions: a .csv file, or a folder of them, is MMLU; a JSONL file is what its first line looks
// like (client/eval/benchmark_format.h). Questions without an id get their line's number; the collection is the task's
// name. NotFound; InvalidArgument as "FILE:17: why" for the first malformed line, for a file without questions, and for
// a metric that does not go with the kind of task.
absl::StatusOr<Task> ReadTaskFile(const std::string& path, const TaskFileOptions& options = {});

// Reads FOLDER/suite.json: {"tasks": [{"name", "group", "metric", "collection", "references_file", "heldout_file",
// optional "stop", "max_tokens", "extraction"}]}, files below FOLDER, and the questions of the tasks that are wanted:
// by name, by group, or all when both are empty. NotFound for a name or a group that the suite lacks (lists those it
// has).
absl::StatusOr<std::vector<Task>> ReadSuite(const std::string& folder, absl::Span<const std::string> names,
                                            absl::Span<const std::string> groups);

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_TASK_FILE_H_
