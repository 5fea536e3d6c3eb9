#ifndef C3PO_CLIENT_EVAL_RUN_TEXTS_H_
#define C3PO_CLIENT_EVAL_RUN_TEXTS_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "client/eval/task.h"

namespace c3po {

// What the ids in items.jsonl stand for, so that a report can show it: a run's folder holds questions.jsonl, a line for
// each question, and references.jsonl, a line for each neighbor that an answer names. Plain values and pure functions.

struct QuestionText {
  std::string task, id;
  std::string prompt;
  std::vector<std::string> choices;  // Empty for generation.
  std::string answer;                // that is right
};

struct ReferenceText {
  std::string id;
  std::string prompt, answer;
};

QuestionText TextOf(const std::string& task, const TaskItem& item);

// One line of JSON without a newline.
std::string ToJsonLine(const QuestionText& question);
std::string ToJsonLine(const ReferenceText& reference);

// All lines of a file's text. A line that cannot be read, such as one that a kill cut short, is passed over: without
// its text an id is shown as it is.
std::vector<QuestionText> ParseQuestionTexts(absl::string_view lines);
std::vector<ReferenceText> ParseReferenceTexts(absl::string_view lines);

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_RUN_TEXTS_H_
