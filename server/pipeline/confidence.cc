#include "server/pipeline/confidence.h"

#include <algorithm>
#include <cmath>
#include <set>

namespace c3po {

double LargestProbability(const std::vector<double>& logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (double logit : logits) sum += std::exp(logit - top);
  return 1 / sum;
}

double Confidence(absl::Span<const float> logits, const std::vector<int32_t>& choice_tokens) {
  const std::set<int32_t> candidates(choice_tokens.begin(), choice_tokens.end());
  if (candidates.size() < 2) return LargestProbability({logits.begin(), logits.end()});
  std::vector<double> of_choices;
  for (int32_t token : candidates) of_choices.push_back(logits[token]);
  return LargestProbability(of_choices);
}

}  // namespace c3po
