#ifndef C3PO_CLIENT_EVAL_BENCHMARK_FORMAT_H_
#define C3PO_CLIENT_EVAL_BENCHMARK_FORMAT_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/eval/task.h"

namespace c3po {

// How the lines of one benchmark's published JSONL become questions, with the prompt that the field's harnesses use
// without examples:
//   samples     {"prompt", "answer", optional "choices", "id", "metadata"}; the id may be metadata's native_id or id
//   HellaSwag   "{activity}: {ctx_a} {Ctx_b}", brackets removed, "[title]" a period; choices: the endings
//   ARC         "Question: {question}\nAnswer:"; choices: the texts. As published (question.stem, question.choices) or
//               as on the Hugging Face hub (choices.text, choices.label)
//   PIQA        "Question: {goal}\nAnswer:"; choices: sol1, sol2; the label from the line or from a labels file
//   MMLU        as on the Hugging Face hub ("question", "subject", "choices", "answer": the number of a choice from 0, or
//               its letter); the prompt and the choices are those of ReadMmluCsv
//   WinoGrande  the sentence up to the blank; a choice is an option and the rest of the sentence
//   GSM8K       "Question: {question}\nAnswer:"; generation; the last number written is the answer
struct BenchmarkFormat {
  const char* name;
  // A line of this format has all of these keys.
  std::vector<const char*> keys;
  TaskKind kind;
  Metric metric;
  // `label` is the line of the labels file, empty if there is none. The item's id may be left empty. InvalidArgument
  // names the field.
  absl::StatusOr<TaskItem> (*parse)(absl::string_view line, absl::string_view label);
};

// The format of a JSONL file by its first line. InvalidArgument: not JSON, or of no known format (lists its keys).
absl::StatusOr<const BenchmarkFormat*> DetectFormat(absl::string_view line);

// GSM8K's answers: a number, perhaps with a sign, a dollar sign, thousands commas, decimals.
inline constexpr char kLastNumberPattern[] = R"(-?\$?[0-9][0-9,]*(?:\.[0-9]+)?)";

// A question of MMLU: the prompt is "The following is a multiple choice question (with answer) about {subject}.", the
// question, "A. ..." and so on, "Answer:"; choices are the letters. `texts` are 2 to 26, gold is one of their places.
TaskItem MmluItem(std::string id, absl::string_view subject, absl::string_view question,
                  const std::vector<std::string>& texts, int gold);

// Rows of an MMLU file: question, A, B, C, D, answer, without a header or with one (RFC 4180, quoted fields may hold
// line breaks). InvalidArgument as "FILE:17: why", the line being
// where the row begins.
absl::StatusOr<std::vector<TaskItem>> ReadMmluCsv(const std::string& path);

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_BENCHMARK_FORMAT_H_
