#ifndef C3PO_CLIENT_EVAL_REPORT_INPUT_H_
#define C3PO_CLIENT_EVAL_REPORT_INPUT_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "client/eval/item_result.h"
#include "client/eval/run_texts.h"
#include "index/base/label_offset.h"

namespace c3po {

// What run folders hold, read back for tables and reports. Plain values.

struct ReportTask {
  std::string name, group;  // group "" where run.json gives none
  std::string kind;         // "choice" or "generation"
  std::string metric, file, collection;
  int64_t items = 0;             // questions that the run was given
  int64_t among_references = 0;  // questions found among the references; not asked unless asks_them
  bool asks_them = false;
};

enum class MethodRole {
  kBaseline,      // The model as it is; every other method is compared with it.
  kOptimization,  // Re-mixing by the server: what c3po offers.
  kOracle,        // Re-mixing on the question's own answer: the bound, not a method to use.
  kInContext,
  kNeighborVote,
  // Made by the report (label_baselines.h).
  kMajority,     // The label that most references have.
  kBatchOffset,  // The model's choices less their mean.
  kLabelOffset,  // The model's choices under an offset fitted to the references; also where the server applies it.
};

struct ReportMethod {
  std::string label;
  std::string kind;          // "score", "icl", "knn_vote"; of rows that the report makes "baseline"
  std::string optimization;  // OptimizationOptions as JSON text; "" where run.json gives none
  MethodRole role = MethodRole::kOptimization;
  bool with_offset = false;  // it asks the server for the collection's label offset
};

struct AblationPoint {
  std::string label;  // what the axis shows
  std::optional<double> value;
  std::string method;  // label of one of the methods
};

struct Ablation {
  std::string name, variable;
  std::vector<AblationPoint> points;
};

struct ReportRun {
  std::string folder;
  int64_t created_unix_seconds = 0;
  std::string server_version, model_name, model_digest, embedder_name, embedder_digest;
  std::string server;  // all that run.json says of it, as JSON text
  std::string command_line;
  std::string seed;
};

// What requests over a collection got that set nothing, as JSON text.
struct ReportCollection {
  std::string name, optimization;
};

// What the labels of a task are, and what the references say of them.
struct TaskLabels {
  std::string task;
  std::vector<std::string> labels;      // without white space at their ends
  std::vector<int64_t> references;      // by label
  int64_t scored = 0;                   // of them, what `fitted` was fitted to
  std::optional<LabelOffset> fitted;    // of all scored references; in the scores of the task's metric
  std::optional<LabelOffset> unfitted;  // of the questions' scores, without labels
};

struct ReportInput {
  std::vector<ReportRun> runs;                // one per folder
  std::vector<ReportCollection> collections;  // by name, in the order of first mention
  std::vector<ReportTask> tasks;              // of all folders, by name, in the order of first mention
  std::vector<ReportMethod> methods;          // likewise, by label; exactly one is the baseline, if there are any
  std::vector<Ablation> ablations;
  std::vector<ItemResult> items;   // at most one per task, id and method: the last one written
  std::vector<std::string> notes;  // what a reader must know: items passed over, settings that differ between folders

  std::vector<TaskLabels> labels;                   // of the tasks that have some, in the order of `tasks`
  std::map<std::string, QuestionText> questions;    // by task, "\n" and id
  std::map<std::string, ReferenceText> references;  // by id

  // Null for a name that is not there.
  const QuestionText* FindQuestion(absl::string_view task, absl::string_view id) const;
  const ReferenceText* FindReference(const std::string& id) const;
  const ReportTask* FindTask(absl::string_view name) const;
  const ReportMethod* FindMethod(absl::string_view label) const;
  const TaskLabels* FindLabels(absl::string_view task) const;
};

// Reads FOLDER/run.json and FOLDER/items.jsonl of each folder, and where they are there questions.jsonl and
// references.jsonl and reference_scores.jsonl. Adds the baselines of label_baselines.h. A last line that was cut by a
// kill is passed over; a missing items.jsonl is a run without items. The baseline is the method whose optimization is
// METHOD_NONE without a label offset or whose label is "none", else the first. NotFound: no folder, or no run.json in
// it. InvalidArgument: run.json is malformed (names the field) or a line of items.jsonl other than the last is (names
// the line).
absl::StatusOr<ReportInput> ReadRunFolders(absl::Span<const std::string> folders);

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_REPORT_INPUT_H_
