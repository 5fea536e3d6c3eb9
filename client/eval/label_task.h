#ifndef C3PO_CLIENT_EVAL_LABEL_TASK_H_
#define C3PO_CLIENT_EVAL_LABEL_TASK_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace c3po {

// A task of labels asks every question with the same choices, in whatever order: " negative", " positive". Only there
// can a label be preferred whatever the question is, so only there is an offset to take out. Where each question has
// choices of its own, or none, no label exists. Labels are compared without white space at their ends. Pure functions.

// The labels of a task, as the first question orders them. Empty where there are fewer than two questions, or where
// one has other choices than the first, fewer than two of them, or one of them twice.
std::vector<std::string> SharedLabels(absl::Span<const std::vector<std::string>> choices);

// The label of each choice, by index. Absent where the choices are not the labels, each once.
std::optional<std::vector<int>> LabelsOfChoices(absl::Span<const std::string> labels,
                                                absl::Span<const std::string> choices);

// The label of an answer, by index; -1 for none.
int LabelOfAnswer(absl::Span<const std::string> labels, absl::string_view answer);

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_LABEL_TASK_H_
