#ifndef C3PO_CLIENT_EVAL_LABEL_BASELINES_H_
#define C3PO_CLIENT_EVAL_LABEL_BASELINES_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "client/eval/reference_scores.h"
#include "client/eval/report_input.h"
#include "index/base/label_offset.h"

namespace c3po {

// Rows that need no call of their own: what the labels give without re-mixing. They are made of a run's answers by
// the model alone and of its references' scores, for tasks of labels (label_task.h):
//   majority      the label that most references have, whatever the question; of equally many the first label
//   batch-offset  the model's choice scores less their mean over the questions of the task (batch calibration); reads
//                 no label
//   label-offset  the model's choice scores scaled and shifted as FitLabelOffset fits it to the scored references
// A reference with the prompt of an evaluated question takes no part in that question's answer: the majority and the
// fit are made again without it. An offset changes no margin's order, so that these rows carry no scores of their own.
// In a task without labels there is nothing to shift: the three rows are the model's own answers there, so that they
// can be pooled over tasks. Offsets cost no time beyond the model's own; a majority costs none.

inline constexpr absl::string_view kMajorityLabel = "majority";
inline constexpr absl::string_view kBatchOffsetLabel = "batch-offset";
inline constexpr absl::string_view kLabelOffsetLabel = "label-offset";

// Whether a row of every report has this name, so that no method may.
bool IsLabelBaseline(absl::string_view label);

// Appends an answer's scores to `scores`, in the labels' order, and its right label. of_choices: the label of each
// choice (LabelsOfChoices). False, and nothing is appended, where the answer's scores or its right choice do not fit
// them.
bool AppendLabelRow(const ItemResult& answer, Metric metric, absl::Span<const int> of_choices, LabelScores* scores);

// Scores of a task's labels by one method. Absent where an answer has no scores, or where the task has no labels.
// `answers` are of one task; rows follow their order.
std::optional<LabelScores> LabelScoresOf(const ReportInput& input, const std::string& task,
                                         absl::Span<const ItemResult* const> answers);

// Finds the tasks' labels in input->questions and adds the three rows to the methods and the items of `input`, with
// notes on what is missing. Nothing is added where no method is the model alone.
void AddLabelBaselines(const std::vector<ReferenceScore>& references, ReportInput* input);

// The rows' answers of one folder's run, a line each as in items.jsonl, written to FOLDER/baselines.jsonl as a whole,
// for programs that read runs. Errors: those of ReadRunFolders, or of the file system.
absl::Status WriteLabelBaselines(const std::string& folder);

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_LABEL_BASELINES_H_
