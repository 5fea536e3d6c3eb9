#include "client/eval/neighbor_baselines.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace c3po {

std::string InContextPrompt(absl::Span<const LabelledNeighbor> neighbors, absl::string_view prompt) {
  std::string text;
  for (size_t i = neighbors.size(); i-- > 0;) {
    absl::StrAppend(&text, neighbors[i].prompt, neighbors[i].answer, "\n\n");
  }
  absl::StrAppend(&text, prompt);
  return text;
}

namespace {

double KernelValue(v1::Kernel kernel, double distance, double sigma) {
  const double inner = 1 - distance * distance / 2;
  switch (kernel) {
    case v1::KERNEL_MATERN: {
      const double s = std::sqrt(5.0) * distance / sigma;
      return (1 + s + s * s / 3) * std::exp(-s);
    }
    case v1::KERNEL_LINEAR:
      return std::max(0.0, inner);
    case v1::KERNEL_POLYNOMIAL:
      return (1 + inner) * (1 + inner);
    default:
      return std::exp(-distance * distance / (2 * sigma * sigma));
  }
}

}  // namespace

std::string VotedAnswer(absl::Span<const LabelledNeighbor> neighbors, const VoteKernel& kernel) {
  if (neighbors.empty()) return "";
  const double farthest = neighbors.back().distance;
  const double sigma = kernel.bandwidth.value_or(farthest > 0 ? farthest : 1);  // All at distance 0 weigh alike.
  // In the order of their nearest neighbor, so that a tie falls to the nearer one.
  std::vector<std::pair<absl::string_view, double>> votes;
  for (const LabelledNeighbor& neighbor : neighbors) {
    const absl::string_view answer = absl::StripAsciiWhitespace(neighbor.answer);
    const double weight = KernelValue(kernel.kernel, neighbor.distance, sigma);
    const auto found = std::find_if(votes.begin(), votes.end(), [&](const auto& vote) { return vote.first == answer; });
    if (found == votes.end()) {
      votes.emplace_back(answer, weight);
    } else {
      found->second += weight;
    }
  }
  const auto most = std::max_element(votes.begin(), votes.end(),
                                     [](const auto& left, const auto& right) { return left.second < right.second; });
  return std::string(most->first);
}

int VotedChoice(const TaskItem& item, absl::Span<const LabelledNeighbor> neighbors, const VoteKernel& kernel) {
  const auto index_of = [&](absl::string_view answer) {
    for (size_t i = 0; i < item.choices.size(); ++i) {
      if (absl::StripAsciiWhitespace(item.choices[i]) == absl::StripAsciiWhitespace(answer)) return static_cast<int>(i);
    }
    return -1;
  };
  std::vector<LabelledNeighbor> voters;
  for (const LabelledNeighbor& neighbor : neighbors) {
    if (index_of(neighbor.answer) >= 0) voters.push_back(neighbor);
  }
  return voters.empty() ? -1 : index_of(VotedAnswer(voters, kernel));
}

}  // namespace c3po
