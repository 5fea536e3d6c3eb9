#ifndef C3PO_SERVER_MODEL_ANSWER_TREE_H_
#define C3PO_SERVER_MODEL_ANSWER_TREE_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace c3po {

// The positions of a neighbor that a pathway can move: the last tokens of its prompt, one by default, and, below the
// very last, the answer tokens that are fed back. Continuations that share a beginning share rows: four one-letter
// choices are one row, which predicts all four. Rows [0, prompt_rows) are the prompt's, a chain; a row attends to the
// prompt before them, to its ancestors and to itself.
struct AnswerTree {
  struct Target {
    int row;  // log p(token) is read after this row
    int32_t token;
    int continuation;
  };
  std::vector<int32_t> tokens;  // [rows]
  std::vector<int> parents;     // [rows]; -1 for row 0, else smaller than the row
  std::vector<int> depths;      // [rows]; 0 for row 0: position = prompt length - prompt_rows + depth
  std::vector<Target> targets;  // every token of every continuation, in order
  std::vector<int> lengths;     // tokens of each continuation
  int prompt_rows = 1;

  int rows() const { return static_cast<int>(tokens.size()); }

  // `prompt_end`: the last tokens of the prompt, at least one. `continuations`: at least one, none empty.
  static AnswerTree Build(absl::Span<const int32_t> prompt_end, absl::Span<const std::vector<int32_t>> continuations);
};

}  // namespace c3po

#endif  // C3PO_SERVER_MODEL_ANSWER_TREE_H_
