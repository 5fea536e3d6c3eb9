#ifndef C3PO_CLIENT_EVAL_NEIGHBOR_BASELINES_H_
#define C3PO_CLIENT_EVAL_NEIGHBOR_BASELINES_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "c3po/v1/options.pb.h"
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

// How a neighbor's vote weighs by its distance d: the formulas of OptimizationOptions.kernel, so that a vote and a
// neighborhood's loss weigh neighbors alike. Sigma is `bandwidth`, or the distance to the farthest neighbor when that
// is not set.
struct VoteKernel {
  v1::Kernel kernel = v1::KERNEL_GAUSSIAN;
  std::optional<double> bandwidth;
};

// The answer with the largest sum of kernel values over the neighbors (nearest first) that give it. Answers are
// compared without white space at their ends. Of equal sums, and where all weights vanish, the nearest neighbor's
// answer. Empty without neighbors.
std::string VotedAnswer(absl::Span<const LabelledNeighbor> neighbors, const VoteKernel& kernel = {});

// The index of the choice that most votes are for. Neighbors whose answer is among the choices vote; where there are
// none, -1.
int VotedChoice(const TaskItem& item, absl::Span<const LabelledNeighbor> neighbors, const VoteKernel& kernel = {});

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_NEIGHBOR_BASELINES_H_
