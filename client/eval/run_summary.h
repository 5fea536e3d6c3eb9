#ifndef C3PO_CLIENT_EVAL_RUN_SUMMARY_H_
#define C3PO_CLIENT_EVAL_RUN_SUMMARY_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/eval/margin_auc.h"
#include "client/eval/report_input.h"
#include "client/eval/statistics.h"

namespace c3po {

// A method against another, mostly the baseline, on the same items.
struct PairedComparison {
  Estimate difference;                 // of accuracy, in [-1, 1]
  int64_t improved = 0, worsened = 0;  // wrong by the baseline and right now; the reverse
  McNemarResult mcnemar;
  // Of the oracle's difference, where the oracle was run and is ahead of the baseline.
  std::optional<double> share_of_oracle;
};

// What a method has beyond the labels' bias. Of a scope's tasks of labels (label_task.h); absent where there is none,
// or where the method's answers have no scores there. In a pooled scope a question of a task without labels counts as
// it was answered, for there no offset exists.
struct BeyondOffset {
  // The part of the difference of accuracy that comes from tasks of labels: the lift over their questions, divided by
  // all questions of the scope. Absent for the baseline.
  std::optional<double> labelled_lift;
  std::optional<Estimate> auc;                  // area under the curve of the choices' margin (margin_auc.h), in [0, 1]
  std::optional<AucDifference> auc_difference;  // to the baseline's; absent for the baseline
  // With an offset fitted after the method, to its own scores of other questions (RightAfterOffset).
  std::optional<Estimate> accuracy;
  std::optional<PairedComparison> remaining;  // against the baseline, each with its offset; absent for the baseline
};

// One method in one scope. All figures are of the scope's compared items.
struct MethodSummary {
  std::string label;
  MethodRole role = MethodRole::kOptimization;
  bool with_offset = false;  // the server added the collection's label offset (ReportMethod)
  int64_t right = 0;
  Estimate accuracy;                       // in [0, 1]
  std::optional<PairedComparison> paired;  // absent for the baseline
  // Per item: the call's wall-clock as the client saw it, and the part in which the pathway was optimized.
  double mean_seconds = 0, median_seconds = 0, mean_optimization_seconds = 0;
  double mean_tokens = 0;                // prompt and completion
  std::map<std::string, int64_t> gates;  // items by gate decision
  // The neighbors' loss before the first and after the last step, over the items that report at least two losses.
  int64_t with_losses = 0, loss_fell = 0;
  double mean_loss_before = 0, mean_loss_after = 0;
  BeyondOffset beyond;
};

// A method that optimizes against one that reads the same references without it (in-context learning, the neighbors'
// vote, the label offset): whether re-mixing is what gains.
struct VersusBaseline {
  std::string method, baseline;  // labels
  PairedComparison paired;
};

// A task, a group of tasks pooled over their items, all tasks, or the points of an ablation over all tasks or a group.
// Only items that every method of the scope answered are compared. A method takes part in a task where it answered at
// least one item, and in a pooled scope where it takes part in each of its tasks.
struct ScopeSummary {
  std::string name;                    // of the task or the group; "all tasks", where there are several
  std::string group;                   // of a task
  int64_t items = 0;                   // compared
  int64_t left_out = 0;                // answered by some of the methods only
  std::vector<std::string> tasks;      // that are pooled here
  std::vector<std::string> labelled;   // of them, those whose questions share their choices
  std::vector<std::string> absent;     // methods that answered in this scope, but not in each of its tasks
  std::vector<MethodSummary> methods;  // baseline first, then in the run's order
  std::vector<VersusBaseline> versus;  // each method that optimizes with each that reads references only

  // Null where it is absent.
  const MethodSummary* Find(absl::string_view label) const;
  const MethodSummary* FindRole(MethodRole role) const;
};

struct AblationSummary {
  Ablation ablation;
  std::vector<ScopeSummary> scopes;  // all tasks, then each group where there are several
};

// Intervals: 95 %, Wilson's and Newcombe's (statistics.h).
struct RunSummary {
  std::vector<ReportRun> runs;
  std::string baseline;              // label; "" for a run without methods
  ScopeSummary overall;              // of the tasks that hold items
  std::vector<ScopeSummary> groups;  // none where no task names a group
  std::vector<ScopeSummary> tasks;   // in the run's order, with those that hold no items yet
  std::vector<AblationSummary> ablations;
  std::vector<TaskLabels> labels;
  std::vector<std::string> notes;
};

// Methods that only stand for a point of an ablation are left to that ablation's own table, unless nothing but the
// baseline would remain and they are few.
RunSummary Summarize(const ReportInput& input);

// Reads and summarizes a folder that `c3po eval` wrote or is writing. Errors: those of ReadRunFolders.
absl::StatusOr<RunSummary> SummarizeRun(absl::string_view folder);

// Fixed-width tables for a terminal, without colors.
std::string RenderText(const RunSummary& summary);
// The same tables as GitHub's Markdown, with what is needed to make them again.
std::string RenderMarkdown(const RunSummary& summary);
// All figures as one JSON object, indented; rates in [0, 1], durations in seconds.
std::string RenderJson(const RunSummary& summary);

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_RUN_SUMMARY_H_
