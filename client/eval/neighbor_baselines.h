#ifndef C3PO_CLIENT_EVAL_NEIGHBOR_BASELINES_H_
#define C3PO_CLIENT_EVAL_NEIGHBOR_BASELINES_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "client/eval/task.h"

namespace c3po {

// A reference near a question.
struct LabelledNeighbor {
  std::string id;
  double distance = 0;  // Euclidean between unit-length embeddings, in [0, 2]
  std::string prompt;
  std::string answer;
};

// In-context learning's prompt: the neighbors' prompts and answers, farthest first, so that the nearest stands right
// before the question; an empty line after each. `neighbors` are nearest first.
std::string InContextPrompt(absl::Span<const LabelledNeighbor> neighbors, absl::string_view prompt);

// The answer with the largest sum of exp(-d^2 / 2 sigma^2) over the neighbors (nearest first) that give it, sigma
// being `bandwidth`, or the distance to the farthest when that is not set. Answers are compared without white space at
// their ends. Of equal sums, and where all weights vanish, the nearest neighbor's answer. Empty without neighbors.
std::string VotedAnswer(absl::Span<const LabelledNeighbor> neighbors, std::optional<double> bandwidth);

// The index of the choice that most votes are for. Neighbors whose answer is among the choices vote; where there are
// none, -1.
int VotedChoice(const TaskItem& item, absl::Span<const LabelledNeighbor> neighbors, std::optional<double> bandwidth);

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_NEIGHBOR_BASELINES_H_
