#include "client/eval/choice_metrics.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/strip.h"
#include "client/eval/choice_scores.h"

namespace c3po {
namespace {

int BestChoice(const ItemResult& result, Metric metric) {
  size_t best = 0;
  for (size_t i = 1; i < result.log_likelihoods.size(); ++i) {
    if (ChoiceScore(result, metric, i) > ChoiceScore(result, metric, best)) best = i;
  }
  return static_cast<int>(best);
}

}  // namespace

void JudgeChoices(const Task& task, const TaskItem& item, ItemResult* result) {
  result->byte_counts.clear();
  for (const std::string& choice : item.choices) {
    result->byte_counts.push_back(static_cast<int>(absl::StripPrefix(choice, " ").size()));
  }
  if (!result->offset_scores.empty()) {
    const auto best = std::max_element(result->offset_scores.begin(), result->offset_scores.end());
    return JudgePrediction(item, static_cast<int>(best - result->offset_scores.begin()), result);
  }
  result->gold = item.gold;
  result->correct_raw = BestChoice(*result, Metric::kRaw) == item.gold;
  result->correct_per_byte = BestChoice(*result, Metric::kPerByte) == item.gold;
  result->correct_per_token = BestChoice(*result, Metric::kPerToken) == item.gold;
  result->predicted = BestChoice(*result, task.metric);
  result->correct = result->predicted == item.gold;
}

void JudgePrediction(const TaskItem& item, int predicted, ItemResult* result) {
  result->gold = item.gold;
  result->predicted = predicted;
  result->correct = predicted >= 0 && predicted == item.gold;
  result->correct_raw = result->correct_per_byte = result->correct_per_token = result->correct;
}

double GoldProbability(const ItemResult& result, Metric metric) {
  const size_t choices = result.log_likelihoods.size();
  if (choices == 0 || result.gold < 0 || static_cast<size_t>(result.gold) >= choices) return result.correct ? 1.0 : 0.0;
  const double gold = ChoiceScore(result, metric, result.gold);
  double sum = 0;
  for (size_t i = 0; i < choices; ++i) sum += std::exp(ChoiceScore(result, metric, i) - gold);
  return 1.0 / sum;
}

}  // namespace c3po
