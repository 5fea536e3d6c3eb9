#include "client/eval/choice_scores.h"

#include <algorithm>

namespace c3po {

double ChoiceScore(const ItemResult& result, Metric metric, size_t choice) {
  const double sum = result.log_likelihoods[choice];
  if (metric == Metric::kPerByte) return sum / std::max(1, result.byte_counts[choice]);
  if (metric == Metric::kPerToken) return sum / std::max(1, result.token_counts[choice]);
  return sum;
}

std::vector<double> ChoiceScores(const ItemResult& result, Metric metric) {
  std::vector<double> scores;
  for (size_t i = 0; i < result.log_likelihoods.size(); ++i) scores.push_back(ChoiceScore(result, metric, i));
  return scores;
}

}  // namespace c3po
