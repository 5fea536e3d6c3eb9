#include "server/pipeline/confidence.h"

#include <algorithm>
#include <cmath>
#include <map>

namespace c3po {

double LargestProbability(const std::vector<double>& logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (double logit : logits) sum += std::exp(logit - top);
  return 1 / sum;
}

double Confidence(const Readout& next, const std::vector<int32_t>& choice_tokens) {
  std::map<int32_t, double> candidates;  // Several choices may begin with one token.
  for (size_t i = 0; i < choice_tokens.size(); ++i) candidates[choice_tokens[i]] = next.token_logits.at(i);
  if (candidates.size() < 2) return next.largest_probability();
  std::vector<double> of_choices;
  for (const auto& [token, logit] : candidates) of_choices.push_back(logit);
  return LargestProbability(of_choices);
}

}  // namespace c3po
