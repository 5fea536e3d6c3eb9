#ifndef C3PO_CLIENT_EVAL_ITEM_RESULT_H_
#define C3PO_CLIENT_EVAL_ITEM_RESULT_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/eval/run_texts.h"

namespace c3po {

// One question answered by one method: a line of a run's items.jsonl. Plain value.
struct ItemResult {
  std::string task;    // of the run's tasks
  std::string id;      // unique within the task
  std::string method;  // label of one of the run's methods

  // Multiple choice: scores of each choice, in the order of the question's. Empty for generation.
  std::vector<double> log_likelihoods;  // sums over tokens, natural logarithm
  std::vector<int> token_counts;
  // Where the server applied a label offset: its scores, by which the answer is chosen whatever the task's metric.
  std::vector<double> offset_scores;
  std::vector<int> byte_counts;  // UTF-8 bytes of each choice without its leading space
  int gold = -1;                 // index of the right choice; -1 for generation
  int predicted = -1;            // by the task's metric
  // Whether the best choice is the right one: by the sum, per byte (the field's acc_norm), and per token.
  bool correct_raw = false, correct_per_byte = false, correct_per_token = false;

  // Generation: what came out, what was taken from it, what was wanted.
  std::string text, extracted, wanted;

  bool correct = false;  // by the task's metric: what every table counts

  std::string gate;                        // v1::GateDecision without its prefix, in lower case; empty: no optimization
  std::vector<std::string> neighbor_ids;   // nearest first
  std::vector<double> neighbor_distances;  // of the same length
  std::vector<double> losses;              // the neighbors' loss at the start and after each step
  std::vector<std::string> warnings;       // of the server, on the request
  double seconds = 0;                      // of the whole call, seen by the client
  double optimization_seconds = 0, retrieval_seconds = 0, prefill_seconds = 0, queue_seconds = 0;
  int prompt_tokens = 0, completion_tokens = 0;

  // Texts of the neighbors, where they came with the answer. Not in its line: a run's folder keeps each once.
  std::vector<ReferenceText> neighbor_texts;
};

// Internal names the first figure that is not finite. JSON has no such numbers, and in a comparison of choices they are
// neither larger nor smaller, so that the first choice would win.
absl::Status CheckFinite(const ItemResult& item);

// One line of JSON without a newline: the members' names as keys, empty vectors and strings left out.
std::string ToJsonLine(const ItemResult& item);
// InvalidArgument names the key that is missing or of another type. OutOfRange: a list of figures holds null, as
// earlier versions wrote what is not a number; the answer is no answer. Keys that it does not know are ignored.
absl::StatusOr<ItemResult> ParseItemResult(absl::string_view line);

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_ITEM_RESULT_H_
