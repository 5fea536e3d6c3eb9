#ifndef C3PO_CLIENT_EVAL_TASK_H_
#define C3PO_CLIENT_EVAL_TASK_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace c3po {

enum class TaskKind {
  kChoice,      // The likeliest of given choices is the answer.
  kGeneration,  // The answer is taken out of what the model writes.
};

// What decides whether an answer is right.
enum class Metric {
  kRaw,         // The choice with the largest sum of its tokens' log-likelihoods (the harness's acc).
  kPerByte,     // That sum per UTF-8 byte of the choice without its leading space (the harness's acc_norm).
  kPerToken,    // That sum per token.
  kExactMatch,  // Generation: NormalizeAnswer of what was extracted equals that of what was wanted.
};

// "raw", "per_byte", "per_token", "exact_match": the names in run.json.
const char* MetricName(Metric metric);
// Also takes "length_normalized", "per_character" and "acc_norm" for per byte, "acc" for raw. InvalidArgument.
absl::StatusOr<Metric> ParseMetric(absl::string_view name);
// "choice", "generation".
const char* TaskKindName(TaskKind kind);

struct TaskItem {
  std::string id;  // unique within its task
  std::string prompt;
  std::vector<std::string> choices;  // at least two, with their leading spaces; empty for generation
  int gold = -1;                     // index of the right choice; -1 for generation
  std::string answer;                // the right choice; for generation the text that is wanted
  // Not empty: the question is one of the collection's references. They are all that have its prompt, and must not be
  // its neighbors.
  std::vector<std::string> own_references;
};

// One benchmark. Plain value.
struct Task {
  std::string name;
  std::string group;            // "knowledge", "adaptation", "procedural", or empty
  std::string file;             // where the items were read from
  std::string collection;       // whose references are the neighbors
  std::string references_file;  // the samples that belong into the collection; empty: none known
  TaskKind kind = TaskKind::kChoice;
  Metric metric = Metric::kPerToken;

  // Generation. The extraction is a PCRE pattern: see AnswerExtractor. Empty: the whole text.
  std::string extraction;
  std::vector<std::string> stop;
  int max_tokens = 256;

  std::vector<TaskItem> items;

  // Questions found to be among the references (known_questions.h), and whether they stayed among `items` all the same.
  size_t among_references = 0;
  bool asks_them = false;
};

// The order 0..count-1 shuffled by `seed` (Fisher and Yates over std::mt19937_64, the same on every machine).
std::vector<size_t> ShuffledOrder(size_t count, uint64_t seed);

// Keeps the first `limit` items (0: all) of the file's order (as the field's harness does), or with a seed of the
// seed's order. The sample of a smaller limit is the beginning of that of a larger one.
void SampleItems(size_t limit, std::optional<uint64_t> seed, std::vector<TaskItem>* items);

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_TASK_H_
